"""``fitwire stop``, ``set``, ``checkpoint``, ``pause``, ``unpause``, ``sample``, ``do``: ask a training for something.

Each waits until the training has said what became of it, prints that in a line, and has an exit code that says it too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import click

from fitwire.cli.faults import FAILED, TIMED_OUT
from fitwire.cli.shared import address_option, as_json, json_option, outcome_text, store_option, wire_options
from fitwire.errors import UsageError
from fitwire.protocol.commands import EXPIRES, MAX_EXPIRES
from fitwire.views.display import NAME, display
from fitwire.watch.commands import Outcome
from fitwire.watch.monitor import Monitor, WatchedRun
from fitwire.watch.sleapctl import send

__all__ = ["checkpoint", "do", "pause", "sample", "set_", "stop", "unpause"]

Verb = TypeVar("Verb", bound=Callable[..., Any])
SWITCH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def _asking(command: Verb) -> Verb:
    """What all of them take."""
    timeout = click.option(
        "--timeout", type=click.FloatRange(0, MAX_EXPIRES, min_open=True), default=EXPIRES, show_default=True,
        help="Seconds for which it may wait to be carried out; after them it is not, ever.",
    )  # fmt: skip
    return timeout(address_option(store_option(json_option(command))))


_sleap = wire_options(
    "ask an unmodified SLEAP or sleap-nn training, with no hub; RUN is left out.", "the training's two ports"
)


def _ask(
    ctx: click.Context, run: str, asked: Callable[[WatchedRun], list[Outcome]], options: Mapping[str, Any]
) -> None:
    """Ask ``run``, print what became of it, and end with the code that says so."""
    with Monitor(options["address"], store=options["store"]) as monitor:
        found = monitor.run(run)
        _tell(ctx, asked(found), options["as_json_"], name=found.name, id=found.id)


def _tell(ctx: click.Context, outcomes: list[Outcome], json: bool, **whose: str) -> None:
    for outcome in outcomes:
        if json:
            click.echo(as_json({"run": whose} | asdict(outcome) if whose else asdict(outcome)))
        else:
            name = f"{display(whose['name'], NAME)}: " if whose else ""
            click.echo(f"{name}{outcome_text(outcome)}", err=not outcome.ok)
    codes = [0 if o.ok else TIMED_OUT if o.status == "expired" else FAILED for o in outcomes]
    ctx.exit(max(codes, default=0))


def _named(word: str, example: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals or not name:
        raise click.UsageError(f"{word!r}: write NAME=VALUE, e.g. {example}.")
    return name, value


def _value(text: str, kind: str | None = None) -> Any:
    """What is meant by a word: as the knob has it, else a number or a switch where it reads as one, else text."""
    if kind == "str":
        return text
    if re.fullmatch(r"[+-]?\d{1,18}", text):
        return float(text) if kind == "float" else int(text)
    try:
        return float(text)
    except ValueError:
        return SWITCH.get(text.lower(), text)


@click.command()
@click.argument("run", required=False)
@click.option("--force", is_flag=True, help="Also where the framework was told to train on at least so long.")
@click.option("--after-epoch", is_flag=True, help="When the epoch it is in is done, not after the batch.")
@_sleap
@_asking
@click.pass_context
def stop(ctx: click.Context, run: str | None, force: bool, after_epoch: bool, timeout: float, **options: Any) -> None:
    """End a training, as if it had come to its end.

    RUN is a name, the beginning of an id, or "last". What still runs, e.g. a closing validation, is said. Exit code 0
    when the training does it; 1 when it is refused or fails; 124 when nobody carried it out in time; 2 when misused.
    So it is for all commands that ask.

    \b
    Example:
      fitwire stop last
    """
    if options["wire"] == "sleap":
        _alone(run, force=force, after_epoch=after_epoch)
        _tell(ctx, [send("stop", options["listen"], timeout, force=force)], options["as_json_"])
        return
    if force and after_epoch:
        raise click.UsageError("--force stops now: leave --after-epoch out.")

    def asked(found: WatchedRun) -> list[Outcome]:
        return [found.stop_after_epoch(timeout=timeout) if after_epoch else found.stop(force, timeout=timeout)]

    _ask(ctx, _whose(run), asked, options)


def _alone(run: str | None, *, force: bool, after_epoch: bool) -> None:
    if run is not None:
        raise click.UsageError("with --wire sleap there are no runs to name: leave RUN out.")
    if after_epoch:
        raise click.UsageError("SLEAP knows no --after-epoch.")


def _whose(run: str | None) -> str:
    if run is None:
        raise click.UsageError('say which RUN: a name, the beginning of an id, or "last".')
    return run


@click.command("set")
@click.argument("words", nargs=-1, required=True, metavar="RUN NAME=VALUE...")
@_sleap
@_asking
@click.pass_context
def set_(ctx: click.Context, words: tuple[str, ...], timeout: float, **options: Any) -> None:
    """Turn knobs of a training, e.g. its learning rate.

    RUN is a name, the beginning of an id, or "last"; NAME a knob that `fitwire show RUN` lists, lr for the learning
    rate. What it was and what it is now is printed; exit codes are those of `fitwire stop`.

    \b
    Example:
      fitwire set last lr=1e-4
    """
    if options["wire"] == "sleap":
        if len(words) != 1 or "=" not in words[0]:
            raise click.UsageError("with --wire sleap there are no runs to name: write only lr=VALUE.")
        name, text = _named(words[0], "lr=1e-4")
        value = _value(text)
        if name != "lr" or isinstance(value, (bool, str)):
            raise click.UsageError("a training of SLEAP has one knob: write lr=NUMBER.")
        _tell(ctx, [send("set", options["listen"], timeout, lr=float(value))], options["as_json_"])
        return
    pairs = [_named(word, "lr=1e-4") for word in words[1:]]
    if "=" in words[0] or not pairs:
        raise click.UsageError("say which RUN, then NAME=VALUE, e.g. last lr=1e-4.")

    def asked(found: WatchedRun) -> list[Outcome]:
        controls = found.controls
        kinds = {name: str(controls.get(name, {}).get("type")) for name, _ in pairs}
        return [found.set(name, _value(text, kinds[name]), timeout=timeout) for name, text in pairs]

    _ask(ctx, words[0], asked, options)


@click.command()
@click.argument("run")
@click.argument("path", required=False)
@_asking
@click.pass_context
def checkpoint(ctx: click.Context, run: str, path: str | None, timeout: float, **options: Any) -> None:
    """Have a training written to disk, on its own machine, now.

    RUN is a name, the beginning of an id, or "last"; without PATH it goes where the training writes its checkpoints.
    Where it went is printed; exit codes are those of `fitwire stop`.

    \b
    Example:
      fitwire checkpoint last
    """
    _ask(ctx, run, lambda found: [found.checkpoint(path, timeout=timeout)], options)


@click.command()
@click.argument("run")
@click.option("--max-pause", type=click.FloatRange(0, min_open=True), default=3600.0, show_default=True,
              help="Seconds after which it goes on by itself.")  # fmt: skip
@_asking
@click.pass_context
def pause(ctx: click.Context, run: str, max_pause: float, timeout: float, **options: Any) -> None:
    """Have a training hold between two batches.

    RUN is a name, the beginning of an id, or "last". It goes on by `fitwire unpause`, or after --max-pause; exit codes
    are those of `fitwire stop`.

    \b
    Example:
      fitwire pause last
    """
    _ask(ctx, run, lambda found: [found.pause(max_pause, timeout=timeout)], options)


@click.command()
@click.argument("run")
@_asking
@click.pass_context
def unpause(ctx: click.Context, run: str, timeout: float, **options: Any) -> None:
    """Have a paused training go on.

    RUN is a name, the beginning of an id, or "last"; exit codes are those of `fitwire stop`.

    \b
    Example:
      fitwire unpause last
    """
    _ask(ctx, run, lambda found: [found.unpause(timeout=timeout)], options)


@click.command()
@click.argument("run")
@_asking
@click.pass_context
def sample(ctx: click.Context, run: str, timeout: float, **options: Any) -> None:
    """Have a training make sample predictions now.

    RUN is a name, the beginning of an id, or "last"; exit codes are those of `fitwire stop`.

    \b
    Example:
      fitwire sample last
    """
    _ask(ctx, run, lambda found: [found.request_sample(timeout=timeout)], options)


@click.command()
@click.argument("run")
@click.argument("action")
@click.argument("arguments", nargs=-1, metavar="[NAME=VALUE]...")
@_asking
@click.pass_context
def do(ctx: click.Context, run: str, action: str, arguments: tuple[str, ...], timeout: float, **options: Any) -> None:
    """Have one of a training's own actions done.

    RUN is a name, the beginning of an id, or "last"; ACTION one that `fitwire show RUN` lists. What its function
    returned is printed; exit codes are those of `fitwire stop`.

    \b
    Example:
      fitwire do last shuffle seed=7
    """
    given = {name: _value(text) for name, text in (_named(word, "seed=7") for word in arguments)}
    for name in given:
        if not name.isidentifier() or name == "timeout":
            raise UsageError(f"{name!r} is no name of an argument")
    _ask(ctx, run, lambda found: [found.do(action, timeout=timeout, **given)], options)
