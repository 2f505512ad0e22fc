"""Run the laptop study with five seeds and write docs/results.md, also with the runs that fail.

    .venv/bin/python benchmarks/five_runs.py [--seeds 1 2 3 4 5] [--only-write]

Takes about nine minutes a seed on two cores that have nothing else to do. Studies stay in studies/seed-K-1.
"""

import argparse
import platform
import subprocess
import sys
import time
from pathlib import Path

from swarm.cli.studies import facts_of, numbered
from swarm.history import History, history
from swarm.records import CoordinatorStarted, Measurement, StudyFinished, TrialFinished

PAGE = Path("docs/results.md")
ROOT = Path("studies")
HEAD = """# Five runs of the laptop study

`make run` with five study seeds, one after the other, on {machine}.
Written by `benchmarks/five_runs.py`; nothing is left out. The last column is the promise under test: the champion
against the baseline on five fresh seeds at the end of each study, mean gain in val_bpb with its 95 % interval,
validation split.

Verdicts are counted as accepted / rejected / still open at the end.

"""
COLUMNS = (
    *("seed", "minutes", "scored trials", "experiments", "verdicts", "promoted", "nodes busy", "first score after"),
    "champion over baseline",
)


def main() -> None:
    """Parse the command line, run what is missing, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--only-write", action="store_true", help="make the page from studies that exist")
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        if not arguments.only_write:
            run(seed)
    rows = [row(seed, folder) for seed in arguments.seeds for folder in numbered(ROOT, f"seed-{seed}")]
    PAGE.write_text(HEAD.format(machine=machine()) + table(rows) + "\n" + details(arguments.seeds), "utf-8")
    print(f"{PAGE}: {len(rows)} runs")


def run(seed: int) -> None:
    """One whole study by the command that people use."""
    started = time.monotonic()
    swarm = Path(sys.executable).with_name("swarm")
    command = [
        str(swarm),
        "run",
        "configs/laptop.toml",
        "--plain",
        "--set",
        f"seed={seed}",
        "--set",
        f"study=seed-{seed}",
    ]
    log = ROOT / f"seed-{seed}.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("wb") as output:
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    print(f"seed {seed}: exit {code} after {time.monotonic() - started:.0f} s", flush=True)


def table(rows: list[str]) -> str:
    """The rows under their head."""
    head = "| " + " | ".join(COLUMNS) + " |"
    return "\n".join([head, "| " + " | ".join("---" for _ in COLUMNS) + " |", *rows]) + "\n"


def row(seed: int, folder: Path) -> str:
    """One line of the table."""
    facts = facts_of(folder)
    told = history(facts)
    start = next(fact.at for fact in facts if isinstance(fact, CoordinatorStarted))
    first = next((f.ended_at - start for f in facts if isinstance(f, TrialFinished)), float("nan"))
    end = told.finished.at if told.finished else told.last_at
    scored = sum(isinstance(trial.outcome, Measurement) for trial in told.trials.values())
    verdicts = [verdict for experiment in told.experiments for verdict in experiment.verdicts]
    accepted = sum(verdict.accepted for verdict in verdicts)
    waiting = sum(experiment.status == "claimed" for experiment in told.experiments)
    cells = (
        *(seed, f"{(end - start) / 60:.1f}", scored, len(told.experiments)),
        *(f"{accepted} / {len(verdicts) - accepted} / {waiting}", promoted(told), f"{told.busy:.1%}"),
        *(f"{first:.0f} s", final(told.finished)),
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def promoted(told: History) -> str:
    """Short names of the ideas that the champion holds."""
    names = [short(experiment.hypothesis) for p in told.promotions for experiment in told.stacked(p)]
    return ", ".join(dict.fromkeys(names)) or "nothing"


def short(hypothesis: str) -> str:
    """The tuner's own words without the constant's description."""
    return hypothesis.removeprefix("Carry over onto the new champion: ").partition(":")[0]


def final(finished: StudyFinished | None) -> str:
    """The comparison at the end, in words."""
    if finished is None:
        return "**the study did not end**"
    if finished.final_gain is None:
        return "no promotion"
    return f"{finished.final_gain:+.4f} ({finished.low:+.4f} to {finished.high:+.4f})"


def details(seeds: list[int]) -> str:
    """Every promotion with its verdict, as the ledger has it."""
    lines = ["## Promotions", ""]
    for seed in seeds:
        for folder in numbered(ROOT, f"seed-{seed}"):
            told = history(facts_of(folder))
            for promotion in told.promotions:
                verdict = told.verdict_on(promotion)
                change = short(told.by_idea[promotion.experiment].hypothesis)
                lines.append(
                    f"- seed {seed}, promotion {promotion.number}: {change}. {verdict.reason if verdict else ''}"
                )
    return "\n".join(lines) + "\n"


def machine() -> str:
    """The processor and the Python that ran this."""
    model = next(
        (x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), platform.processor()
    )
    return f"two cores of {model.partition(':')[2].strip() or model}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
