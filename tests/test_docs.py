"""That the pages are true: every public name, command, option and variable stands in them, and every link leads on."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
import typing
import zlib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import fitwire
from fitwire import events
from fitwire.cli import main as cli
from pages import DOCS, PAGES, ROOT, blocks, name_of, without_code

SRC = ROOT / "src" / "fitwire"
DOORS = ("fitwire.keras", "fitwire.lightning", "fitwire.message", "fitwire.watch.monitor")
CONTEXT = click.Context(cli)
COMMANDS = {name: cli.get_command(CONTEXT, name) for name in cli.list_commands(CONTEXT)}


def module_file(name: str) -> Path | None:
    """Where a module of ours lies; None when ``name`` is none."""
    path = SRC.parent.joinpath(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def exported(name: str) -> list[str]:
    """A module's ``__all__``, read and not imported: it may need a framework."""
    file = module_file(name)
    assert file is not None, f"no module {name}"
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["__all__"]:
            return list(ast.literal_eval(node.value))
    raise AssertionError(f"{name} has no __all__")


def documented() -> set[str]:
    """Dotted names that the reference generates an entry for."""
    found: set[str] = set()
    for page in DOCS.rglob("*.md"):
        for match in re.finditer(r"^::: ([\w.]+)\n((?:    .*\n|\n)*)", page.read_text("utf-8") + "\n", re.MULTILINE):
            name, options = match[1], match[2]
            found.add(name)
            if module_file(name):
                members = re.search(r"members: \[(.*?)\]", options)
                names = re.split(r",\s*", members[1]) if members else exported(name)
                found |= {f"{name}.{member}" for member in names}
    return found


def public() -> Iterator[tuple[str, str]]:
    """Each public name, and where it is defined."""
    for name in fitwire.__all__:
        if name != "__version__":
            home = getattr(fitwire, name).__module__
            yield f"fitwire.{name}", f"{home}.{name}"
    for module in DOORS:
        for name in exported(module):
            yield f"{module}.{name}", f"fitwire.{name}"


def test_every_public_name_has_an_entry_in_the_reference() -> None:
    """What can be imported on purpose can be looked up."""
    there = documented()

    assert [name for name, home in public() if name not in there and home not in there] == []
    assert "fitwire.__version__" in (DOCS / "reference" / "fitwire.md").read_text("utf-8")


def test_every_event_has_an_entry_in_the_reference() -> None:
    """Who iterates ``run.events()`` meets these."""
    there = documented()

    assert [c.__name__ for c in typing.get_args(events.Event) if f"fitwire.events.{c.__name__}" not in there] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_documented_with_all_its_options(name: str) -> None:
    """Its section in the reference names each option; ``--help`` has an example."""
    command = COMMANDS[name]
    assert command is not None
    sections = re.split(r"^(?=#)", (DOCS / "reference" / "cli.md").read_text("utf-8"), flags=re.MULTILINE)
    own = [section for section in sections if re.match(rf"#.*\b{name}\b", section)]
    text = "".join(own)
    options = [max(p.opts, key=len) for p in command.params if isinstance(p, click.Option)]

    assert own, f"docs/reference/cli.md has no heading with {name}"
    assert [option for option in options if not re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text)] == []
    assert "Example:" in (command.help or "")


def commands_in(text: str) -> Iterator[list[str]]:
    """Words of each ``fitwire …`` in a shell block, without what follows a pipe or a bracket."""
    for line in text.replace("\\\n", " ").splitlines():
        for match in re.finditer(r"(?:^|[\s(/])fitwire ([^|&;)]*)", line.partition(" # ")[0]):
            if not line.lstrip().startswith("#"):
                yield shlex.split(match[1], comments=True)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_on_a_page_exist_and_take_those_options(page: Path) -> None:
    """Nobody is told to type what is not there."""
    wrong = []
    for block in blocks(page, "sh", "bash", "console", "shell"):
        for name, *words in commands_in(block.code):
            command = COMMANDS.get(name)
            known = {o for p in command.params for o in p.opts} | {"--help"} if command else set()
            own = words[: words.index("--")] if "--" in words else words  # the rest belongs to the command that is run
            strange = [word for word in own if word.startswith("-") and word.partition("=")[0] not in known]
            if (command is None and not name.startswith("-")) or strange:
                wrong.append((name, strange))
    for name in re.findall(r"`fitwire ([a-z]+)", page.read_text("utf-8")):
        if name not in COMMANDS:
            wrong.append((name, []))

    assert wrong == []


def test_every_variable_that_is_read_is_documented() -> None:
    """And none is documented that nobody reads."""
    read = {name for file in SRC.rglob("*.py") for name in re.findall(r"FITWIRE_[A-Z_]+", file.read_text("utf-8"))}
    page = (DOCS / "reference" / "environment.md").read_text("utf-8")

    assert read == set(re.findall(r"FITWIRE_[A-Z_]+", page))


def test_every_page_is_in_the_navigation() -> None:
    """What is written can be found, and what is listed is there."""
    listed = re.findall(r"([\w./-]+\.md)\s*$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)

    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_on_a_page_lead_to_files_that_are_there(page: Path) -> None:
    """Pictures too."""
    targets = re.findall(r"\]\(([^)\s]+)\)", without_code(page))
    local = [target.partition("#")[0] for target in targets if not re.match(r"https?:|mailto:|#", target)]

    assert [target for target in local if not (page.parent / target).exists()] == []


def test_the_readme_can_be_read_in_one_go() -> None:
    """Two hundred lines, the picture and the two commands among them."""
    text = (ROOT / "README.md").read_text("utf-8")

    assert len(text.splitlines()) <= 200
    assert "docs/assets/demo.svg" in text
    assert "make demo" in text and "make test" in text


def test_the_changelog_has_this_version() -> None:
    """And what is not released yet has its place above it."""
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)

    assert headings[0] == "Unreleased"
    assert fitwire.__version__ in headings


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages as a site, built as ``make docs`` builds it."""
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        capture_output=True, text=True, cwd=ROOT, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.framework  # as heavy as one, and no more needed on every Python
def test_the_site_has_every_public_name_with_a_sentence(site: Path) -> None:
    """The inventory of the built site lists them, so that other sites can link to them."""
    raw = (site / "objects.inv").read_bytes()
    lines = zlib.decompress(raw.split(b"\n", 4)[4]).decode().splitlines()
    listed = {line.split(" ", 1)[0] for line in lines}

    assert [name for name, home in public() if name not in listed and home not in listed] == []


@pytest.mark.framework
def test_the_site_fetches_nothing_from_elsewhere(site: Path) -> None:
    """It can be read on a node without internet."""
    tags = r"<(?:script|img|iframe)\b[^>]*\bsrc=\"?https?:", r"<link\b[^>]*\brel=\"?(?:stylesheet|preload)[^>]*https?:"
    fetched = re.compile("|".join(tags))

    assert [page.name for page in site.rglob("*.html") if fetched.search(page.read_text("utf-8"))] == []
