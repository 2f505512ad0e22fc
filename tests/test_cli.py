"""Every command of `swarm`, given as a person gives it, on the ledger of a simulated study.

The study's train.py is a real script. What its switches gain stands beside it in truth.py, so that `swarm reproduce`,
which runs it, finds that a result holds, or that it does not where another truth holds.
"""

import json
import shutil
import signal
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from commands import Said, start, swarm
from factories import finished_study, small_study
from simulation import Swarm, World

from node.hardware import gpu_name
from swarm.cli import COMMANDS
from swarm.codec import fact_from_json
from swarm.config import load_config
from swarm.history import Experiment, History, history
from swarm.ledger import Ledger
from swarm.records import ExperimentAdmitted, Fact, Screened, Trouble
from swarm.task import load_task

REAL = """
import os, random
from truth import GAINS
noise = random.Random(os.environ["SWARM_SEED"]).gauss(0, 0.01)
print("val_bpb:", 2.0 - sum(gain for name, gain in GAINS.items() if globals()[name]) + noise)
"""
GAINS = {"GOOD": 0.09, "SMALL": 0.03, "NULL_0": 0.0, "NULL_1": 0.0, "BAD": -0.03, "CRASH": 0.0}


class RealWorld(World):
    """A world whose baseline can be run."""

    def source(self) -> str:
        return "".join(f"{name} = False\n" for name in self.effects) + REAL


@dataclass(frozen=True)
class Place:
    """A working directory with one finished study in it, and what its ledger tells."""

    folder: Path
    told: History
    facts: tuple[Fact, ...]

    def swarm(self, *arguments: str, columns: int = 80) -> Said:
        return swarm(self.folder, *arguments, columns=columns)

    def one(self, status: str) -> Experiment:
        """The first experiment that was tried and ended so."""
        return next(e for e in self.told.experiments if e.status == status and e.trial)

    @property
    def champion(self) -> Experiment:
        return self.told.by_idea[self.told.promotions[-1].experiment]

    @property
    def gain(self) -> float:
        """What the champion truly gained over its base."""
        promotion = self.told.promotions[-1]
        base, champion = (self.told.files[c]["train.py"] for c in (promotion.base, promotion.candidate))
        return sum(GAINS[name] * ((f"{name} = True" in champion) - (f"{name} = True" in base)) for name in GAINS)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("work")
    settings = {"task": "studies/task", "stop": {"wall_minutes": 6, "final_minutes": 1.5}}
    simulated = Swarm(folder / "studies", RealWorld(GAINS, crash=frozenset({"CRASH"})), settings=settings)
    (simulated.task_folder / "truth.py").write_text(f"GAINS = {GAINS}\n")
    simulated.run()
    facts = simulated.facts()
    told = history(facts)
    assert {"promoted", "failed", "dropped"} <= {e.status for e in told.experiments}
    return Place(folder, told, facts)


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Path]:
    """A working directory with a study that the test may write to."""
    with Ledger(tmp_path / "studies" / "mine-1" / "ledger.sqlite") as ledger:
        ledger.append(finished_study(self_reported=True).facts[:-1], 1.0)
    yield tmp_path


def fits(text: str, columns: int) -> bool:
    return all(len(line.rstrip()) <= columns for line in text.splitlines())


# --- help ------------------------------------------------------------------------------------------------


def test_help_lists_every_command_with_a_whole_sentence_at_80_columns(tmp_path: Path) -> None:
    said = swarm(tmp_path, "--help")
    assert said.code == 0
    lines = {line.split()[0]: line for line in said.out.partition("Commands:")[2].splitlines() if line.strip()}
    assert list(lines) == [command.name for command in COMMANDS]
    assert all(line.endswith(".") and not line.endswith("...") for line in lines.values())


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command.name))
def test_every_command_and_every_option_has_help(tmp_path: Path, command: click.Command) -> None:
    said = swarm(tmp_path, str(command.name), "--help")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"Usage: swarm {command.name}")
    assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_version(tmp_path: Path) -> None:
    said = swarm(tmp_path, "--version")
    assert said.code == 0 and said.out.startswith("swarm, version ")


