"""A whole study by the command line with the other proposer and the other forge, against stand-ins that speak HTTP."""

import json
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from standins import anthropic_api, github_api

from swarm.cli.studies import facts_of
from swarm.records import ExperimentAdmitted, Promotion, Spent, StudyFinished

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TRAIN = '''"""A toy: three switches, one of which helps."""

import os
import random

GOOD = False
DULL = False
BAD = False

noise = random.Random(os.environ["SWARM_SEED"]).gauss(0, 0.01)
print(f"val_bpb: {2.0 + noise - 0.2 * GOOD + 0.1 * BAD:.6f}")
'''


class ThoughtfulModel(deque[anthropic_api.Answer]):
    """The script of the stand-in without an end: every call switches on what the prompt shows as off."""

    def __init__(self, server: anthropic_api.StandIn) -> None:
        super().__init__()
        self._server = server
        self._turn = 0

    def __bool__(self) -> bool:
        return True

    def popleft(self) -> anthropic_api.Answer:
        self._turn += 1
        if self._turn % 5 == 2:
            return anthropic_api.failure(529)
        if self._turn % 5 == 4:
            return anthropic_api.call(_edit("NOT_THERE = 1", "NOT_THERE = 2"))
        off = re.findall(r"^(GOOD|DULL|BAD) = False", _shown(self._server.requests[-1]), re.MULTILINE)
        name = off[self._turn % len(off)] if off else "GOOD"
        return anthropic_api.call(_edit(f"{name} = False", f"{name} = True"))


def _edit(search: str, replace: str) -> dict[str, Any]:
    edits = [{"path": "train.py", "search": search, "replace": replace}]
    return {"hypothesis": f"{replace} helps", "expected": "lower", "edits": edits}


def _shown(request: dict[str, Any]) -> str:
    """All text of a request as the model reads it."""
    return json.dumps(request).replace("\\n", "\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    task = tmp_path / "task"
    task.mkdir()
    (task / "train.py").write_text(TRAIN)
    (task / "program.md").write_text("# Goal\n\nLower val_bpb.\n")
    subprocess.run([_swarm(), "init", str(task), "--seconds", "20"], check=True, capture_output=True)
    return tmp_path


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[github_api.StandIn]:
    bare = tmp_path / "github.git"
    subprocess.run(["git", "init", "-q", "--bare", str(bare)], check=True)
    with github_api.stand_in(bare) as server:
        yield server


def _swarm() -> str:
    return str(Path(sys.executable).with_name("swarm"))


def test_a_study_with_claude_and_github(folder: Path, hub: github_api.StandIn) -> None:
    with anthropic_api.stand_in() as model:
        model.script = ThoughtfulModel(model)
        settings = (
            *("task=task", "study=cloud", "stop.wall_minutes=1.5", "stop.final_minutes=0.5", "stop.promotions=1"),
            *(
                "decision.final_seeds=3",
                "nodes.poll_s=0.1",
                "proposer.use=claude",
                f"proposer.options.base_url={model.url}",
            ),
            *("forge.use=github", f"forge.repository={github_api.REPOSITORY}"),
            *(f"forge.base_url={hub.url}", f"forge.git_url={hub.git_url}", "caps.dollars=5"),
        )
        environment = {**os.environ, "ANTHROPIC_API_KEY": anthropic_api.KEY, "GITHUB_TOKEN": github_api.TOKEN}
        command = [_swarm(), "run", "--plain", *(word for setting in settings for word in ("--set", setting))]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = facts_of(folder / "studies" / "cloud-1")
    promotions = [fact for fact in facts if isinstance(fact, Promotion)]
    assert [p.request for p in promotions] == ["#1"]
    assert any(isinstance(fact, StudyFinished) and (fact.low or 0) > 0 for fact in facts)
    spent = [fact.usage for fact in facts if isinstance(fact, Spent)]
    assert sum(usage.dollars for usage in spent) > 0
    proposers = {fact.proposal.proposer for fact in facts if isinstance(fact, ExperimentAdmitted)}
    assert "claude" in {name.partition(" ")[0] for name in proposers}
    assert "GOOD = True" in hub.git("show", "swarm/best:train.py")
    assert "cloud-1" in hub.git("show", "swarm/best:LEADERBOARD.md")
    secrets = (anthropic_api.KEY.encode(), github_api.TOKEN.encode())
    study = [path for path in (folder / "studies").rglob("*") if path.is_file()]
    leaks = [path for path in study if any(secret in path.read_bytes() for secret in secrets)]
    assert not leaks
