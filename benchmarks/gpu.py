"""What the GPU tier of baseline/train.py does on this machine's GPU: speed, score, and what each switch is worth.

    benchmarks/gpu.sh                      # 3 runs of 60 s, 3 of 300 s, 3 pairs for each switch: about an hour
    benchmarks/gpu.sh --tier tiny --short 2 --full 4 --seeds 2      # the same steps on a CPU; its numbers mean nothing

The text is a prepared folder, `--data`, which may be copied from another machine: the tokens travel with it. By default
it is made here, before a GPU is looked for, of the Python sources that are installed beside this Python: real text that
needs no download. There is little of it, so a full run passes over it many times; for a score that compares with
others', prepare climbmix (its command is in baseline/task-gpu.toml) and name it.

Of each pair both runs have the same seed, text, order and seconds. `change` is the mean paired difference of val_bpb in
percent that the edit makes, negative is better; below twice sd / sqrt(seeds) it is noise. Every run is a line of --log.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, stdev

import torch

ROOT = Path(__file__).parents[1]
TRAIN = ROOT / "baseline" / "train.py"
CACHE = ROOT / "baseline" / ".cache"
TOKENS_PER_S = 5_000_000  # more than any one GPU reads: a run by hand ends with its seconds, not with its tokens
EDITS: dict[str, dict[str, bool | float]] = {
    "bigram off": {"GPU_BIGRAM": False},
    "smear off": {"GPU_SMEAR": False},
    "value embedding off": {"VALUE_EMBEDDING": False},
    "softcap off": {"SOFTCAP": 0.0},
    "windows off": {"GPU_WINDOW": 0},
    "documents joined": {"GPU_DOCUMENTS": False},
    "batch ramp off": {"GPU_BATCH_RAMP": False},
    "tail average off": {"GPU_TAIL_EMA": 0.0},
    "floor of step sizes off": {"GPU_LR_FLOOR": 0.0},
    "not compiled": {"GPU_COMPILE": False},
}
Run = dict[str, float]


def text_of_this_machine(data: Path) -> None:
    """Prepare the Python sources that are installed here, with 8192 tokens where that many can be learnt."""
    vocabulary = ["--vocab", "8192"] if find_spec("tokenizers") else []
    with tempfile.TemporaryDirectory() as place:
        for root in {Path(sysconfig.get_path(name)) for name in ("purelib", "stdlib")}:
            for path in sorted(root.rglob("*.py")):
                if root.name == "site-packages" or "site-packages" not in path.relative_to(root).parts:
                    copy = Path(place) / path.relative_to(root)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, copy)
        argv = [sys.executable, str(ROOT / "baseline" / "prepare.py"), "--out", str(data), "--source", f"text:{place}"]
        if subprocess.run([*argv, *vocabulary], check=False).returncode:
            sys.exit("the text could not be prepared: name a prepared folder with --data")


def edited(source: str, edit: dict[str, bool | float]) -> str:
    """The script with other constants. Needs torch alone, as the script does."""
    for name, value in edit.items():
        source, count = re.subn(rf"(?m)^{name} = \S+", f"{name} = {value!r}", source)
        if count != 1:
            sys.exit(f"{TRAIN.name} has {count} lines that set {name}, not one: correct EDITS")
    return source


def run(source: str, seed: int, seconds: float, options: argparse.Namespace) -> Run:
    """Train `source` by hand for some seconds, and read its summary block."""
    budget = f"{int((seconds * TOKENS_PER_S if options.tier == 'gpu' else 2e6) // 1e6)}M"
    with tempfile.TemporaryDirectory() as place:
        code = Path(place) / "train.py"
        code.write_text(source)
        argv = [sys.executable, str(code), "--tier", options.tier, "--data", str(options.data / "train")]
        argv += ["--out", f"{place}/out", "--seed", str(seed), "--budget", budget, "--seconds", str(seconds)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"a run failed: {done.stderr.strip().splitlines()[-1]}")
    for line in re.findall(r"(?m)^attention .*$", done.stdout):
        print(f"  {line}", file=sys.stderr)
    found = {name: float(value) for name, value in re.findall(r"(?m)^(\w+): +(\S+)$", done.stdout)}
    with options.log.open("a") as log:
        print(json.dumps({"seed": seed, "seconds": seconds, **found}), file=log)
    print(f"  seed {seed}, {seconds:g} s: {found['val_bpb']:.4f}", file=sys.stderr, flush=True)
    return found


def summary(name: str, runs: Sequence[Run]) -> str:
    """One line over the seeds."""
    bpb = [one["val_bpb"] for one in runs]
    mfu = [one["mfu_percent"] for one in runs if "mfu_percent" in one]
    return (
        f"{name}: val_bpb {' '.join(f'{score:.4f}' for score in bpb)}, mean {mean(bpb):.4f}, "
        f"sd {100 * stdev(bpb) / mean(bpb):.2f} %; {mean(one['tokens_per_s'] for one in runs) / 1000:.0f} k tokens/s, "
        f"MFU {f'{mean(mfu):.1f} %' if mfu else 'unknown (no data sheet for this GPU)'}, "
        f"start-up {mean(one['startup_seconds'] for one in runs):.0f} s"
    )


def measure(options: argparse.Namespace) -> None:
    """Both budgets, then each switch at the short one."""
    source, seeds = TRAIN.read_text("utf-8"), range(options.seeds)
    short = [run(source, seed, options.short, options) for seed in seeds]
    print(summary(f"{options.short:g} s", short), flush=True)
    full = [run(source, seed, options.full, options) for seed in seeds]
    print(summary(f"{options.full:g} s", full), flush=True)
    print(f"{'edit':24} {'change':>8} {'sd':>7} {'tokens/s':>9}")
    for name, edit in EDITS.items():
        if options.only and name not in options.only.split(","):
            continue
        runs = [run(edited(source, edit), seed, options.short, options) for seed in seeds]
        changes = [100 * (b["val_bpb"] / a["val_bpb"] - 1) for a, b in zip(short, runs, strict=True)]
        speed = sum(one["tokens_per_s"] for one in runs) / sum(one["tokens_per_s"] for one in short)
        print(f"{name:24} {mean(changes):+7.2f}% {stdev(changes):6.2f}% {speed:8.2f}x", flush=True)


def main() -> None:
    """Prepare, look for a GPU, measure."""
    parser = argparse.ArgumentParser(description="Measure the GPU tier of baseline/train.py.")
    parser.add_argument("--data", type=Path, default=CACHE / "gpu-text", help="a folder that prepare.py made")
    parser.add_argument("--short", type=float, default=60.0, help="seconds of a short run")
    parser.add_argument("--full", type=float, default=300.0, help="seconds of a full run")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind; at least 2")
    parser.add_argument("--only", default="", help=f"comma-separated edits: {', '.join(EDITS)}; default: all")
    parser.add_argument("--tier", choices=("gpu", "tiny"), default="gpu", help="tiny: the same steps on a CPU")
    parser.add_argument("--log", type=Path, default=CACHE / "gpu-runs.jsonl", help="each run is added here")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds must be at least 2: one run has no sd")
    options.data, options.log = options.data.absolute(), options.log.absolute()
    options.log.parent.mkdir(parents=True, exist_ok=True)
    if not (options.data / "manifest.json").is_file():
        text_of_this_machine(options.data)
    if options.tier == "gpu" and not torch.cuda.is_available():
        print(f"skipped: no GPU that torch can use here; nothing was measured. {options.data} may be copied to one")
        return
    device = torch.cuda.get_device_name() if options.tier == "gpu" else "a CPU, at toy sizes: the numbers mean nothing"
    print(f"{device}; torch {torch.__version__}; text {options.data}", flush=True)
    measure(options)


if __name__ == "__main__":
    main()
