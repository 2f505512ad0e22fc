"""The borders of the house: who may import whom, and the one home of each outside package."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("swarm", "node", "coordinator")

HOMES = {  # outside package -> the files and folders that may import it
    "ray": ("swarm/cluster",),
    "sqlite3": ("swarm/ledger.py",),
    "msgpack": ("swarm/codec.py",),
    "anthropic": ("node/proposers/claude.py",),
    "github": ("coordinator/forges/github.py",),
}
GIT_HOMES = ("swarm/repo.py", "swarm/git.py")  # the repository, and the one place below it that starts the process
WIRING = ("swarm/cli.py", "swarm/cli/")  # the one place that may know both sides
FORBIDDEN = {"swarm": {"node", "coordinator"}, "node": {"coordinator"}, "coordinator": {"node"}}


def imported(tree: ast.AST) -> Iterator[str]:
    """Top-level names of every package that is imported anywhere in a file, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def starts_git(tree: ast.AST) -> bool:
    """Whether a list or tuple literal begins with "git": the argv of a subprocess."""
    for node in ast.walk(tree):
        if isinstance(node, ast.List | ast.Tuple) and node.elts:
            first = node.elts[0]
            if isinstance(first, ast.Constant) and first.value == "git" and len(node.elts) > 1:
                return True
    return False


def at_home(path: str, homes: tuple[str, ...]) -> bool:
    """Whether a file is one of these homes; `swarm/cluster` covers cluster.py, cluster_x.py and cluster/."""
    return any(path == home or (not home.endswith(".py") and path.startswith(home)) for home in homes)


def broken_rules(path: str, source: str) -> list[str]:
    """Every rule that one file of ours breaks."""
    tree = ast.parse(source)
    names = set(imported(tree))
    found = [
        f"{path} imports {name}"
        for name in sorted(names & FORBIDDEN[path.split("/")[0]])
        if not path.startswith(WIRING)
    ]
    strays = ((name, homes[0]) for name, homes in HOMES.items() if name in names and not at_home(path, homes))
    found += [f"{path} imports {name}, whose home is {home}" for name, home in strays]
    if path not in GIT_HOMES and starts_git(tree):
        found.append(f"{path} runs git, whose home is {GIT_HOMES[0]}")
    return found


def test_the_tree_keeps_its_borders() -> None:
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert files, "no source found: this test looks in the wrong place"
    assert [rule for path in files for rule in broken_rules(path.relative_to(ROOT).as_posix(), path.read_text())] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("node/agent.py", "from coordinator.mind import Mind"),
        ("coordinator/mind.py", "import node.agent"),
        ("swarm/client.py", "import node.agent"),
        ("swarm/records.py", "def later():\n    from node import agent"),
        ("node/agent.py", "import ray"),
        ("coordinator/service.py", "import sqlite3 as db"),
        ("node/trial.py", "from msgpack import packb"),
        ("node/proposers/tuner.py", "import anthropic"),
        ("coordinator/promotion.py", "from github import Github"),
        ("coordinator/forges/local.py", "subprocess.run(['git', 'push'])"),
    ],
)
def test_a_planted_violation_is_found(path: str, source: str) -> None:
    assert len(broken_rules(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("swarm/cli/wiring.py", "import node.agent"),
        ("swarm/cli.py", "from coordinator.service import run\nfrom node.agent import Agent"),
        ("swarm/cluster.py", "import ray"),
        ("swarm/cluster/bridge.py", "import ray.util"),
        ("swarm/ledger.py", "import sqlite3"),
        ("swarm/repo.py", "subprocess.run(['git', 'push'])"),
        ("coordinator/forges/github.py", "import github"),
        ("coordinator/forges/__init__.py", "from coordinator.forges import github"),
        ("swarm/git.py", "argv = ['git', *words]"),
        ("node/hardware.py", "words = ['git']\nfrom . import trial"),
    ],
)
def test_what_is_allowed_passes(path: str, source: str) -> None:
    assert broken_rules(path, source) == []