@pytest.mark.parametrize("arguments", [("bogus",), ("status", "--bogus"), ("show",), ("log", "-n", "some")])
def test_a_wrong_call_is_refused_with_the_usage(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert "--help" in swarm(tmp_path, *arguments).sentence


def test_reading_without_any_study_says_how_to_begin(tmp_path: Path) -> None:
    for command in (["status"], ["log"], ["show", "1"], ["leaderboard"], ["pull"], ["reproduce", "1"], ["export"]):
        assert "start one with `swarm run`" in swarm(tmp_path, *command).sentence


def test_a_study_that_is_not_there_is_named_beside_those_that_are(place: Place) -> None:
    assert "studies in studies/: toy-1" in place.swarm("status", "--study", "nope").sentence


# --- status and log --------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 140])
def test_status_answers_in_words(place: Place, columns: int) -> None:
    said = place.swarm("status", columns=columns)
    assert said.code == 0 and fits(said.out, columns)
    words = " ".join(said.out.split())
    assert "finished after" in words and "wall time of 6 minutes" in words
    assert f"experiment {place.told.by_idea[place.told.promotions[-1].experiment].number}" in words
    assert f"{len(place.told.trials)} finished" in words
    assert f"{len(place.told.refused)} proposals refused" in words
    assert "n0 (simulated)" in words and f"busy {place.told.busy:.1%}" in words


def test_status_for_programs(place: Place) -> None:
    shown = json.loads(place.swarm("status", "--json").out)
    assert shown["study"] == "toy-1" and shown["metric"] == "val_bpb"
    assert shown["trials"] == len(place.told.trials)
    assert sum(shown["experiments"].values()) == len(place.told.experiments)
    assert shown["final_gain"] == place.told.finished.final_gain if place.told.finished else False
    assert shown["self_reported"] is False


def test_the_study_may_be_named_by_its_folder_or_its_name(place: Place) -> None:
    by_name = place.swarm("status", "--study", "toy-1")
    assert by_name == place.swarm("status", "--study", "studies/toy-1")
    assert by_name == swarm(place.folder / "studies" / "task", "status", "--study", str(place.folder / "studies/toy-1"))


def test_a_study_whose_coordinator_ended_before_its_first_fact_can_be_looked_at(tmp_path: Path) -> None:
    folder = tmp_path / "studies" / "new-1"
    Ledger(folder / "ledger.sqlite").close()
    assert "not begun" in swarm(tmp_path, "status").out
    (folder / "ledger.sqlite").write_bytes(b"")  # killed before its tables were made
    for command in ("status", "log", "leaderboard"):
        assert swarm(tmp_path, command).code == 0
    assert "has not begun" in swarm(tmp_path, "pull").sentence
    assert "has not begun" in swarm(tmp_path, "reproduce", "1").sentence


def test_log_tells_the_newest_facts_with_their_time(place: Place) -> None:
    said = place.swarm("log", "-n", "5")
    lines = said.out.splitlines()
    assert said.code == 0 and len(lines) == 5
    assert "study finished: wall time of 6 minutes" in lines[-1]
    assert all(line[2] == line[5] == ":" for line in lines)
    everything = place.swarm("log", "-n", "0").out.splitlines()
    assert len(everything) > 100 and everything[-5:] == lines


def test_log_for_programs_holds_the_facts_themselves(place: Place) -> None:
    lines = place.swarm("log", "--json", "-n", "0").out.splitlines()
    assert tuple(map(fact_from_json, lines)) == place.facts


def test_log_of_what_was_rejected_says_why(place: Place) -> None:
    lines = place.swarm("log", "--rejected", "-n", "0").out.splitlines()
    dropped = place.one("dropped")
    assert any(f"dropped experiment {dropped.number} ({dropped.hypothesis[:40]}" in line for line in lines)
    assert not any(f"experiment {place.champion.number} (" in line for line in lines)
    facts = [fact_from_json(line) for line in place.swarm("log", "--rejected", "--json", "-n", "0").out.splitlines()]
    assert len(facts) == len(lines)
    assert not any(isinstance(fact, ExperimentAdmitted) or (isinstance(fact, Screened) and fact.kept) for fact in facts)


def test_log_of_more_than_one_day_tells_the_day(written: Path) -> None:
    with Ledger(written / "studies" / "mine-1" / "ledger.sqlite") as ledger:
        ledger.append([Trouble("forge", "away", 5.0)], 1.0 + 3 * 86400)
    assert swarm(written, "log", "-n", "1").out.startswith("1970-01-0")


def test_log_follows_until_it_is_interrupted(written: Path) -> None:
    with (
        Ledger(written / "studies" / "mine-1" / "ledger.sqlite") as ledger,
        start(written, "log", "--follow", "--rejected", "-n", "1") as process,
    ):
        assert process.stdout and "rejected experiment 5" in process.stdout.readline()
        scribe = small_study()
        idea = scribe.admit("A new idea", "NEW = 1")
        scribe.screen(idea, -0.5)
        ledger.append([Trouble("forge", "not rejected", 8.0), *scribe.facts[-3:]], 2.0)
        assert "dropped experiment 8 (A new idea)" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr and "Traceback" not in process.stderr.read()


def test_output_that_nobody_reads_to_the_end_is_no_error(place: Place) -> None:
    with start(place.folder, "log", "--json", "-n", "0") as process:
        assert process.stdout and process.stdout.readline()
        process.stdout.close()
        process.wait(10)
        assert process.stderr and "Traceback" not in process.stderr.read()


# --- show ------------------------------------------------------------------------------------------------


def test_show_a_promoted_experiment_with_its_diff_trials_and_evidence(place: Place) -> None:
    experiment = place.champion
    said = place.swarm("show", str(experiment.number))
    assert said.code == 0 and fits(said.out, 80)
    switch = experiment.hypothesis.split()[1]
    assert f"experiment {experiment.number}: Switch {switch} on" in said.out
    assert f"-{switch} = False\n" in said.out and f"+{switch} = True\n" in said.out
    trials = [t for t in place.told.trials.values() if t.experiment == experiment.idea]
    assert len(trials) > 1 and all(trial.trial[:8] in said.out for trial in trials)
    verdict = experiment.verdict
    assert verdict is not None and verdict.accepted
    seeds = [str(pair.candidate.seed) for pair in place.told.pairs(verdict) if pair.candidate]
    evidence = said.out.partition(": accepted")[2]
    assert len(seeds) == verdict.pairs and all(seed in evidence for seed in seeds)


def test_a_diff_is_never_wrapped_so_that_it_stays_one(place: Place) -> None:
    switch = place.champion.hypothesis.split()[1]
    assert f"+{switch} = True\n" in place.swarm("show", str(place.champion.number), columns=8).out


@pytest.mark.parametrize("identity", ["idea", "candidate", "upper"])
def test_show_finds_an_experiment_by_the_beginning_of_a_hash(place: Place, identity: str) -> None:
    experiment = place.champion
    name = {"idea": experiment.idea, "candidate": experiment.candidate, "upper": experiment.idea.upper()}[identity]
    for length in (12, len(name)):
        assert f"experiment {experiment.number}:" in place.swarm("show", name[:length]).out


def test_show_says_why_an_experiment_failed(place: Place) -> None:
    experiment = place.one("failed")
    said = place.swarm("show", str(experiment.number))
    assert "failed: crash: RuntimeError: no" in said.out
    assert "  | log" in said.out, "the last lines of what died"


def test_show_for_programs(place: Place) -> None:
    experiment = place.champion
    shown = json.loads(place.swarm("show", str(experiment.number), "--json").out)
    assert (shown["number"], shown["idea"], shown["status"]) == (experiment.number, experiment.idea, "promoted")
    assert f"+{experiment.hypothesis.split()[1]} = True" in shown["diff"]
    assert [v["accepted"] for v in shown["verdicts"]] == [v.accepted for v in experiment.verdicts]


def test_show_refuses_what_it_does_not_know_or_cannot_tell_apart(place: Place) -> None:
    assert "no experiment '9999'" in place.swarm("show", "9999").sentence
    assert "no experiment 'zebra'" in place.swarm("show", "zebra").sentence
    assert "no experiment ''" in place.swarm("show", "").sentence
    letters = [e.idea[0] for e in place.told.experiments] + [e.candidate[0] for e in place.told.experiments]
    shared = next(letter for letter in "abcdef" if letters.count(letter) > 1)
    assert "give more of it" in place.swarm("show", shared).sentence


def test_what_strangers_wrote_cannot_move_the_cursor_or_break_a_table(written: Path) -> None:
    with Ledger(written / "studies" / "mine-1" / "ledger.sqlite") as ledger:
        told = history(ledger.facts())
        first = told.experiments[0].admitted
        evil = "\x1b[2J[/bold][red]\rforged\u202e"
        proposal = first.proposal.__class__(
            "e" * 32, first.proposal.parent, evil, "", {"train.py": f"x = '{evil}'\n"}, evil
        )
        ledger.append([ExperimentAdmitted(proposal, "f" * 32, evil, evil, 3.0)], 3.0)
        ledger.append(
            [Screened("e" * 32, evil, evil, "f" * 32, "t", False, None, None, "", f"failed: {evil}", 4.0)], 4.0
        )
    for command in (["show", "e" * 32], ["status"], ["log"], ["leaderboard"]):
        said = swarm(written, *command)
        assert said.code == 0
        assert not {"\x1b", "\r", "\u202e"} & set(said.out)
    assert "[/bold][red] forged" in swarm(written, "show", "e" * 32).out


# --- leaderboard, export, pull ---------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 140])
def test_leaderboard_shows_the_line_of_champions_and_what_did_not_hold(written: Path, columns: int) -> None:
    said = swarm(written, "leaderboard", columns=columns)
    assert said.code == 0 and fits(said.out, columns)
    champions, _, refuted = said.out.partition("claims that did not reproduce")
    assert "Switch SMEAR on" in champions and "+0.0221 [+0.0150, +0.0370]" in champions
    assert "Raise LR to 0.02" in refuted and "-0.0015 [-0.0110, +0.0080]" in refuted
    assert "Twice the DEPTH" not in said.out, "what failed at screening claimed nothing"


def test_leaderboard_for_programs(place: Place) -> None:
    rows = json.loads(place.swarm("leaderboard", "--json").out)
    assert [row["commit"] for row in rows] == [p.commit for p in place.told.promotions]
    assert all(row["interval"][0] <= row["interval"][1] and row["pairs"] > 0 for row in rows)


def test_self_reported_scores_are_marked_wherever_they_are_shown(written: Path) -> None:
    for command in ("status", "leaderboard"):
        assert "self-reported" in swarm(written, command).out
    assert json.loads(swarm(written, "status", "--json").out)["self_reported"] is True


def test_export_writes_what_can_be_read_elsewhere(place: Place, tmp_path: Path) -> None:
    said = place.swarm("export", str(tmp_path / "out"))
    assert said.code == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"facts.jsonl", "LEADERBOARD.md", "results.tsv", "report.md", "progress.png"}
    lines = (tmp_path / "out" / "facts.jsonl").read_text().splitlines()
    assert tuple(map(fact_from_json, lines)) == place.facts
    assert (tmp_path / "out" / "progress.png").read_bytes().startswith(b"\x89PNG")
    assert place.swarm("export", str(tmp_path / "out")).code == 0, "again: the files are replaced"


