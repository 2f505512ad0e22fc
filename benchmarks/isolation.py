"""What walls cost: the start of a box, the training inside it, and the time from kill to a clean machine.

    python benchmarks/isolation.py [--starts 30] [--pairs 8]

Bare and walled boxes take turns, so that both meet the same load. Training is compared by its CPU time for one fixed
amount of numpy work, counted by the kernel and not by the candidate.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean, median, stdev

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from node.sandbox import Box, Sandbox  # noqa: E402
from node.sandbox.bare import Bare  # noqa: E402
from node.sandbox.choice import best  # noqa: E402
from swarm.records import Limits  # noqa: E402

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
WORK = """
import numpy as np
a = np.random.default_rng(0).standard_normal((256, 256))
for _ in range(600):
    a = np.tanh(a @ a / 16)
"""
FAMILY = """
import os, time
for _ in range(30):
    if os.fork() == 0:
        time.sleep(60)
print(flush=True)
time.sleep(60)
"""


def box(scratch: Path, code: str, *flags: str) -> Box:
    """A box that runs a line of Python."""
    return Box((sys.executable, *flags, "-c", code), (), scratch, Limits(60, 60), ONE_THREAD)


def run(sandbox: Sandbox, scratch: Path, code: str, *flags: str) -> tuple[float, float]:
    """Wall and CPU seconds of one box, from start to end."""
    before, used = time.perf_counter(), _cpu_s()
    with sandbox.start(box(scratch, code, *flags)) as process:
        code_of_exit = process.wait()
        sandbox.kill(process)
    assert code_of_exit == 0, f"exit code {code_of_exit}"
    return time.perf_counter() - before, _cpu_s() - used


def _cpu_s() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


def killed_in(sandbox: Sandbox, scratch: Path) -> float:
    """Seconds from the kill of 31 processes until nobody of them holds the log."""
    with sandbox.start(box(scratch, FAMILY)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        before = time.perf_counter()
        sandbox.kill(process)
        process.stdout.read()
        return time.perf_counter() - before


def main() -> None:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=30)
    parser.add_argument("--pairs", type=int, default=8)
    options = parser.parse_args()
    if best().lacks:
        sys.exit(f"no walls here: {best().lacks}")
    bare, walled = Bare(), best().make()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder).resolve()
        starts = [[run(s, scratch, "", "-I", "-S")[0] for s in (bare, walled)] for _ in range(options.starts)]
        work = [[run(s, scratch, WORK)[1] for s in (bare, walled)] for _ in range(options.pairs)]
        kills = [[killed_in(s, scratch) for s in (bare, walled)] for _ in range(5)]
    ratios = [plain / boxed for plain, boxed in work]
    error = stdev(ratios) / len(ratios) ** 0.5
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {walled.name} against {bare.name}")
    print(f"start to end, ms     {_ms(starts, 0)} bare  {_ms(starts, 1)} walled  (median of {options.starts})")
    print(f"work per CPU second  {fmean(ratios):.3f} +- {error:.3f} of bare  ({options.pairs} pairs, start included)")
    print(f"kill to clean, ms    {_ms(kills, 0)} bare  {_ms(kills, 1)} walled  (median of 5, 31 processes)")


def _ms(rows: list[list[float]], column: int) -> str:
    return f"{1000 * median(row[column] for row in rows):.0f}"


if __name__ == "__main__":
    main()
