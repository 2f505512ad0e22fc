"""What the pages say is so: generated pages are current, links lead somewhere, names exist, toys keep the contracts."""

import importlib
import inspect
import re
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import get_args

import click
import pytest
import test_forges
import test_proposers
import test_sandbox
from factories import finished_study
from test_forges import World, make_world

from coordinator.forges import Forge
from node.proposers import load
from node.sandbox import Sandbox
from node.sandbox.choice import choose_sandbox
from swarm import records
from swarm.cli import cli
from swarm.config import Config, load_config
from swarm.errors import ConfigError
from swarm.ledger import Ledger

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("configs/**/*.md")])
README = ROOT / "README.md"
DESIGN = ROOT / "docs" / "design.md"
WRITTEN_BY_A_STUDY = {"LEADERBOARD.md", "results.tsv", "report.md", "progress.png", "facts.jsonl", "record.json"}
OF_OTHERS = {"my.toml", "token"}  # files of the reader
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(?:<!-- (?P<note>[^>]*) -->\n)?```(?P<language>\w*)\n(?P<body>.*?)^```$", re.M | re.S)
COMMAND = re.compile(r"\bswarm ([a-z]+)\b(?!\])([^`\n]*)")


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text("utf-8"))


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks in one of these languages."""
    found = FENCE.finditer(page.read_text("utf-8"))
    return [match["body"] for match in found if match["language"] in languages]


def spans(page: Path) -> list[str]:
    """What stands in backticks in the running text, line breaks aside."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


# --- generated pages and links ---------------------------------------------------------------------------