def test_pull_fetches_the_champion_and_overwrites_nothing(place: Place, tmp_path: Path) -> None:
    said = place.swarm("pull", str(tmp_path / "mine"))
    assert said.code == 0 and "the champion of toy-1" in said.out
    assert (tmp_path / "mine" / "train.py").read_text() == place.told.files[place.told.champion]["train.py"]
    (tmp_path / "mine" / "train.py").write_text("my own work")
    assert "is not empty" in place.swarm("pull", str(tmp_path / "mine")).sentence
    assert (tmp_path / "mine" / "train.py").read_text() == "my own work"


@pytest.mark.parametrize("command", ["pull", "export"])
def test_a_file_in_the_place_of_the_folder_is_refused(place: Place, tmp_path: Path, command: str) -> None:
    (tmp_path / "file").write_text("mine")
    assert str(tmp_path / "file") in place.swarm(command, str(tmp_path / "file")).sentence
    assert (tmp_path / "file").read_text() == "mine"


# --- reproduce: real trials ------------------------------------------------------------------------------


def test_a_result_that_holds_is_reproduced_by_real_trials(place: Place) -> None:
    said = place.swarm("reproduce", str(place.champion.number), "--seeds", "2", columns=140)
    assert said.code == 0, said
    assert said.out.count(f"gain +{place.gain:.4f}") == 2, "each seed runs the base and the candidate"
    assert f"it holds: val_bpb better by {place.gain:.4f}" in said.out and "self-reported" in said.out
    there = next(iter(place.told.platforms.values()))
    assert f"the study ran on {there.device}" in said.out and "gains compare with its own, scores do not" in said.out


