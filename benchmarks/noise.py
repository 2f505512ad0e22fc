"""How much two runs of the shipped train.py differ by seed alone, and how much pairing by seed removes.

    .venv/bin/python benchmarks/noise.py                # about 3 CPU-minutes; --seeds 2 to see whether it runs

Runs the script and one small edit of it (a matrix step size 10 % larger) with the same seeds, at the task's own budget.
Beside it stands what another trainer of this size showed on such text (205 k tokens, 8 seeds, 23 edits): an order of
magnitude to agree with. And one seed, run twice, must leave the same bytes: else a reproduction could prove nothing.
"""

import argparse
import subprocess
import sys
import tempfile
import tomllib
from hashlib import sha256
from pathlib import Path
from statistics import correlation, fmean, stdev
from typing import Any, NamedTuple

import torch
from opponents.measuring import BASELINE, execute, prepare, script, val_bpb

EDIT = {"MATRIX_LR": 0.044}  # 10 % above the shipped 0.04


class Run(NamedTuple):
    """What one training left."""

    val_bpb: float
    sha256: str


def run(train: Path, seed: int, data: Path, task: dict[str, Any]) -> Run:
    """Train in a process of its own, hash the model file, score it."""
    with tempfile.TemporaryDirectory() as out:
        words = (*("--data", data / "train"), *("--out", out), *("--seed", seed), *("--budget", task["tokens"]))
        subprocess.run([sys.executable, train, *map(str, words)], check=True, stdout=subprocess.DEVNULL)
        digest = sha256((Path(out) / "model.pt").read_bytes()).hexdigest()
        score = val_bpb(execute(train).load(out), data, task["window"])
    print(f"{train.name}, seed {seed}: {score:.4f} {digest[:12]}", file=sys.stderr, flush=True)
    return Run(score, digest)


def report(base: list[float], edited: list[float], same: bool, tokens: int) -> str:
    """The four numbers."""
    mean = fmean(base)
    differences = [b - a for a, b in zip(base, edited, strict=True)]
    lines = (
        f"{len(base)} seeds of {tokens} tokens",
        f"val_bpb, shipped:             {mean:.4f}  ({' '.join(f'{score:.4f}' for score in base)})",
        f"sd of a run:                  {beside(stdev(base) / mean, 0.006, 0.006, len(base))}",
        f"edit {EDIT}:     {fmean(differences) / mean:+.2%}",
        f"sd of a paired difference:    {beside(stdev(differences) / mean, 0.0015, 0.0035, len(base))}",
        f"correlation between pairs:    {correlation(base, edited):.2f}  (elsewhere: 0.71)",
        f"one seed twice, model files:  {'bit-identical' if same else 'DIFFERENT'}",
    )
    return "\n".join(lines)


def beside(ours: float, low: float, high: float, seeds: int) -> str:
    """Our sd beside that of others: within a factor of three it is the same order of magnitude; of few seeds, luck."""
    elsewhere = f"{low:.2%}" if low == high else f"{low:.2%} to {high:.2%}"
    verdict = "agrees" if low / 3 <= ours <= 3 * high else "DIFFERS"
    return f"{ours:.2%}  (elsewhere: {elsewhere}; {verdict if seeds >= 5 else 'too few seeds to compare'})"


def main() -> int:
    """0 when one seed gave the same bytes twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8, help="at least 2")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = tomllib.loads((BASELINE / "task.toml").read_text("utf-8"))["budget"]
    with tempfile.TemporaryDirectory() as folder:
        data = prepare(Path(folder) / "data")
        shipped, edited = script({}, Path(folder) / "shipped.py"), script(EDIT, Path(folder) / "edited.py")
        pairs = [[run(train, seed, data, task) for train in (shipped, edited)] for seed in range(arguments.seeds)]
        same = run(shipped, 0, data, task).sha256 == pairs[0][0].sha256
    base, other = ([pair[i].val_bpb for pair in pairs] for i in (0, 1))
    print(report(base, other, same, task["tokens"]))
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
