"""``fitwire alert``: tells of what should not wait, and does something about it."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict

import click

from fitwire.cli.shared import address_option, as_json, json_option, outcome_text, store_option, when
from fitwire.transport.process import spawn
from fitwire.views.display import NAME, display
from fitwire.watch.alerts import Alarm, Alerts
from fitwire.watch.monitor import Monitor, WatchedRun
from fitwire.watch.webhook import Webhook

__all__ = ["alert"]

USUAL = ("nan", "stalled", "lost", "failed")
LOOK = 0.25
"""Seconds between two looks, at least: a busy hub changes all the time."""
JUDGE = 1.0
"""Seconds after which it is judged anew though nothing came: that is how a silence is noticed."""


@click.command()
@click.option("--when", "rules", multiple=True, metavar="RULE",
              help="nan, stalled, lost, failed, finished, or NAME op NUMBER, e.g. 'val_loss < 0.2'; may be repeated. "
              "Default: nan, stalled, lost and failed.")  # fmt: skip
@click.option("--run", metavar="RUN", help="Only this one; it may start later.")
@click.option("--then", "action", type=click.Choice(["stop", "stop-after-epoch", "checkpoint", "pause"]),
              help="Ask the run for it, when an alert comes.")  # fmt: skip
@click.option("--webhook", metavar="URL", help="Post it there, as Slack or ntfy take it.")
@click.option("--bell", is_flag=True, help="Ring the terminal's bell.")
@click.option("--once", is_flag=True, help="End after the first, with exit code 0.")
@address_option
@store_option
@json_option
def alert(
    rules: tuple[str, ...],
    run: str | None,
    action: str | None,
    webhook: str | None,
    bell: bool,
    once: bool,
    address: str | None,
    store: str | None,
    as_json_: bool,
) -> None:
    """Tell of a NaN, a stalled, lost or failed run, or a metric.

    It is judged here, so it comes when the trainer is dead, too. Each rule is told once for a run; what a run does,
    whenever it begins to. Goes on until Ctrl-C.

    \b
    Example:
      fitwire alert --when 'val_loss < 0.2' --then stop
    """
    alerts = Alerts(rules or USUAL)
    post = Webhook(webhook) if webhook else None
    asking: list[threading.Thread] = []
    try:
        with Monitor(address, store=store) as monitor:
            while True:
                revision = monitor.revision
                for alarm in alerts.look(_chosen(monitor, run)):
                    _tell(alarm, bell=bell, json=as_json_)
                    if post is not None:
                        post.tell(alarm)
                    if action is not None:
                        asking.append(_ask(monitor.run(alarm.run), action, json=as_json_))
                    if once:
                        for thread in asking:
                            thread.join()
                        return
                time.sleep(LOOK)
                monitor.wait_for_change(revision, JUDGE)
    finally:
        if post is not None:
            post.close()


def _chosen(monitor: Monitor, run: str | None) -> list[WatchedRun]:
    runs = monitor.runs
    return runs if run is None else [one for one in runs if one.name == run or one.id.startswith(run)]


def _tell(alarm: Alarm, *, bell: bool, json: bool) -> None:
    if json:
        click.echo(as_json({"alert": asdict(alarm)}))
    else:
        click.echo(f"{when(alarm.time)}  {display(alarm.name, NAME)}: {display(alarm.text)}  ({display(alarm.when)})")
    if bell:
        click.echo("\a", nl=False, err=True)


def _ask(run: WatchedRun, action: str, *, json: bool) -> threading.Thread:
    """Ask, and print the outcome, while others are looked after."""
    ask = {"stop": run.stop, "stop-after-epoch": run.stop_after_epoch, "checkpoint": run.checkpoint, "pause": run.pause}

    def work() -> None:
        outcome = ask[action]()
        if json:
            click.echo(as_json({"run": {"name": run.name, "id": run.id}} | asdict(outcome)))
        else:
            click.echo(f"{display(run.name, NAME)}: {action} {outcome_text(outcome)}")

    return spawn("asking", work)
