"""What every program in a box needs of the system, whichever walls show it: libraries, this Python, a GPU's devices."""

import glob
import os
import sys
from pathlib import Path

SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")  # links into /usr, or folders of their own
LIBRARIES = ("/etc/ld.so.cache", "/etc/alternatives", "/sys/devices/system/cpu")
GPU_DEVICES = ("/dev/nvidia*", "/dev/nvidia-caps/*", "/dev/dri/renderD*", "/dev/kfd")


def python_folders() -> set[Path]:
    """Where this Python and its packages lie, as far as they are not below /usr."""
    python = {Path(sys.prefix), Path(sys.base_prefix), Path(sys.base_exec_prefix)}
    return {path for path in python if not path.is_relative_to("/usr")}


def gpu_devices() -> list[str]:
    """The device files of the machine's GPUs."""
    return [path for pattern in GPU_DEVICES for path in glob.glob(pattern) if not os.path.isdir(path)]


def own(path: Path) -> Path:
    """A path that a candidate had no hand in: a link of its making would show it what it points to."""
    if path.is_symlink():
        raise OSError(f"{path} is a symbolic link; a box takes the folder itself")
    return path.absolute()
