"""A folder in the style of autoresearch, from `swarm init` to the finished study, on real Ray."""

import shutil
import subprocess
from pathlib import Path

import pytest
from commands import swarm, swarm_process

from swarm.cluster import processes
from swarm.history import history
from swarm.ledger import Ledger
from swarm.records import Measurement

TRAIN = '''"""Autoresearch pretraining script. Usage: python train.py"""

import math
import os
import random

from prepare import NOISE

LEARNING_RATE = 0.02  # range: 0.001..0.5 log
SMEAR = False  # mix each embedding with the one before

noise = random.Random(int(os.environ.get("SWARM_SEED", "0"))).gauss(0, NOISE)
val_bpb = 1.0 + 0.02 * math.log(LEARNING_RATE / 0.06) ** 2 - 0.1 * SMEAR + noise
print("step 00953 (100.0%) | loss: 2.995")
print("---")
print(f"val_bpb:          {val_bpb:.6f}")
print("training_seconds: 300.1")
print("peak_vram_mb:     45060.2")
'''
PREPARE = '"""Read-only: data, tokenizer, evaluation."""\n\nNOISE = 0.002\n'
SETTINGS = ("stop.trials=16", "decision.calibration_pairs=2", "decision.final_seeds=2", "stop.wall_minutes=3")


@pytest.mark.ray
@pytest.mark.slow
def test_an_autoresearch_folder_runs_unchanged_and_its_scores_are_marked_self_reported(tmp_path: Path) -> None:
    folder = tmp_path / "nano"
    folder.mkdir()
    (folder / "train.py").write_text(TRAIN)
    (folder / "prepare.py").write_text(PREPARE)
    (folder / "prepare.py").chmod(0o444)
    assert swarm(tmp_path, "init", "nano", "--seconds", "5").code == 0
    settings = [part for setting in ("task=nano", "study=nano", *SETTINGS) for part in ("--set", setting)]
    ran = swarm_process(tmp_path, "run", *settings, timeout_s=120)
    study = tmp_path / "studies" / "nano-1"
    assert ran.code == 0, ran
    assert "study finished: 16 trials" in ran.out and "Traceback" not in ran.err
    assert not [pid for place in (study, *study.glob("nodes/*")) for pid in processes.marked(place)], "all has ended"

    with Ledger(study / "ledger.sqlite", read_only=True) as ledger:
        told = history(ledger.facts())
    scored = [trial for trial in told.trials.values() if isinstance(trial.outcome, Measurement)]
    assert told.finished is not None and len(scored) == len(told.trials) >= 16
    assert all(isinstance(trial.outcome, Measurement) and trial.outcome.self_reported for trial in scored)

    rows = [line.split("\t") for line in (study / "results.tsv").read_text().splitlines()]
    assert rows[0][:5] == ["commit", "val_bpb", "memory_gb", "status", "description"]
    marks = [row[rows[0].index("self_reported")] for row in rows[1:]]
    assert len(marks) > 1 and set(marks) == {"yes"}
    assert {row[3] for row in rows[1:]} <= {"keep", "discard", "crash"}
    for page in ("LEADERBOARD.md", "report.md"):
        assert "self-reported" in (study / page).read_text().lower(), page
    for command in ("status", "leaderboard", "log"):
        assert "self-reported" in swarm(tmp_path, command).out, command
    if told.promotions:
        assert "self-reported" in ran.out.partition("champion against baseline")[2]

    assert (folder / "train.py").read_text() == TRAIN and (folder / "prepare.py").read_text() == PREPARE
    assert (folder / "prepare.py").stat().st_mode & 0o777 == 0o444
    assert swarm(tmp_path, "pull", "champion").code == 0
    printed = subprocess.run(
        [shutil.which("python3") or "python3", "train.py"], cwd=tmp_path / "champion", capture_output=True, text=True
    )
    assert "val_bpb: " in printed.stdout, "what was pulled runs as it stands"
