"""How the command line fails: one sentence on stderr and an exit code that scripts can use."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from fitwire.errors import FitwireError, UsageError
from fitwire.views.display import display

__all__ = ["FAILED", "INTERRUPTED", "MISUSED", "TIMED_OUT", "Sentences"]

FAILED = 1
MISUSED = 2
TIMED_OUT = 124
"""As ``timeout(1)`` has it."""
INTERRUPTED = 130
"""As a shell has it after Ctrl-C."""
LONGEST = 1500
"""Characters of an error: some list what there is."""


class Sentences(click.Group):
    """A group that says what went wrong in a sentence, and what to do."""

    def main(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> Any:
        """Run the command and end the process: 0 done, 1 failed, 2 misused, 124 timed out, 130 interrupted."""
        for stream in (sys.stdout, sys.stderr):
            # A terminal that knows no ● shows a question mark rather than a traceback.
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:
                reconfigure(errors="replace")
        extra["standalone_mode"] = False
        sys.exit(_run(lambda: super(Sentences, self).main(args, prog_name or "fitwire", **extra)))


def _run(command: Any) -> int:
    try:
        code = command()
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else "fitwire"
        return _say(f"{error.format_message()} See `{path} --help`.", MISUSED)
    except click.ClickException as error:
        return _say(error.format_message(), error.exit_code)
    except click.Abort:
        return INTERRUPTED
    except FitwireError as error:
        return _say(str(error), MISUSED if isinstance(error, UsageError) else FAILED)
    except BrokenPipeError:
        return _reader_left()
    except OSError as error:
        return _say(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", FAILED)
    return code if isinstance(code, int) else 0


def _say(sentence: str, code: int) -> int:
    click.echo(f"fitwire: {display(sentence, LONGEST)}", err=True)
    return code


def _reader_left() -> int:
    """``| head`` has seen enough: Python would complain again when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED
