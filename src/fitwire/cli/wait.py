"""``fitwire wait``: until a metric is good enough or a run ends, with an exit code for scripts."""

from __future__ import annotations

import click

from fitwire.cli.faults import FAILED, TIMED_OUT
from fitwire.cli.shared import address_option, as_json, json_option, run_json, store_option
from fitwire.errors import ConditionNotMet, WaitTimeout
from fitwire.views.display import NAME, display, number
from fitwire.watch.monitor import Monitor
from fitwire.watch.states import State, parse_condition

__all__ = ["wait"]


@click.command()
@click.argument("run")
@click.option(
    "--until", metavar="CONDITION", help="NAME op NUMBER, e.g. 'val_loss < 0.2'. Default: until the run ends."
)
@click.option("--timeout", type=click.FloatRange(0, min_open=True), help="Seconds. Default: for ever.")
@address_option
@store_option
@json_option
@click.pass_context
def wait(
    ctx: click.Context,
    run: str,
    until: str | None,
    timeout: float | None,
    address: str | None,
    store: str | None,
    as_json_: bool,
) -> None:
    """Wait for a metric, or for the end of a run.

    RUN is a name, the beginning of an id, or "last". Exit code 0 when the condition is met or, without one, the run
    finished; 1 when the run ended without, failed or was interrupted; 124 after --timeout; 2 for a condition that is
    none.

    \b
    Example:
      fitwire wait last --until 'val_loss < 0.2' --timeout 3600 && echo good enough
    """
    if until is not None:
        parse_condition(until)  # before a hub is looked for
    with Monitor(address, store=store) as monitor:
        found = monitor.run(run)
        value, outcome, sentence, code = None, "met", "", 0
        try:
            value = found.wait(until, timeout)
        except ConditionNotMet as error:
            outcome, sentence, code = "not met", str(error), FAILED
        except WaitTimeout as error:
            outcome, sentence, code = "timeout", str(error), TIMED_OUT
        if not code and until is None:
            code = 0 if found.state is State.FINISHED else FAILED
            outcome, sentence = "ended", f"{display(found.name, NAME)} {display(found.status_text)}"
        elif not code:
            sentence = f"{display(found.name, NAME)} has {until}: {number(value or 0.0)}"
        if as_json_:
            click.echo(as_json({"outcome": outcome, "until": until, "value": value, "run": run_json(found)}))
        elif sentence:
            click.echo(display(sentence) if not code else f"fitwire: {display(sentence)}", err=bool(code))
        ctx.exit(code)