def test_a_result_that_does_not_hold_is_said_so_with_exit_code_1(place: Place, tmp_path: Path) -> None:
    task = shutil.copytree(place.folder / "studies" / "task", tmp_path / "task")
    (task / "truth.py").write_text(f"GAINS = { {name: -gain for name, gain in GAINS.items()} }\n")
    arguments = ("reproduce", str(place.champion.number), "--seeds", "2", "--task", str(task))
    said = place.swarm(*arguments, "--json")
    shown = json.loads(said.out)
    assert said.code == 1 and shown["holds"] is False
    assert shown["gains"] == pytest.approx([-place.gain, -place.gain])
    assert "seed" in said.err, "progress goes to people, the result to programs"
    (task / "truth.py").write_text("GAINS = {}\n")
    said = place.swarm(*arguments)
    assert said.code == 1 and "not shown with 2 seeds" in said.out and "--seeds" in said.out


def test_reproduce_refuses_what_was_not_promoted_and_a_task_that_is_not_there(place: Place) -> None:
    number = str(place.one("dropped").number)
    assert "was not promoted (dropped); promoted: " in place.swarm("reproduce", number).sentence
    number = str(place.champion.number)
    assert "name it with --task" in place.swarm("reproduce", number, "--task", "nowhere").sentence
    assert "2<=x<=100" in place.swarm("reproduce", number, "--seeds", "1").sentence


