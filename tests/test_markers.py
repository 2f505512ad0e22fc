"""Credentials planted wherever words come from, and every place that is kept or shown looked through for them.

Beside each stands a plain word from the same source, and it has to arrive: where it does, the credential would have.
"""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import toy_task as toy
from desk import BASELINE, Desk, edited, proposal
from simulation import MoodyForge, Swarm, World
from test_scrub import SECRETS

from node.trial import run_trial
from swarm.cli.checks import check_credentials
from swarm.config import parse_config
from swarm.errors import ConfigError, ForgeError
from swarm.ledger import Spool
from swarm.records import Fact, Measurement, Promotion, ProposalRefused, Screened, TrialFinished, Trouble

KEY = SECRETS[2]


def planted(word: str) -> str:
    """A plain word, and a credential that has no business where the word goes."""
    return f"{word} {KEY}"


# --- a whole study: what its nodes say, its forge, its owner; its ledger, its pages, its repository, its requests ---


class TalkativeForge(MoodyForge):
    """It says too much when it is away."""

    def _answer(self) -> None:
        if self.away:
            raise ForgeError(planted("awayword"))


def talkative(fact: Fact) -> Fact:
    if isinstance(fact, TrialFinished):
        return replace(fact, log=planted("logword"))
    return replace(fact, reason=planted("whyword")) if isinstance(fact, Screened) else fact


def faults(swarm: Swarm, tick: int) -> None:
    """Every node tells a credential with whatever it says."""
    for node in swarm.sim_nodes:
        words = {"hypothesis": planted("ideaword"), "expected": planted("hopeword"), "proposer": planted("thinkerword")}
        waiting = tuple(replace(p, **words) for p in node.researcher.memory.waiting)  # type: ignore[arg-type]  # words
        node.researcher.memory = replace(node.researcher.memory, waiting=waiting)
        node.spool = {key: talkative(fact) for key, fact in node.spool.items()}
        if tick == 20:
            trouble = Trouble(f"proposer on {node.name}", planted("errorword"), 1.0)
            node.spool[trouble.key] = trouble
    swarm.forge.away = 30 < tick < 400


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Swarm:
    folder = tmp_path_factory.mktemp("study")
    swarm = Swarm(folder, World({"GOOD": 0.3, "BAD": -0.3}), settings={"notes": planted("noteword")}, faults=faults)
    swarm.forge = TalkativeForge(folder / "toy-1" / "repo.git", clock=swarm.world.clock)
    swarm.run()
    assert [fact for fact in swarm.facts() if isinstance(fact, Promotion)]
    return swarm


def objects(repo: Path) -> str:
    """All that git holds, unpacked: code, records, messages, and the requests of the local forge."""
    command = ["git", "--git-dir", str(repo), "cat-file", "--batch-all-objects", "--batch"]
    return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout.decode(errors="replace")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("ledger.sqlite", "ideaword hopeword thinkerword logword whyword errorword awayword noteword"),
        ("LEADERBOARD.md", "ideaword"),
        ("report.md", "ideaword noteword"),
        ("results.tsv", "ideaword"),
        ("repo.git", "ideaword hopeword thinkerword Swarm-Author hypothesis"),
    ],
)
def test_no_place_of_a_study_holds_a_credential_that_came_with_words(study: Swarm, place: str, words: str) -> None:
    path = study.folder / "toy-1" / place
    text = objects(path) if path.is_dir() else path.read_bytes().decode(errors="replace")
    assert not [word for word in words.split() if word not in text]
    assert KEY not in text and KEY[-20:] not in text


def test_no_file_of_a_study_does(study: Swarm) -> None:
    files = [path for path in (study.folder / "toy-1").rglob("*") if path.is_file()]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


# --- what is before that: the node's own disk, a trial, code ---


def test_a_nodes_spool_holds_none(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.sqlite")
    spool.put([Trouble("proposer on n", planted("errorword"), 1.0)])
    spool.close()
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"errorword" in kept and KEY.encode() not in kept


def test_a_trial_is_given_none_and_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_TOKEN", "ANTHROPIC_API_KEY", "ANOTHER"):
        monkeypatch.setenv(name, KEY)
    takes = "import os\n(Path(options['--out']) / 'taken').write_bytes(Path('/proc/self/environ').read_bytes())\n"
    takes += f"print('logword', os.environ, '{KEY}')\n"  # what it has, and what it might have from elsewhere
    workshop = toy.workshop_at(tmp_path, toy.answers_task(tmp_path / "task"))
    run = run_trial(toy.spec_of(toy.HONEST + takes), workshop=workshop, keep=tmp_path / "kept")
    assert isinstance(run.outcome, Measurement), run.outcome
    taken = (tmp_path / "kept" / "taken").read_text()
    assert "SWARM_SEED" in taken and KEY not in taken
    assert "logword" in run.log and KEY not in run.log


def test_code_that_brings_one_is_no_experiment_and_code_that_always_had_it_is() -> None:
    with_it = {"train.py": f"{BASELINE['train.py']}KEY = '{KEY}'\n"}
    desk = Desk()
    desk.calibrate("ant", "bee")
    facts = desk.report(desk.heard("uid-ant", proposals=(proposal(with_it),)))
    (refused,) = (fact for fact in facts if isinstance(fact, ProposalRefused))
    assert "credential" in refused.reason and KEY not in repr(desk.facts)
    desk = Desk(baseline=with_it)
    desk.calibrate("ant", "bee")
    desk.admit("ant", proposal(edited(with_it, A=1), with_it))


def test_a_study_does_not_begin_with_one(tmp_path: Path) -> None:
    plain, telling = (parse_config({"study": "toy", "proposer": {"options": {"key": v}}}, "test") for v in ("x", KEY))
    folder = toy.printed_task(tmp_path / "task")
    check_credentials(plain, folder, "task.toml")
    with pytest.raises(ConfigError, match="the configuration holds") as refused:
        check_credentials(telling, folder, "task.toml")
    assert KEY not in str(refused.value)
    (folder / "helper.py").write_text(f"VALUE = 2.5\nKEY = '{KEY}'\n")
    with pytest.raises(ConfigError, match=r"helper\.py, line 2 holds") as refused:
        check_credentials(plain, folder, "task.toml")
    assert KEY not in str(refused.value)
