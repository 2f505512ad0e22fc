"""What the GPU tier of baseline/train.py does on this machine's GPU: speed, score, and what each switch is worth.

    benchmarks/gpu.sh                                       # everything; an estimate: 75 minutes of one H100
    benchmarks/gpu.sh --minutes 9                           # what fits into nine minutes; again: goes on where it was
    benchmarks/gpu.sh --short 10 --full 90 --minutes 9      # smaller: four such calls, half an hour and a little
    benchmarks/gpu.sh --tier tiny --short 2 --full 4 --seeds 2    # the same steps on a CPU; its numbers mean nothing

No GPU has run it yet. `--parts effects --seeds 2` or `--only` leave out what takes longest, ten switches by three runs.

Parts: `kernels`, one short run with each attention kernel, held against its bar; `short` and `full`, every seed at
either budget; `effects`, each switch, at the short budget. Every run is a line of --log, and is not repeated while
script, text, torch and device are the same. The last line is JSON. Exit 0: done, and the bars hold; 1: a bar or a run
failed; 3: --minutes were over first.

The text is a prepared folder, `--data`, 60 MB of tokens that may be copied with the checkout from a machine without a
GPU: this makes it before it looks for one. It is of the Python sources that are installed beside this Python, with the
merges of gpu-bpe8192.txt: real text; torch and numpy are all that is needed, no network. There is little of it, so a
full run passes over it many times; for a score that compares with others', prepare climbmix (its command is in
baseline/task-gpu.toml) and name it.

Of each pair both runs have the same seed, text, order and seconds. `change` is the mean paired difference of val_bpb in
percent that the edit makes, negative is better; below twice sd / sqrt(seeds) it is noise.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).parents[1]
TRAIN = ROOT / "baseline" / "train.py"
CACHE = ROOT / "baseline" / ".cache"
MERGES = Path(__file__).with_name("gpu-bpe8192.txt")
TEXT_BYTES = 100_000_000  # of Python sources: 26 M tokens of 2 bytes, small enough to be sent
TOKENS_PER_S = 3_000_000  # more than any one GPU reads: a run by hand ends with its seconds, not with its tokens
START_S = 150.0  # what a run takes beside its seconds, as long as none was seen: compiling for the first time
PATIENCE_S = 600.0  # after which a run is given up
PARTS = ("kernels", "short", "full", "effects")
Edit = Mapping[str, bool | float | str]
KERNELS: dict[str, Edit] = {
    "fa3": {"GPU_ATTENTION": "fa3"},
    "flex": {"GPU_ATTENTION": "flex"},
    "sdpa": {"GPU_ATTENTION": "sdpa"},
    "sdpa, whole": {"GPU_ATTENTION": "sdpa", "GPU_WINDOW": 0, "GPU_DOCUMENTS": False},
}
BARS = {"fa3": 38.0, "flex": 33.0, "sdpa": 33.0}  # % MFU on one H100 or H200; without fa3, one of the others has to
EDITS: dict[str, Edit] = {
    "bigram off": {"GPU_BIGRAM": False},
    "smear off": {"GPU_SMEAR": False},
    "windows off": {"GPU_WINDOW": 0},
    "documents joined": {"GPU_DOCUMENTS": False},
    "batch ramp off": {"GPU_BATCH_RAMP": False},
    "tail average off": {"GPU_TAIL_EMA": 0.0},
    "floor of step sizes off": {"GPU_LR_FLOOR": 0.0},
    "value embedding off": {"VALUE_EMBEDDING": False},
    "softcap off": {"SOFTCAP": 0.0},
    "not compiled": {"GPU_COMPILE": False},
}
Run = dict[str, Any]


class Job(NamedTuple):
    """One run that is wanted."""

    name: str  # of a part, or kernel, or edit
    source: str
    seed: int
    seconds: float


class TimeOver(Exception):
    """The minutes that were given are over."""


# ---- text


def text_of_this_machine(data: Path) -> None:
    """Prepare the Python sources that are installed here, with 8192 tokens."""
    with tempfile.TemporaryDirectory() as place:
        left = TEXT_BYTES
        for root, path in sources_here():
            left -= path.stat().st_size
            if left < 0:
                break
            copy = Path(place) / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        argv = [sys.executable, str(ROOT / "baseline" / "prepare.py"), "--out", str(data), "--source", f"text:{place}"]
        if subprocess.run([*argv, "--merges", str(MERGES)], check=False).returncode:
            sys.exit("the text could not be prepared: name a prepared folder with --data")
    size = sum(path.stat().st_size for path in data.rglob("*") if path.is_file())
    print(f"{data}: {size / 1e6:.0f} MB, may be copied to another machine", flush=True)


def sources_here() -> Iterator[tuple[Path, Path]]:
    """The standard library, then the installed packages, in the order of their names: root and file."""
    for name in ("stdlib", "purelib"):
        root = Path(sysconfig.get_path(name))
        for path in sorted(root.rglob("*.py")):
            if name == "purelib" or "site-packages" not in path.relative_to(root).parts:
                yield root, path


# ---- one run


def edited(source: str, edit: Edit, tier: str) -> str:
    """The script with other constants. Needs torch alone, as the script does."""
    for name, value in edit.items():
        source, count = re.subn(rf"(?m)^{name} = \S+", f"{name} = {spelt(value)}", source)
        if count != 1:
            sys.exit(f"{TRAIN.name} has {count} lines that set {name}, not one: correct EDITS")
        if tier == "tiny":  # whose sizes take the place of the GPU tier's
            source = re.sub(rf'(?m)^(TINY .*"{name.removeprefix("GPU_")}": )[^,}}]+', rf"\g<1>{spelt(value)}", source)
    return source


def spelt(value: bool | float | str) -> str:
    """As train.py spells it: an edit to what is there changes nothing."""
    return f'"{value}"' if isinstance(value, str) else repr(value)


def run(job: Job, options: argparse.Namespace, limit_s: float) -> Run:
    """Train by hand for some seconds, and read the summary block; or `failed`, and why."""
    budget = int(job.seconds * TOKENS_PER_S) if options.tier == "gpu" else 2_000_000
    with tempfile.TemporaryDirectory() as place:
        code = Path(place) / "train.py"
        code.write_text(job.source)
        argv = [sys.executable, str(code), "--tier", options.tier, "--data", str(options.data / "train")]
        argv += ["--out", f"{place}/out", "--seed", str(job.seed), "--budget", str(budget)]
        argv += ["--seconds", str(job.seconds)]
        # Compiled once for all runs and calls; by_hand.py is found beside the shipped script.
        paths = os.pathsep.join(filter(None, (str(TRAIN.parent), os.environ.get("PYTHONPATH"))))
        more = {"TORCHINDUCTOR_CACHE_DIR": str(CACHE / "compiled"), **os.environ, "PYTHONPATH": paths}
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=limit_s, env=more)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]}
    used = re.findall(r"(?m)^attention (\w+), (?:not )?compiled$", done.stdout)
    summary = re.findall(r"(?m)^(\w+): +(-?[\d.]+(?:e[+-]?\d+)?)$", done.stdout.rpartition("\n---\n")[2])
    if not used or not summary:
        return {"failed": "its output holds no kernel, or no summary"}
    why = dict(re.findall(r"(?m)^attention (\w+).*: not here \((.*)\)$", done.stdout))
    return {"kernel": used[-1], "not_here": why, **{name: float(value) for name, value in summary}}


class Runs:
    """What was run, now or by an earlier call: a line of the log each."""

    def __init__(self, options: argparse.Namespace, where: str) -> None:
        """Read the log. What failed is tried again."""
        self.options, self.where, self.started, self.known = options, where, time.monotonic(), dict[str, Run]()
        if options.log.is_file():
            lines = [json.loads(line) for line in options.log.read_text().splitlines() if line.endswith("}")]
            lasting = (line for line in lines if "key" in line and ("failed" not in line or line.get("hung")))
            self.known = {line["key"]: line for line in lasting}

    def get(self, job: Job) -> Run:
        """The run, made if it is not there. Raises TimeOver where it would not end in time."""
        facts = json.dumps([job.source, job.seed, job.seconds, self.options.tier, self.where])
        key = sha256(facts.encode()).hexdigest()[:16]
        if key not in self.known:
            began = time.monotonic()
            left = 60 * self.options.minutes - (began - self.started)
            if job.seconds + self.start_s > left:
                raise TimeOver
            limit = min(job.seconds + PATIENCE_S, left)
            try:
                found = run(job, self.options, limit)
            except subprocess.TimeoutExpired:
                if limit < job.seconds + 2 * START_S:
                    raise TimeOver from None
                # Not tried again: a kernel that hangs would take every call to come.
                found = {"failed": f"did not end within {limit:.0f} s", "hung": True}
            told = {"key": key, "name": job.name, "seed": job.seed, "seconds": job.seconds, "where": self.where}
            self.known[key] = {**told, "hung": False, "took_s": round(time.monotonic() - began, 1), **found}
            with self.options.log.open("a") as log:
                print(json.dumps(self.known[key]), file=log)
            said = found.get("failed") or f"{found['val_bpb']:.4f}, attention {found['kernel']}"
            print(f"  {job.name}, seed {job.seed}, {job.seconds:g} s: {said}", file=sys.stderr, flush=True)
        return self.known[key]

    @property
    def start_s(self) -> float:
        """What a run takes beside its seconds, at most."""
        ended = (one for one in self.known.values() if one["where"] == self.where and "failed" not in one)
        return max((one["took_s"] - one["seconds"] for one in ended), default=START_S)


# ---- parts


def kernels(runs: Runs, source: str, options: argparse.Namespace) -> dict[str, Any]:
    """Each attention kernel that is here, once, against its bar."""
    judged = re.search("H100|H200", runs.where) is not None and options.tier == "gpu"
    told: dict[str, Any] = {}
    found: dict[str, Run] = {}  # by the kernel that was used: one that is not here gave way to another
    print(f"{'attention':12} {'tokens/s':>9} {'MFU':>7} {'val_bpb':>8}")
    for name, edit in KERNELS.items():
        kernel = name.split(",")[0]
        one = found.get(name) or runs.get(Job(name, edited(source, edit, options.tier), 0, options.short))
        if "failed" in one:
            told[name] = {"failed": one["failed"]}
            print(f"{name:12} failed: {one['failed']}", flush=True)
        elif one["kernel"] != kernel:
            found[one["kernel"]] = one
            told[name] = {"not_here": one["not_here"].get(kernel, "")}
            print(f"{name:12} not here: {told[name]['not_here']}", flush=True)
        else:
            told[name] = held_against(BARS.get(name) if judged else None, one)
            mfu = told[name]["mfu_percent"] or 0.0
            verdict = {True: "holds", False: "FAILS", None: "not judged here"}[told[name]["holds"]]
            bar = f"bar {BARS[name]:g} %: {verdict}" if name in BARS else "no bar"
            print(
                f"{name:12} {one['tokens_per_s'] / 1000:7.0f} k {mfu:5.1f} % {one['val_bpb']:8.4f}  {bar}", flush=True
            )
    return told


def held_against(bar: float | None, one: Run) -> dict[str, Any]:
    """What a run reached, and whether it is enough."""
    mfu = one.get("mfu_percent")
    holds = None if bar is None or mfu is None else mfu >= bar
    return {"tokens_per_s": one["tokens_per_s"], "mfu_percent": mfu, "val_bpb": one["val_bpb"], "holds": holds}


def bars_hold(told: Mapping[str, Mapping[str, Any]]) -> bool | None:
    """With FlashAttention-3 where it is here, and with one of the others; None where nothing was judged."""
    held = {name: one["holds"] for name, one in told.items() if one.get("holds") is not None}
    others = [held[name] for name in held if name != "fa3"]
    return held.get("fa3", True) and any(others) if others else None


def budget(name: str, runs: Runs, source: str, options: argparse.Namespace) -> dict[str, Any]:
    """Every seed, for so many seconds."""
    seconds: float = getattr(options, name)
    done = [runs.get(Job(name, source, seed, seconds)) for seed in range(options.seeds)]
    if failed := [one["failed"] for one in done if "failed" in one]:
        print(f"{name}, {seconds:g} s: failed: {failed[0]}", flush=True)
        return {"failed": failed[0]}
    bpb, speed = [one["val_bpb"] for one in done], mean(one["tokens_per_s"] for one in done)
    mfu = mean(one.get("mfu_percent", 0.0) for one in done)
    print(
        f"{name}, {seconds:g} s: val_bpb {' '.join(f'{score:.4f}' for score in bpb)}, mean {mean(bpb):.4f}, "
        f"sd {100 * stdev(bpb) / mean(bpb):.2f} %; {speed / 1000:.0f} k tokens/s, "
        f"MFU {f'{mfu:.1f} %' if mfu else 'unknown (no data sheet for this GPU)'}, "
        f"start-up {mean(one['startup_seconds'] for one in done):.0f} s",
        flush=True,
    )
    return {"seconds": seconds, "val_bpb": bpb, "tokens_per_s": speed, "mfu_percent": mfu or None}


def effects(runs: Runs, source: str, options: argparse.Namespace) -> dict[str, Any]:
    """Each switch against the script as it is, in pairs."""
    told: dict[str, Any] = {}
    seeds = range(options.seeds)
    shipped = [runs.get(Job("short", source, seed, options.short)) for seed in seeds]
    print(f"{'edit':24} {'change':>8} {'sd':>7} {'tokens/s':>9}")
    for name in [name for name in EDITS if not options.only or name in options.only.split(",")]:
        code = edited(source, EDITS[name], options.tier)
        done = [runs.get(Job(name, code, seed, options.short)) for seed in seeds]
        if failed := [one["failed"] for one in (*shipped, *done) if "failed" in one]:
            told[name] = {"failed": failed[0]}
            print(f"{name:24} failed: {failed[0]}", flush=True)
            continue
        told[name] = effect(shipped, done)
        change, sd, speed, helps = told[name].values()
        verdict = "the switch helps" if helps else "no help shown: switch it off"
        print(f"{name:24} {change:+7.2f}% {sd:6.2f}% {speed:8.2f}x  {verdict}", flush=True)
    return told


def effect(shipped: Sequence[Run], done: Sequence[Run]) -> dict[str, Any]:
    """What an edit that takes something away changes, and whether what it took was of any use."""
    changes = [100 * (b["val_bpb"] / a["val_bpb"] - 1) for a, b in zip(shipped, done, strict=True)]
    speed = sum(one["tokens_per_s"] for one in done) / sum(one["tokens_per_s"] for one in shipped)
    helps = mean(changes) > 2 * stdev(changes) / len(changes) ** 0.5
    return {"change_percent": mean(changes), "sd_percent": stdev(changes), "speed": speed, "helps": helps}


def measure(options: argparse.Namespace, where: str) -> int:
    """The parts that are asked for; what was found, as JSON, last."""
    runs, source = Runs(options, where), TRAIN.read_text("utf-8")
    told: dict[str, Any] = {"where": where, "tier": options.tier}
    over = False
    try:
        for part in options.parts:
            told[part] = (
                kernels(runs, source, options)
                if part == "kernels"
                else effects(runs, source, options)
                if part == "effects"
                else budget(part, runs, source, options)
            )
    except TimeOver:
        over = True
        print(f"{options.minutes:g} minutes do not hold another run: the same command goes on here", flush=True)
    told |= {"done": not over, "bars_hold": bars_hold(told.get("kernels", {}))}
    if told["bars_hold"] is not None:
        verdict = "reach their bars" if told["bars_hold"] else "MISS A BAR"
        print(f"fa3, where it is here, and the better of the others {verdict}")
    print(json.dumps(told))
    failed = '"failed"' in json.dumps(told) or told["bars_hold"] is False
    return 3 if over else 1 if failed else 0


def main() -> int:
    """Prepare, look for a GPU, measure."""
    options = read_options()
    options.log.parent.mkdir(parents=True, exist_ok=True)
    if not (options.data / "manifest.json").is_file():
        text_of_this_machine(options.data)
    if options.tier == "gpu" and not torch.cuda.is_available():
        print(f"skipped: no GPU that torch can use here; nothing was measured. {options.data} may be copied to one")
        return 0
    manifest = json.loads((options.data / "manifest.json").read_text())
    device = torch.cuda.get_device_name() if options.tier == "gpu" else "a CPU, at toy sizes: the numbers mean nothing"
    where = f"{device}; torch {torch.__version__}; {manifest['vocab_size']} tokens, {manifest['fingerprint'][:12]}"
    print(where, flush=True)
    return measure(options, where)


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the GPU tier of baseline/train.py.")
    parser.add_argument("--data", type=Path, default=CACHE / "gpu-text", help="a folder that prepare.py made")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"comma-separated: {', '.join(PARTS)}; default: all")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run that would not end by then")
    parser.add_argument("--short", type=float, default=60.0, help="seconds of a short run")
    parser.add_argument("--full", type=float, default=300.0, help="seconds of a full run")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind; at least 2")
    parser.add_argument("--only", default="", help=f"comma-separated edits: {', '.join(EDITS)}; default: all")
    parser.add_argument("--tier", choices=("gpu", "tiny"), default="gpu", help="tiny: the same steps on a CPU")
    parser.add_argument("--log", type=Path, default=CACHE / "gpu-runs.jsonl", help="each run is added here")
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"--parts {unknown[0]}: choose from {', '.join(PARTS)}")
    if unknown := [name for name in options.only.split(",") if name and name not in EDITS]:
        parser.error(f"--only {unknown[0]}: choose from {', '.join(EDITS)}")
    if options.seeds < 2:
        parser.error("--seeds must be at least 2: one run has no sd")
    options.data, options.log = options.data.absolute(), options.log.absolute()
    return options


if __name__ == "__main__":
    sys.exit(main())