def test_a_trial_that_fails_here_is_no_verdict(place: Place, tmp_path: Path) -> None:
    task = shutil.copytree(place.folder / "studies" / "task", tmp_path / "task")
    (task / "truth.py").unlink()
    number = str(place.champion.number)
    said = place.swarm("reproduce", number, "--task", str(task))
    assert said.code == 2 and "the trial failed here: crash" in said.err
    assert "  | ModuleNotFoundError: No module named 'truth'" in said.err, "the last lines of what died"


# --- init ------------------------------------------------------------------------------------------------


def test_init_of_an_autoresearch_folder_leaves_what_is_there_and_writes_what_it_takes_to_run(tmp_path: Path) -> None:
    folder = tmp_path / "My nano GPT"
    folder.mkdir()
    before = {"train.py": "print('val_bpb: 1.0')\n", "prepare.py": "BUDGET = 300\n", "program.md": "# Mine\n"}
    for name, text in before.items():
        (folder / name).write_text(text)
    said = swarm(tmp_path, "init", folder.name)
    assert said.code == 0
    assert {name: (folder / name).read_text() for name in before} == before
    task = load_task(folder)
    assert (task.metric, task.direction, task.score, task.editable) == ("val_bpb", "minimize", "printed", ("train.py",))
    assert set(task.frozen) == {"prepare.py"}
    assert said.out.splitlines()[-1] == "swarm run 'My nano GPT/study.toml'"
    config = load_config(folder / "study.toml")
    assert (config.study, config.task) == ("my-nano-gpt", folder.name)
    assert config.nodes.trial_wall_s >= 2 * task.seconds == 600, "a trial that trains as long as it may is not killed"
    assert config.nodes.local == (1 if gpu_name() else 2)
    trainings = 60 * (config.stop.wall_minutes - config.stop.final_minutes) / task.seconds * config.nodes.local
    assert trainings > 4 * config.decision.calibration_pairs


