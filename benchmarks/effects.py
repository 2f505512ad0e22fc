"""What each switch of baseline/train.py is worth: paired runs, one edit at a time against the shipped file.

    .venv/bin/python benchmarks/effects.py                  # 3 seeds, about 8 minutes of one core
    .venv/bin/python benchmarks/effects.py --seeds 8 --only BIGRAM,SMEAR

Equal tokens, same seed in both runs of a pair. `change` is the mean paired difference of val_bpb in percent, `sd` the
sd of those differences, `CPU time` the ratio of training CPU seconds. Negative is better. A change below twice
sd / sqrt(seeds) is noise.
"""

import argparse
import os
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
    "HEAD_DIM 16": {"HEAD_DIM": 16},
    "MLP_RATIO 6": {"MLP_RATIO": 6},
    "ROPE_BASE 10000": {"ROPE_BASE": 10000.0},
    "MATRIX_LR 0.02": {"MATRIX_LR": 0.02},
    "MATRIX_LR 0.08": {"MATRIX_LR": 0.08},
    "MOMENTUM 0.95": {"MOMENTUM": 0.95},
    "EMBED_LR 1": {"EMBED_LR": 1.0},
    "HEAD_LR 0.01": {"HEAD_LR": 0.01},
    "SCALAR_LR 0.02": {"SCALAR_LR": 0.02},
}
ADAM = "rest += [(m, {}) for m in (*model.attention.parameters(), *model.mlp.parameters())]"
TEXT_EDITS: dict[str, dict[str, str]] = {  # tricks that have no constant: text, and what takes its place
    "QK-norm off": {"qk = norm(F.linear(x, both).view(shape))": "qk = F.linear(x, both).view(shape)"},
    "x0 mix off": {"+ self.mix_x0[i].to(DTYPE) * x0": "+ 0 * self.mix_x0[i].to(DTYPE) * x0"},
    "zero start off": {"self.out = Linear(WIDTH, WIDTH, std=0.0)": "self.out = Linear(WIDTH, WIDTH)"},
    "unlimited reach": {"(length if ALIBI else SEQ_LEN)": "length"},
    **{
        f"Adam {lr} for Muon": {
            "for matrix in (*model.attention.parameters(), *model.mlp.parameters()):": "for matrix in ():",
            "rest += [(p, SCALAR_LR)": f"{ADAM.format(lr)}\n        rest += [(p, SCALAR_LR)",
        }
        for lr in (0.0025, 0.005, 0.01, 0.02, 0.04)
    },
}


def replaced(source: str, edit: dict[str, str]) -> str:
    """The source with other text; each piece must be there once."""
    for old, new in edit.items():
        if source.count(old) != 1:
            sys.exit(f"{TRAIN.name} has {source.count(old)} places that read {old!r}, not one: correct TEXT_EDITS")
        source = source.replace(old, new)
    return source


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
        neighbours = {**os.environ, "PYTHONPATH": str(TRAIN.parent)}
        done = subprocess.run(
            [sys.executable, str(code), *argv], capture_output=True, text=True, check=False, env=neighbours
        )
    if done.returncode:
        sys.exit(f"a run failed: {done.stderr.strip().splitlines()[-1]}")
    facts = dict(re.findall(r"(?m)^(\w+): +(\S+)$", done.stdout))
    return Run(float(facts["val_bpb"]), float(facts["training_seconds"]))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Paired effect of each switch of baseline/train.py.")
    parser.add_argument("--seeds", type=int, default=3, help="pairs per edit; at least 2")
    parser.add_argument("--budget", default="204.8k", help="tokens of a run")
    parser.add_argument("--only", default="", help="comma-separated names of constants or edits; default: all")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds must be at least 2: one pair has no sd")
    only = set(options.only.split(",")) if options.only else set()
    source = TRAIN.read_text("utf-8")
    chosen = {n: rewrite(source, edit) for n, edit in EDITS.items() if not only or {n, *edit} & only}
    chosen |= {n: replaced(source, edit) for n, edit in TEXT_EDITS.items() if not only or n in only}
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
    for name, code in chosen.items():
        edited = runs(code)
        changes = [100 * (b.bpb / a.bpb - 1) for a, b in zip(shipped, edited, strict=True)]
        cost = sum(one.cpu_s for one in edited) / sum(one.cpu_s for one in shipped)
        print(f"{name:22} {mean(changes):+7.2f}% {stdev(changes):6.2f}% {cost:8.2f}x", flush=True)
    bar.close()


if __name__ == "__main__":
    main()