def test_generated_pages_are_current() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts" / "docs", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def anchors(page: Path) -> set[str]:
    """What a `#link` into a page may name, by GitHub's rule."""
    heads = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def broken_links(page: Path) -> list[str]:
    """Relative links of a page that lead nowhere."""
    broken = []
    for link in LINK.findall(prose(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if "://" in link or link.startswith("mailto:"):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    assert not broken_links(page)


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A head\n[a](page.md#a-head) [b](gone.md) [c](#no-head) [d](https://x.org/gone) ![e](gone.png)")
    assert broken_links(page) == ["gone.md", "#no-head", "gone.png"]


# --- names that pages mention ----------------------------------------------------------------------------


def shell_lines(page: Path) -> list[str]:
    """Every command line that a page shows, in blocks and in the text."""
    lines = [line.partition(" #")[0] for block in blocks(page, "sh") for line in block.splitlines()]
    return [*lines, *spans(page)]


def subcommand(command: click.Command, rest: str) -> tuple[click.Command, str]:
    """The command of a group that the next word names, if it names one."""
    word, _, after = rest.strip().partition(" ")
    if isinstance(command, click.Group) and word in command.commands:
        return command.commands[word], after
    return command, rest


def wrong_commands(text: str) -> list[str]:
    """`swarm X` without such a command, and options that it does not have."""
    wrong = []
    for name, rest in COMMAND.findall(text):
        command = cli.commands.get(name)
        if command is None:
            wrong.append(f"swarm {name}")
            continue
        command, rest = subcommand(command, rest)
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        used = {word.partition("=")[0] for word in rest.split() if re.match(r"--?[a-z]", word)}
        wrong += [f"swarm {name} {option}" for option in sorted(used - known - {"--help"})]
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_a_page_mentions_exist(page: Path) -> None:
    assert not [wrong for line in shell_lines(page) for wrong in wrong_commands(line)]


def test_a_made_up_command_is_found() -> None:
    assert wrong_commands("swarm dance") == ["swarm dance"]
    assert wrong_commands("swarm reproduce 2 --seed 5") == ["swarm reproduce --seed"]
    assert not wrong_commands("swarm reproduce 2 --seeds 5 --json")
    assert wrong_commands("swarm simulate decisions --dance") == ["swarm simulate --dance"]
    assert not wrong_commands("swarm simulate decisions --campaigns 20")


def test_the_readme_names_every_command() -> None:
    told = {name for line in shell_lines(README) for name, _ in COMMAND.findall(line)}
    assert told >= set(cli.commands)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_that_a_page_mentions_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    told = {name for line in shell_lines(page) for name in re.findall(r"^make ([a-z]+)", line.strip())}
    assert told <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_that_a_page_shows_are_taken(page: Path) -> None:
    for line in shell_lines(page):
        words = shlex.split(line) if "--set" in line else []
        settings = [after for word, after in zip(words, words[1:], strict=False) if word == "--set" and "=" in after]
        load_config(None, [setting for setting in settings if setting != "KEY=VALUE"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_configuration_keys_that_a_page_mentions_exist(page: Path) -> None:
    sections = {name: set(get_fields(name)) for name in ("stop", "caps", "nodes", "proposer", "decision", "forge")}
    for span in spans(page):
        named = re.fullmatch(r"(\w+)\.(\w+)(?:\.\w+)?(?: ?= ?.*)?", span)
        if named and named[1] in sections:
            assert named[2] in sections[named[1]], span


def get_fields(section: str) -> list[str]:
    """The keys of a section of the configuration."""
    model = Config.model_fields[section].annotation
    assert model is not None
    return list(model.model_fields)


FILE = re.compile(r"[\w.-]+(?:/[\w.-]+)*/?")


def missing_files(page: Path) -> list[str]:
    """Files in backticks that are neither here nor what a study writes, and lines of a tree that name nothing."""
    named = [
        span for span in spans(page) if FILE.fullmatch(span) and re.search(r"/.*\.|\.(py|md|toml|txt|lock)$", span)
    ]
    trees = [match["body"] for match in FENCE.finditer(page.read_text("utf-8")) if match["note"] == "tree"]
    drawn = [line.split()[0] for tree in trees for line in tree.splitlines()]
    return [name for name in (*named, *drawn) if not (ROOT / name).exists() and not _is_elsewhere(name, page)]


def _is_elsewhere(name: str, page: Path) -> bool:
    return (
        name in OF_OTHERS
        or Path(name).name in WRITTEN_BY_A_STUDY
        or name.startswith("studies/")
        or (ROOT / "baseline" / name).exists()
        or name in toys(page)
    )


@pytest.mark.parametrize("page", [README, ROOT / "AGENTS.md", *ROOT.glob("docs/*.md")], ids=lambda page: page.name)
def test_files_that_a_page_mentions_exist(page: Path) -> None:
    assert not missing_files(page)


def test_agents_fits_on_a_page() -> None:
    assert len((ROOT / "AGENTS.md").read_text("utf-8").splitlines()) <= 60


# --- facts and queries -----------------------------------------------------------------------------------


def test_the_design_tells_of_every_kind_of_fact_and_of_no_other() -> None:
    section = DESIGN.read_text("utf-8").partition("\n## Facts\n")[2].partition("\n## ")[0]
    told = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    kinds = [fact.kind for fact in get_args(get_args(records.Fact)[0])]
    assert told == kinds


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as opened:
        opened.append(finished_study().facts, at=1.0)
    return path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_queries_that_a_page_shows_run_on_a_ledger(page: Path, ledger: Path) -> None:
    db = sqlite3.connect(f"{ledger.as_uri()}?mode=ro", uri=True)
    try:
        for query in blocks(page, "sql"):
            if "SELECT" in query and "CREATE" not in query:
                assert db.execute(query).fetchall(), query
    finally:
        db.close()


# --- toys ------------------------------------------------------------------------------------------------


def toys(page: Path) -> dict[str, str]:
    """File name -> code of the implementations that a page shows."""
    found = FENCE.finditer(page.read_text("utf-8"))
    return {m["note"].removeprefix("toy: "): m["body"] for m in found if (m["note"] or "").startswith("toy: ")}


@pytest.fixture
def toy(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """All toys can be imported, as they can in the folder of whoever copies them."""
    folder = tmp_path_factory.mktemp("toys")
    names = []
    for page in ("proposers.md", "sandboxes.md", "forges.md"):
        for name, code in toys(ROOT / "docs" / page).items():
            (folder / name).write_text(code, "utf-8")
            names.append(name.removesuffix(".py"))
    monkeypatch.syspath_prepend(folder)
    yield str(folder)
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("toy")
class TestToyProposer(test_proposers.TestContract):
    """docs/proposers.md keeps what every proposer promises."""

    @pytest.fixture
    def make(self) -> test_proposers.Make:
        return lambda: load("doubler:Doubler", seed=3, options={})

    @pytest.fixture
    def helpless(self, make: test_proposers.Make) -> test_proposers.Make:
        return make

    @pytest.mark.parametrize("use", ["doubler:Doubler"])
    def test_an_unknown_option_is_named(self, use: str, api: object = None) -> None:
        with pytest.raises(ConfigError, match="modle"):
            load(use, seed=0, options={"modle": "x"})


class TestToySandbox(test_sandbox.TestSandboxContract):
    """docs/sandboxes.md keeps what every sandbox promises."""

    @pytest.fixture
    def sandbox(self, toy: str) -> Sandbox:
        return choose_sandbox("polite:Polite")


FORGE_CONTRACT = [
    check
    for name, check in vars(test_forges).items()
    if name.startswith("test_") and "world" in inspect.signature(check).parameters
]


@pytest.fixture
def folder_forge(toy: str) -> ModuleType:
    return importlib.import_module("folder_forge")


@pytest.mark.parametrize("check", FORGE_CONTRACT, ids=lambda check: check.__name__.removeprefix("test_"))
def test_the_toy_forge_keeps_the_contract(check: Callable[..., None], folder_forge: ModuleType, tmp_path: Path) -> None:
    def connect() -> Forge:
        forge: Forge = folder_forge.FolderForge(folder=tmp_path, options={"folder": str(tmp_path / "forge")})
        return forge

    world: World = make_world(tmp_path, tmp_path / "forge" / "repo.git", connect)
    more: dict[str, object] = {"tmp_path": tmp_path, "path": "train_py"}
    wanted = inspect.signature(check).parameters
    check(world=world, **{name: value for name, value in more.items() if name in wanted})