def test_init_of_an_empty_folder_writes_an_example_that_runs(tmp_path: Path) -> None:
    said = swarm(tmp_path, "init", "mine", "--metric", "accuracy", "--maximize")
    assert said.code == 0 and "a small example" in said.out
    task = load_task(tmp_path / "mine")
    assert (task.metric, task.direction) == ("accuracy", "maximize")
    output: list[str] = []
    source = (tmp_path / "mine" / "train.py").read_text()
    exec(compile(source, "train.py", "exec"), {"print": output.append, "__name__": "__main__"})
    assert output[0].startswith("accuracy: -"), "higher is better"
    assert tomllib.loads((tmp_path / "mine" / "study.toml").read_text())["study"] == "mine"


def test_init_of_a_task_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    swarm(tmp_path, "init", "mine")
    before = {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()}
    assert "task.toml exists already" in swarm(tmp_path, "init", "mine").sentence
    assert {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()} == before
    (tmp_path / "mine" / "train.py").unlink()
    assert "has no train.py" in swarm(tmp_path, "init", "mine").sentence
    assert not (tmp_path / "mine" / "train.py").exists()


@pytest.mark.parametrize(
    "arguments", [("--metric", "a b"), ("--metric", "x'{y}"), ("--seconds", "0"), ("--seconds", "nan")]
)
def test_init_refuses_values_that_no_task_can_have(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert arguments[0] in swarm(tmp_path, "init", "mine", *arguments).sentence
    assert not (tmp_path / "mine").exists()


def test_init_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "is a file" in swarm(tmp_path, "init", "file").sentence


# --- doctor and leave ------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 140])
def test_doctor_says_what_is_there_and_how_to_mend_what_is_not(tmp_path: Path, columns: int) -> None:
    said = swarm(tmp_path, "doctor", columns=columns)
    assert said.code == 0 and fits(said.out, columns)
    checks = json.loads(swarm(tmp_path, "doctor", "--json").out)
    assert {"python", "git", "torch", "ray", "disk", "memory", "cores", "gpu"} <= {check["name"] for check in checks}
    assert all(check["ok"] or check["fix"] for check in checks)
    assert all(check["name"] in said.out for check in checks)


def test_doctor_never_prints_a_secret(tmp_path: Path) -> None:
    for output in ("--json", ""):
        said = swarm(tmp_path, *filter(None, ["doctor", output]), env={"ANTHROPIC_API_KEY": "sk-very-secret"})
        assert "very-secret" not in said.out


def test_leave_with_nothing_running_says_so(tmp_path: Path, place: Place) -> None:
    assert swarm(tmp_path, "leave", "--home", "nowhere") == Said(0, "nothing was running\n", "")
    assert not (tmp_path / "nowhere").exists()
    assert place.swarm("leave", "--study", "toy-1") == Said(0, "nothing was running\n", "")
    assert "no study at" in place.swarm("leave", "--study", "nope").sentence
