"""What walls cost: the start of a box, the training inside it, and the time from kill to a clean machine.

    python benchmarks/isolation.py [--starts 30] [--pairs 8] [--audits 200] [--runs 100] [--draws 300]

Then what scores that cannot be forged cost, and what they catch: `audits.py`, which has its own description.

Bare boxes and those of every level that starts here take turns, so that all meet the same load. Training is compared by
its CPU time for one fixed amount of numpy work, counted by the kernel and not by the candidate, start included.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median, stdev

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from audits import report  # noqa: E402

from node.library import shown_library  # noqa: E402
from node.sandbox import Box, Sandbox  # noqa: E402
from node.sandbox.bare import Bare  # noqa: E402
from node.sandbox.bwrap import Bwrap  # noqa: E402
from node.sandbox.cgroup import Cgroup  # noqa: E402
from node.sandbox.choice import starts  # noqa: E402
from node.sandbox.landlock import Landlock  # noqa: E402
from swarm.records import Limits  # noqa: E402

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
WORK = """
import numpy as np
a = np.random.default_rng(0).standard_normal((256, 256))
for _ in range(2400):  # as long as a trial of the shipped task: 4 s
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


def box(scratch: Path, code: str, *flags: str, library: Path | None = None) -> Box:
    """A box that runs a line of Python."""
    return Box((sys.executable, *flags, "-c", code), (), scratch, Limits(60, 60), ONE_THREAD, library=library)


def run(sandbox: Sandbox, inside: Box) -> tuple[float, float]:
    """Wall and CPU seconds of one box, from start to end."""
    before, used = time.perf_counter(), _cpu_s()
    with sandbox.start(inside) as process:
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


def here() -> list[Sandbox]:
    """Every sandbox that starts on this machine, the bare one first."""
    found: list[Sandbox] = [Bare()]
    for kind in (Landlock, Bwrap, Cgroup):
        try:
            starts(kind())
        except (OSError, ValueError) as error:
            print(f"{kind.name} is not here: {error}")
        else:
            found.append(kind())
    return found


def turns(sandboxes: list[Sandbox], times: int, measure: Callable[[Sandbox], float]) -> list[list[float]]:
    """One row per sandbox; the sandboxes take turns."""
    rounds = [[measure(sandbox) for sandbox in sandboxes] for _ in range(times)]
    return [list(row) for row in zip(*rounds, strict=True)]


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=30)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--audits", type=int, default=200)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--draws", type=int, default=300)
    options = parser.parse_args()
    tell_boxes(options.starts, options.pairs)
    report(options.audits, options.runs, options.draws)


def tell_boxes(starts: int, pairs: int) -> None:
    """One table."""
    sandboxes = here()
    with tempfile.TemporaryDirectory() as folder:
        scratch, below = Path(folder).resolve() / "scratch", Path(folder).resolve() / "below"
        scratch.mkdir()
        library = shown_library(ROOT / "baseline", below)
        start = turns(sandboxes, starts, lambda s: run(s, box(scratch, "", "-I", "-S"))[0])
        hides = turns(sandboxes, starts, lambda s: run(s, box(scratch, "", "-S", library=library))[0])
        work = turns(sandboxes, pairs, lambda s: run(s, box(scratch, WORK))[1])
        kills = turns(sandboxes, 5, lambda s: killed_in(s, scratch))
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; medians of {starts} starts, 5 kills of 31")
    print(
        "sandbox    start to end, ms   over bare, ms   ... with the copied library   work of bare's   kill to clean, ms"
    )
    for index, sandbox in enumerate(sandboxes):
        over, hid = (
            1000 * median(ours - bare for ours, bare in zip(rows[index], rows[0], strict=True))
            for rows in (start, hides)
        )
        ratios = [bare / ours for ours, bare in zip(work[index], work[0], strict=True)]
        error = stdev(ratios) / len(ratios) ** 0.5
        print(
            f"{sandbox.name:<10} {1000 * median(start[index]):>16.0f} {over:>15.0f} {hid:>27.0f}"
            f" {fmean(ratios):>8.3f} +- {error:.3f} {1000 * median(kills[index]):>16.0f}"
        )


if __name__ == "__main__":
    main()
