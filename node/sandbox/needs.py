"""What every program in a box needs of the system, whichever walls show it: libraries, this Python, a GPU's devices."""

import glob
import os
import sys
import sysconfig
from functools import cache
from pathlib import Path

SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")  # links into /usr, or folders of their own
LIBRARIES = ("/etc/ld.so.cache", "/etc/alternatives", "/sys/devices/system/cpu")
LIBRARY = Path(sysconfig.get_paths()["stdlib"])  # of this Python
PACKAGES = ("site-packages", "dist-packages", "lib-dynload")  # in it, and no part of it
# By these a standard library is known, whatever it is called: several packages have an `os.py`.
A_LIBRARY = {"os.py", "argparse.py", "tarfile.py"}
GPU_DEVICES = ("/dev/nvidia*", "/dev/nvidia-caps/*", "/dev/dri/renderD*", "/dev/kfd")


def python_folders() -> set[Path]:
    """Where this Python and its packages lie, as far as they are not below /usr."""
    python = {Path(sys.prefix), Path(sys.base_prefix), Path(sys.base_exec_prefix)}
    return {path for path in python if not path.is_relative_to("/usr")}


@cache
def other_libraries() -> tuple[Path, ...]:
    """Every other standard library that a box would show, and what was carried back from newer ones (`backports`).

    Looked for once per process: 0.7 s for 120 000 files.
    """
    folders = (entry for root in (Path("/usr"), *sorted(python_folders())) for entry in os.walk(root))
    found = {Path(name) for name, _, files in folders if A_LIBRARY <= set(files) or _is_backport(name)}
    found = {path for path in found if path.resolve() != LIBRARY.resolve()}
    return tuple(sorted(path for path in found if found.isdisjoint(path.parents)))


def _is_backport(folder: str) -> bool:
    return os.path.basename(os.path.dirname(folder)) == "backports" and not folder.endswith("__pycache__")


def gpu_devices() -> list[str]:
    """The device files of the machine's GPUs."""
    return [path for pattern in GPU_DEVICES for path in glob.glob(pattern) if not os.path.isdir(path)]


def own(path: Path) -> Path:
    """A path that a candidate had no hand in: a link of its making would show it what it points to."""
    if path.is_symlink():
        raise OSError(f"{path} is a symbolic link; a box takes the folder itself")
    return path.absolute()
