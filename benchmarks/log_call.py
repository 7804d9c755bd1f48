"""What does one ``log`` of four floats cost the training thread, beside what others do?

Each contender has a process of its own in each round, so that none pays for another's threads. There it is called once
a millisecond, when caches are as cold as between training steps, in turn with an empty function and with the seed's way
(a PUB socket's ``send_json`` to a receiver in another process): the three meet the same weather. Then in a tight loop.
Times in µs, medians of the rounds, ``worst`` of all rounds; ``of_the_seed`` is p50 over the seed's beside it. The
clock's own cost, which is what the empty function shows, is included everywhere.

fitwire is measured with nobody there, with a hub, a frozen one (SIGSTOP), a slow one (50 ms a commit) and one that is
killed (SIGKILL) a third of the way, each in both kinds of ``durability``; ``flag`` reads ``run.stop_requested``, with
nobody there. A contender that cannot be imported is named
as ``unavailable``. Prints one JSON line.

    python benchmarks/log_call.py [--rounds N] [--seconds S] [--calls N] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import http.server
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import zmq

from common import Child, at_home, hub_at, medians, print_line, quantiles

VALUES = {"loss": 0.5, "accuracy": 0.25, "grad_norm": 1.5, "lr": 1e-3}
SLOW_COMMIT = 0.05

Call = Callable[[int], object]


# -- contenders: each gives the call, and cleans up


@contextmanager
def fitwire_run(where: str, durability: str) -> Generator[Call]:
    """Ours; ``where`` is an address, or empty for one where nobody listens."""
    import fitwire

    with fitwire.init(where or None, name="benchmark", durability=durability, wait=20.0 if where else 0.0) as run:
        assert not where or run.flush(20.0)
        if run.warnings["durability"]:
            raise RuntimeError(f"durability={durability!r} is not to be had here")
        yield lambda step: run.log(VALUES, step=step)


@contextmanager
def flag_of_a_run(where: str, durability: str) -> Generator[Call]:
    """Whether to stop, which a loop reads at each step."""
    import fitwire

    with fitwire.init(where or None, name="benchmark", durability=durability) as run:
        yield lambda step: run.stop_requested


@contextmanager
def tensorboard(folder: str) -> Generator[Call]:
    """torch's writer: a scalar each."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(folder)

    def log(step: int) -> None:
        for name, value in VALUES.items():
            writer.add_scalar(name, value, step)

    yield log
    writer.close()


