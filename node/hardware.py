"""What machine this is: its Platform, its name, and what `swarm doctor` has to say about it.

Owns every question to the machine. Imports none of the heavy packages that it reports on: `import torch` alone costs
1.5 s, its version stands in its metadata.
"""

import os
import platform
import shutil
import socket
import subprocess
import sys
import uuid
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from node.sandbox.choice import best
from node.sandbox.promises import BOUND, NOT_ROOT, kept
from swarm.records import Platform
from swarm.task import Task

OLDEST_PYTHON = (3, 11)
ROOM_MB = 4000  # torch's CPU build unpacks to 1 GB, an environment with Ray and all to 2 GB, a study needs little
MEMORY_MB = 4000  # Ray's head and two trials of the shipped Task
LEAST_CORES = 2
NVIDIA_SMI_LIMIT_S = 10.0  # it takes seconds when no other process keeps the driver loaded


class Check(NamedTuple):
    """One line of `swarm doctor`."""

    name: str
    ok: bool
    detail: str
    fix: str  # what to do when it is not ok; empty when it is


class Gpu(NamedTuple):
    """The GPU that this process was lent."""

    name: str
    driver: str


def platform_of(task: Task, fingerprint: str, threads: int) -> Platform:
    """Where scores of this machine may be compared. A GPU counts only when the installed torch can use one."""
    torch = _version("torch")
    gpu = None if torch is None or torch.endswith("+cpu") else find_gpu()
    cpu = f"cpu {cpu_model()}, {threads} thread{'s' if threads > 1 else ''}"
    software = [f"torch {torch}" if torch else "no torch", f"python {sys.version_info.major}.{sys.version_info.minor}"]
    return Platform(
        device=gpu.name if gpu else cpu,
        software=", ".join([*software, f"driver {gpu.driver}"] if gpu else software),
        data=fingerprint,
        budget=_budget(task),
    )


def _budget(task: Task) -> str:
    if task.tokens and not task.timed:
        return f"{task.tokens} tokens"
    return f"{task.seconds:g} s" if task.seconds else "the study's limit"


def gpu_name() -> str | None:
    """Model of the GPU that this process may use; None without one."""
    gpu = find_gpu()
    return gpu.name if gpu else None


def find_gpu() -> Gpu | None:
    """The first GPU that CUDA_VISIBLE_DEVICES leaves us, as NVIDIA's driver names it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return None
    return _ask_driver((visible or "").split(",")[0].strip())


@cache
def _ask_driver(device: str) -> Gpu | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    chosen = ("-i", device) if device else ()
    argv = (program, *chosen, "--query-gpu=name,driver_version", "--format=csv,noheader")
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=NVIDIA_SMI_LIMIT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    name, _, driver = done.stdout.strip().partition("\n")[0].rpartition(", ")
    return Gpu(name, driver) if done.returncode == 0 and name else None


@cache
def cpu_model() -> str:
    """Model of the processor, in the kernel's words."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def free_disk_mb(path: Path) -> int:
    """Free space where `path` is, or will be."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free // 2**20


def memory_mb() -> int:
    """Physical memory of this machine; less if a container grants less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):  # another version of cgroups, or "max"
            continue
    return total // 2**20


def cores() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def node_uid(home: Path) -> str:
    """Identity of a Node: drawn once, kept in its home, the same after every restart."""
    path = home / "node-uid"
    home.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        aside = home / f"node-uid.{os.getpid()}"
        aside.write_text(uuid.uuid4().hex)
        aside.rename(path)  # whole or not at all, also when we are killed here
    return path.read_text().strip()


def node_name(uid: str) -> str:
    """What people call a Node: its host and the beginning of its identity."""
    return f"{socket.gethostname()}-{uid[:4]}"


# --- doctor ----------------------------------------------------------------------------------------------


def doctor(folder: Path = Path()) -> list[Check]:
    """What this machine has, what is missing, and how to mend it. `folder` is where studies will be kept."""
    return [
        _python(),
        _git(),
        _package("torch"),
        _package("ray"),
        _at_least(
            "disk",
            free_disk_mb(folder.resolve()),
            ROOM_MB,
            "MB free",
            f"free some space on the disk of {folder.resolve()}",
        ),
        _at_least("memory", memory_mb(), MEMORY_MB, "MB", "close other programs, or set nodes.local = 1"),
        _at_least("cores", cores(), LEAST_CORES, "", "set nodes.local = 1: trials that share a core take longer"),
        _gpu(),
        *_sandbox(),
        _secret("ANTHROPIC_API_KEY", "the `claude` proposer", "the `tuner` needs none"),
        _secret("GITHUB_TOKEN", "the `github` forge", "the `local` forge needs none"),
    ]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _python() -> Check:
    ok = sys.version_info[:2] >= OLDEST_PYTHON
    return Check(
        "python", ok, platform.python_version(), "" if ok else "install Python 3.11 or 3.12 and run `make` again"
    )


def _git() -> Check:
    program = shutil.which("git")
    if program is None:
        return Check("git", False, "not found", "install git (apt install git, dnf install git, or git-scm.com)")
    said = subprocess.run((program, "--version"), stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout
    return Check("git", True, said.strip().removeprefix("git version "), "")


def _package(name: str) -> Check:
    found = _version(name)
    return Check(name, found is not None, found or "not installed", "" if found else "run `make` to install it")


def _at_least(name: str, has: int, needs: int, unit: str, fix: str) -> Check:
    ok = has >= needs
    detail = f"{has} {unit}".strip()
    return Check(name, ok, detail if ok else f"{detail}; {needs} are comfortable", "" if ok else fix)


def _gpu() -> Check:
    gpu, torch = find_gpu(), _version("torch") or ""
    if gpu is None:
        return Check("gpu", True, f"none: trials run on the CPU ({cpu_model()})", "")
    detail = f"{gpu.name}, driver {gpu.driver}"
    if torch.endswith("+cpu"):
        return Check("gpu", False, f"{detail}, but torch {torch} is a CPU build", "remove .venv and run `make` again")
    return Check("gpu", True, detail, "")


def _sandbox() -> list[Check]:
    """The best sandbox, and each of its promises as it held just now."""
    chosen = best()
    sandbox = chosen.make()
    try:
        found = kept(sandbox)
    except OSError as error:
        return [Check("sandbox", False, f"{sandbox.name}: {error}", "see docs/security.md")]
    held = found.held
    detail = f"{sandbox.name}, level {found.level}: keeps {sum(held.values())} of {len(held)} promises"
    missing = "; ".join(filter(None, (chosen.lacks, found.lacks)))
    fix = "" if all(held.values()) else missing or "run only code that you trust; see docs/security.md"
    return [
        Check("sandbox", not fix, detail, fix),
        *(
            Check("promise", kept, promise if kept else f"NOT: {promise}", "" if kept else _needs(promise))
            for promise, kept in held.items()
        ),
    ]


def _needs(promise: str) -> str:
    if promise == NOT_ROOT:
        return "needs Python and studies that others may read, or an ordinary user"
    return "needs a control group" if promise in BOUND else "needs walls"


def _secret(name: str, needed_by: str, otherwise: str) -> Check:
    """Whether it is set, never what it is. Neither is needed to begin, so its absence is no failure."""
    return Check(name, True, "set" if os.environ.get(name) else f"not set: {needed_by} needs it, {otherwise}", "")
