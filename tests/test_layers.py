"""The house as drawn: imports only point down, the wings are blind to each other, and some things are in no room.

A new module in a known room is covered by its folder's row; a new room fails here until the table has a row for it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fitwire
from helpers import run_python

ROOT = Path(fitwire.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(), str(path)) for name, path in MODULES.items()}

GROUND = {"errors", "_version"}
RULES = GROUND | {"protocol"}
SAID = RULES | {"events", "transport"}
PLAIN = {"message", "pair"}
WING = SAID | PLAIN | {"sleap", "journal", "meter"}
DOORS = {"keras", "keras_controls", "lightning", "lightning_controls", "loop"}
MAY_IMPORT: dict[str, set[str]] = {
    # a room may import itself and these; the floors of the house from the ground up
    "errors": set(),
    "_version": set(),
    "protocol": GROUND,
    "transport": RULES,
    "events": RULES,
    "sleap": SAID,
    "meter": set(),
    "journal": SAID,
    "message": RULES | {"transport", "pair"},
    "pair": RULES | {"transport"},
    "train": WING,
    "watch": WING,
    **{door: WING | {"train"} for door in DOORS},
    "keras": WING | {"train", "keras_controls"},
    "lightning": WING | {"train", "lightning_controls"},
    "views": WING | {"watch"},
    "demo": WING | DOORS | {"train", "watch", "views"},
    "cli": WING | {"watch", "views", "demo"},
    "__main__": {"cli"},
    # what the package exports, lazily; what it loads at once is held below
    "__init__": WING | DOORS | {"train", "watch"},
}
FRAMEWORKS = {"tensorflow", "keras", "torch", "lightning", "pytorch_lightning", "jax", "sklearn"}
VIEWS = {"rich", "textual", "starlette", "matplotlib", "pandas", "PIL"}


def room_of(module: str) -> str:
    return module.partition(".")[0]


def imported(module: str, nodes: Iterator[ast.AST] | None = None) -> Iterator[str]:
    """Full names of what a module imports anywhere, each as far as it can be told."""
    package = ["fitwire", *module.split(".")]
    if MODULES[module].name != "__init__.py":
        package = package[:-1]
    for node in nodes or ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            base = base if node.level else str(node.module)
            for alias in node.names:
                # `from fitwire.train import ending` names a module, `from fitwire.train.run import Run` does not
                inner = f"{base}.{alias.name}".removeprefix("fitwire.")
                yield f"fitwire.{inner}" if inner in MODULES else base


def rooms_imported(module: str) -> set[str]:
    ours = [name.removeprefix("fitwire.") for name in imported(module) if name.startswith("fitwire.")]
    return {room_of(name) for name in ours} - {room_of(module)}


def outsiders(module: str, nodes: Iterator[ast.AST] | None = None) -> set[str]:
    return {name.partition(".")[0] for name in imported(module, nodes)} - {"fitwire"}


def at_once(tree: ast.Module) -> Iterator[ast.AST]:
    """What runs when the module is imported: not the insides of functions, nor what only a type checker reads."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and not typing_only:
            waiting.extend(ast.iter_child_nodes(node))


def test_every_room_is_on_the_plan() -> None:
    """A module in a room that nobody drew would obey no rule."""
    unknown = {room_of(name) for name in MODULES if name} - set(MAY_IMPORT)

    assert not unknown, f"no row in tests/test_layers.py for {unknown}: say what it may import"


def test_the_plan_itself_only_points_down() -> None:
    """No two rooms may import each other, and no ring leads back to where it began."""
    below = {room: set(may) for room, may in MAY_IMPORT.items()}
    built: set[str] = set()
    while ready := {room for room, may in below.items() if may & set(below) <= built} - built:
        built |= ready

    assert built == set(below), f"rings among {set(below) - built}"
    assert "watch" not in MAY_IMPORT["train"] and "train" not in MAY_IMPORT["watch"]


@pytest.mark.parametrize("module", sorted(name for name in MODULES if name))
def test_imports_only_point_down(module: str) -> None:
    """What a module imports, at any depth of its code, lies on the floors below its room."""
    wrong = rooms_imported(module) - MAY_IMPORT[room_of(module)]

    assert not wrong, f"fitwire.{module} imports from {wrong}, which is not below it"


@pytest.mark.parametrize("module", sorted(m for m in MODULES if room_of(m) in ("protocol", "events")))
def test_the_rules_know_no_socket_thread_or_clock(module: str) -> None:
    """Bytes and times are handed in, so that a test can hand in any."""
    assert not outsiders(module) & {"zmq", "threading", "time", "socket", "asyncio", "multiprocessing", "select", "ssl"}