@contextmanager
def wandb(folder: str) -> Generator[Call]:
    """W&B, offline."""
    os.environ |= {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false", "WANDB_DIR": folder}
    import wandb

    run = wandb.init(mode="offline", dir=folder, project="benchmark")
    yield lambda step: run.log(VALUES, step=step)
    run.finish()


@contextmanager
def trackio(folder: str) -> Generator[Call]:
    """Trackio, on this machine."""
    os.environ |= {"TRACKIO_DIR": folder, "HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
    import trackio

    with _quiet():
        trackio.init(project="benchmark", name="benchmark")
    yield lambda step: trackio.log(VALUES, step=step)
    with _quiet():
        trackio.finish()


@contextmanager
def remote_monitor(root: str) -> Generator[Call]:
    """What Keras's ``RemoteMonitor(send_as_json=True)`` does with each epoch's logs."""
    import requests

    yield lambda step: requests.post(
        f"{root}/publish/epoch/end/", json={"epoch": step, **VALUES}, headers={"Content-Type": "application/json"}
    )


@contextmanager
def csv_flush(folder: str) -> Generator[Call]:
    """A row, flushed."""
    import csv

    with open(Path(folder) / "log.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)

        def log(step: int) -> None:
            writer.writerow([step, *VALUES.values()])
            file.flush()

        yield log


@contextmanager
def seed_socket(port: str) -> Generator[Call]:
    """The seed's sender: PUB, its own defaults."""
    context: zmq.Context[Any] = zmq.Context()
    socket = context.socket(zmq.PUB)
    socket.connect(f"tcp://127.0.0.1:{port}")
    time.sleep(0.3)
    yield lambda step: socket.send_json({"step": step, **VALUES})
    context.destroy(linger=0)


@contextmanager
def _quiet() -> Generator[None]:
    """stdout is for the answer."""
    kept, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
        os.close(null)


PEERS: dict[str, Callable[[str], Any]] = {
    "csv": csv_flush, "tensorboard": tensorboard, "trackio": trackio, "wandb_offline": wandb,
    "remote_monitor": remote_monitor,
}  # fmt: skip
FITWIRE = ("flag", "no hub", "hub", "frozen hub", "slow hub", "killed hub")
DURABILITIES = ("memory", "process")


# -- one contender's process


def tight(call: Call, count: int) -> dict[str, float]:
    """Median of single calls without a pause, and the mean of all, with what other threads take meanwhile."""
    clock = time.perf_counter_ns
    taken: list[int] = []
    begun = clock()
    for step in range(count):
        before = clock()
        call(step)
        taken.append(clock() - before)
    mean = (clock() - begun) / count
    return {"tight_p50": quantiles(taken)["p50"] / 1000, "tight_mean": mean / 1000}


def paced(calls: dict[str, Call], seconds: float, after_a_third: Callable[[], None]) -> dict[str, list[float]]:
    """Every call once a millisecond, in turn; single durations, µs."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    clock, sleep = time.perf_counter_ns, time.sleep
    begun = time.perf_counter()
    step, third = 0, False
    while (passed := time.perf_counter() - begun) < seconds:
        if not third and passed > seconds / 3:
            third = True
            after_a_third()
        for name, call in calls.items():
            sleep(0.001)
            before = clock()
            call(step)
            taken[name].append((clock() - before) / 1000)
        step += 1
    return taken


def contend(name: str, place: str, seconds: str, count: str, seed_port: str) -> None:
    """Measure one contender and print what was found; stdin tells that what was asked for has been done."""
    with ExitStack() as stack:
        kind, _, durability = name.partition("/")
        try:
            make = flag_of_a_run if kind == "flag" else fitwire_run
            call = stack.enter_context(PEERS[kind](place) if kind in PEERS else make(place, durability))
        except Exception as error:  # named in the result, whatever it is
            print("ready", flush=True)
            print(json.dumps({"unavailable": f"{type(error).__name__}: {str(error)[:160]}"}), flush=True)
            return
        seed = stack.enter_context(seed_socket(seed_port))

        def say_a_third() -> None:
            print("third", flush=True)
            sys.stdin.readline()

        print("ready", flush=True)
        sys.stdin.readline()
        calls: dict[str, Call] = {"empty": lambda step: None, "seed": seed, "own": call}
        found = {key: quantiles(taken) for key, taken in paced(calls, float(seconds), say_a_third).items()}
        number = int(count) if kind not in PEERS else max(20, int(count) // 100)
        found = {key: value | tight(calls[key], number) for key, value in found.items()}
        print(json.dumps(found), flush=True)


# -- the conductor


class Sink(http.server.BaseHTTPRequestHandler):
    """Takes what is posted, says yes."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Nothing."""


def serve_posts() -> None:
    """The server that RemoteMonitor posts to, until stdin is closed."""
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sink) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()


def receive_seed() -> None:
    """The seed's receiver: SUB, bound; takes all until stdin is closed."""
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    context: zmq.Context[Any] = zmq.Context()
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    print(socket.bind_to_random_port("tcp://127.0.0.1"), flush=True)
    while True:
        socket.recv_json()


def measure(name: str, folder: Path, options: argparse.Namespace, ports: dict[str, str]) -> dict[str, Any]:
    """One contender, once."""
    kind = name.partition("/")[0]
    with ExitStack() as stack:
        hub: Child | None = None
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fw-", ignore_cleanup_errors=True)))
        place = f"http://127.0.0.1:{ports['posts']}" if kind == "remote_monitor" else str(home)
        if kind in FITWIRE:
            place = ""
            if kind not in ("flag", "no hub"):
                place, hub = stack.enter_context(hub_at(home, "hub", *([SLOW_COMMIT] if kind == "slow hub" else [])))
        env = {"FITWIRE_DIR": str(home)}
        child = Child("log_call.py", "contend", name, place, options.seconds, options.calls, ports["seed"], env=env)
        stack.callback(child.close)
        found = _conduct(child, kind, hub)
        if hub is not None and kind != "killed hub":
            hub.process.send_signal(signal.SIGCONT)
        return found


def _conduct(child: Child, kind: str, hub: Child | None) -> dict[str, Any]:
    assert child.process.stdin is not None
    if kind == "frozen hub" and hub is not None:
        hub.process.send_signal(signal.SIGSTOP)
    for _ in range(2):
        try:
            print("go", file=child.process.stdin, flush=True)
        except BrokenPipeError:
            pass
        line = child.read()
        if line != "third":
            return json.loads(line or '{"unavailable": "it ended without a word"}')
        if kind == "killed hub" and hub is not None:
            hub.process.kill()
    return json.loads(child.read())


def summarize(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds, with the seed's and the empty function's beside it."""
    good = [one for one in rounds if "own" in one]
    if not good:
        return rounds[-1]
    for one in good:
        one["of_the_seed"] = one["own"]["p50"] / one["seed"]["p50"]
    found = medians(good)
    return found["own"] | {key: found[key] for key in ("of_the_seed", "empty", "seed")}


def names(only: list[str] | None) -> Iterator[str]:
    """Contenders asked for."""
    every = [f"{kind}/{durability}" for durability in DURABILITIES for kind in FITWIRE]
    every.remove("flag/process")  # the same flag
    for name in [*every, *PEERS]:
        if only is None or name in only or name.partition("/")[0] in only:
            yield name


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of the paced part, of each contender and round")
    parser.add_argument("--calls", type=int, default=20_000, help="of the tight part; a hundredth for peers")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="'no hub', 'hub/process', 'csv', …")
    options = parser.parse_args()
    with at_home() as folder, ExitStack() as stack:
        servers = {"posts": Child("log_call.py", "posts"), "seed": Child("log_call.py", "receiver")}
        for server in servers.values():
            stack.callback(server.process.wait)
            stack.callback(server.process.kill)
        ports = {name: server.hello for name, server in servers.items()}
        chosen = list(names(options.only))
        rounds = [{name: measure(name, folder, options, ports) for name in chosen} for _ in range(options.rounds)]
    found = {name: summarize([one[name] for one in rounds]) for name in chosen}
    fitwire = {name: value for name, value in found.items() if name.partition("/")[0] in FITWIRE}
    print_line(
        "log_call", options, unit="µs", paced="1 kHz", values=len(VALUES), fitwire=fitwire,
        peers={name: value for name, value in found.items() if name not in fitwire},
    )  # fmt: skip


if __name__ == "__main__":
    roles: dict[str, Callable[..., None]] = {"contend": contend, "posts": serve_posts, "receiver": receive_seed}
    if sys.argv[1:2] and sys.argv[1] in roles:
        roles[sys.argv[1]](*sys.argv[2:])
    else:
        main()
