"""What the documentation's build mends in generated pages: docstrings' roles, which Markdown does not know."""

from __future__ import annotations

import re
from typing import Any

ROLE = re.compile(r":(?:class|attr|meth|func|mod|data|exc):<code>(?P<short>~?)(?P<name>[\w.]+)</code>")
LITERAL = re.compile(r"<p>::</p>\n?")
"""What announces an indented block; the block is shown as one anyway."""


def on_page_content(html: str, **others: Any) -> str:
    """Show ``:class:`~fitwire.Run``` as ``Run``."""
    html = ROLE.sub(lambda m: f"<code>{m['name'].rpartition('.')[2] if m['short'] else m['name']}</code>", html)
    return LITERAL.sub("", html)
