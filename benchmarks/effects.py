"""What each switch of baseline/train.py is worth: paired runs, one edit at a time against the shipped file.

    .venv/bin/python benchmarks/effects.py                  # 3 seeds, about 4 minutes of one core
    .venv/bin/python benchmarks/effects.py --seeds 8 --only BIGRAM,SMEAR

Equal tokens, same seed in both runs of a pair. `change` is the mean paired difference of val_bpb in percent, `sd` the
sd of those differences, `CPU time` the ratio of training CPU seconds. Negative is better. A change below twice
sd / sqrt(seeds) is noise.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from tqdm import tqdm

from swarm.constants import Value, rewrite

TRAIN = Path(__file__).parents[1] / "baseline" / "train.py"
EDITS: dict[str, dict[str, Value]] = {
    "BIGRAM on": {"BIGRAM": True},
    "SMEAR on": {"SMEAR": True},
    "ALIBI on": {"ALIBI": True},
    "all three on": {"BIGRAM": True, "SMEAR": True, "ALIBI": True},
    "VALUE_EMBEDDING off": {"VALUE_EMBEDDING": False},
    "SOFTCAP off": {"SOFTCAP": 0.0},
    "ACTIVATION gelu": {"ACTIVATION": "gelu"},
    "WARMDOWN 0.8": {"WARMDOWN": 0.8},
    "DEPTH 3": {"DEPTH": 3},
    "WIDTH 96": {"WIDTH": 96},
    "BATCH 4": {"BATCH": 4},
    "BATCH 16": {"BATCH": 16},
    "SEQ_LEN 256": {"SEQ_LEN": 256},
}


class Run(NamedTuple):
    """Of one training run."""

    bpb: float
    cpu_s: float


def run(source: str, seed: int, budget: str) -> Run:
    """Train `source` by hand, as a user does, and read its summary block."""
    with tempfile.TemporaryDirectory() as place:
        code = Path(place) / "train.py"
        code.write_text(source)
        data = TRAIN.parent / ".cache" / "data" / "train"
        argv = ["--data", str(data), "--out", f"{place}/out", "--seed", str(seed), "--budget", budget]
        done = subprocess.run([sys.executable, str(code), *argv], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"a run failed: {done.stderr.strip().splitlines()[-1]}")
    facts = dict(re.findall(r"(?m)^(\w+): +(\S+)$", done.stdout))
    return Run(float(facts["val_bpb"]), float(facts["training_seconds"]))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Paired effect of each switch of baseline/train.py.")
    parser.add_argument("--seeds", type=int, default=3, help="pairs per edit; at least 2")
    parser.add_argument("--budget", default="204.8k", help="tokens of a run")
    parser.add_argument("--only", default="", help="comma-separated names of constants; default: all edits")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds must be at least 2: one pair has no sd")
    chosen = {
        name: edit for name, edit in EDITS.items() if not options.only or set(edit) & set(options.only.split(","))
    }
    source = TRAIN.read_text("utf-8")
    if not (TRAIN.parent / ".cache" / "data" / "manifest.json").is_file():
        subprocess.run(
            [sys.executable, str(TRAIN.parent / "prepare.py"), "--out", str(TRAIN.parent / ".cache/data")], check=True
        )
    bar = tqdm(total=(1 + len(chosen)) * options.seeds, unit="run", file=sys.stderr)

    def runs(code: str) -> list[Run]:
        found = []
        for seed in range(options.seeds):
            found.append(run(code, seed, options.budget))
            bar.update()
        return found

    shipped = runs(source)
    bpb = [one.bpb for one in shipped]
    print(f"shipped: val_bpb {mean(bpb):.4f}, sd {100 * stdev(bpb) / mean(bpb):.2f} % over {options.seeds} seeds")
    print(f"{'edit':22} {'change':>8} {'sd':>7} {'CPU time':>9}")
    for name, edit in chosen.items():
        edited = runs(rewrite(source, edit))
        changes = [100 * (b.bpb / a.bpb - 1) for a, b in zip(shipped, edited, strict=True)]
        cost = sum(one.cpu_s for one in edited) / sum(one.cpu_s for one in shipped)
        print(f"{name:22} {mean(changes):+7.2f}% {stdev(changes):6.2f}% {cost:8.2f}x", flush=True)
    bar.close()


if __name__ == "__main__":
    main()
