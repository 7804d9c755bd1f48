"""The command line: ``fitwire``.

Each command is thin: it asks a ``Monitor`` and prints. What is printed of a peer goes through ``display``; an error is
one sentence on stderr, never a traceback. Commands are loaded when they are called, so that ``fitwire hub`` on a login
node loads no view.
"""

from __future__ import annotations

from importlib import import_module

import click

from fitwire._version import __version__
from fitwire.cli.faults import Sentences

__all__ = ["main"]

COMMANDS = {
    "demo": "demo",
    "run": "run",
    "hub": "hub",
    "watch": "watch",
    "ls": "look",
    "show": "look",
    "tail": "look",
    "get": "look",
    "wait": "wait",
    "alert": "alert",
    "stop": "ask",
    "set": "ask",
    "checkpoint": "ask",
    "pause": "ask",
    "unpause": "ask",
    "sample": "ask",
    "do": "ask",
    "sync": "sync",
    "verify": "verify",
    "doctor": "doctor",
}
"""Which module a command lives in."""


class _Lazy(Sentences):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        where = COMMANDS.get(cmd_name)
        if where is None:
            return None
        attribute = "set_" if cmd_name == "set" else cmd_name
        found: click.Command = getattr(import_module(f"fitwire.cli.{where}"), attribute)
        return found


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fitwire")
def main() -> None:
    """Watch trainings, live, from wherever they run.

    \b
    Example:
      fitwire demo        # train something small and watch it
      fitwire watch       # then start your own training in another terminal
    """