@pytest.mark.parametrize("module", sorted(m for m in MODULES if room_of(m) not in ("transport", "message", "pair")))
def test_sockets_and_threads_are_made_in_transport_only(module: str) -> None:
    """Elsewhere zmq is not imported, of ``socket`` only the host's name is asked, and threads come from ``spawn``."""
    made = {ast.unparse(node.func) for node in ast.walk(TREES[module]) if isinstance(node, ast.Call)}

    assert "zmq" not in outsiders(module)
    assert {call for call in made if call.startswith("socket.")} <= {"socket.gethostname"}
    assert not made & {"threading.Thread", "Thread", "threading.Timer", "Timer", "create_connection", "create_server"}


@pytest.mark.parametrize("module", sorted(m for m in MODULES if room_of(m) not in DOORS | {"demo"}))
def test_no_framework_is_imported_but_by_its_door(module: str) -> None:
    """The rest looks into ``sys.modules``: what is not loaded has made no tensor either."""
    assert not outsiders(module) & FRAMEWORKS


@pytest.mark.parametrize("module", sorted(m for m in MODULES if room_of(m) not in {"views", "cli", "demo"}))
def test_no_view_is_loaded_but_by_the_views(module: str) -> None:
    """Below them, what draws is imported inside the one function that needs it, if at all."""
    assert not outsiders(module, at_once(TREES[module])) & VIEWS


def faults_in(tree: ast.AST) -> Iterator[str]:
    """What is in no room: code out of bytes, and shells."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            banned = {"pickle", "cPickle", "marshal", "jsonpickle", "dill", "cloudpickle", "shelve"}
            yield from (name for name in names if name.partition(".")[0] in banned)
        elif isinstance(node, ast.Name) and node.id in ("eval", "exec", "compile"):
            yield node.id
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.system", "os.popen", "builtins.eval"):
            yield ast.unparse(node)
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell"):
            said = ast.unparse(node.value)
            yield from [] if said == "False" else [f"{node.arg}={said}"]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_bytes_become_code(module: str) -> None:
    """No pickle, marshal, eval, exec or shell anywhere: a peer's bytes are data."""
    assert list(faults_in(TREES[module])) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from pickle import loads", "import marshal as m", "import jsonpickle.ext", "eval('1')",
        "exec(x)", "f = eval", "compile(a, b, c)", "np.load(f, allow_pickle=True)", "np.load(f, allow_pickle=flag)",
        "run('ls', shell=True)", "import os\nos.system('ls')",
    ],
)  # fmt: skip
def test_the_ban_finds_what_it_is_for(code: str) -> None:
    """Each way that is banned is found, however it is written."""
    assert list(faults_in(ast.parse(code)))


def test_the_ban_lets_pass_what_is_harmless() -> None:
    """``re.compile`` makes no code, and saying no is allowed."""
    harmless = "re.compile('x'); np.load(f, allow_pickle=False); run(['ls'], shell=False); model.eval()"

    assert list(faults_in(ast.parse(harmless))) == []


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import fitwire", {"zmq", "fitwire.train", "fitwire.watch", "numpy"}),
        ("from fitwire import init, Run", {"fitwire.watch", "asyncio"}),
        ("import fitwire.watch.monitor", {"fitwire.train", "fitwire.loop"}),
        ("from fitwire import Monitor", {"fitwire.train"}),
        ("import fitwire.message", {"fitwire.train", "fitwire.watch"}),
    ],
)
def test_importing_loads_no_framework_and_no_view(code: str, unwanted: set[str]) -> None:
    """Whoever trains does not pay for the watcher, nor the other way round, nor either for a framework or a view."""
    loaded = set(run_python(f"import sys\n{code}\nprint(*sys.modules)").split())
    tops = {name.partition(".")[0] for name in loaded}

    assert "fitwire" in tops
    assert not tops & (FRAMEWORKS | VIEWS)
    assert not loaded & (unwanted | {"fitwire.views", "fitwire.cli", "fitwire.keras", "fitwire.lightning"})


def test_these_rules_are_tried_on_the_real_house() -> None:
    """The files that are checked are those that are imported, and there are some in each room that is built."""
    assert Path(sys.modules["fitwire"].__file__ or "").parent == ROOT
    assert {"errors", "events", "protocol.blocks", "transport.zmq", "train.run", "watch.hub"} <= set(MODULES)
    assert {"events", "errors"} <= rooms_imported("train.packer")
