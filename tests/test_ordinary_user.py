"""The sandboxes' contract and every attack again, as a user without any right: root is told yes too often.

Runs where the tests run as root, as they do in containers; elsewhere the suite itself runs as such a user.
"""

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SUITES = ("tests/test_sandbox.py", "tests/test_attacks.py")
UID = 61184  # of nobody on any system that we know
VERSION = f"python{sys.version_info[0]}.{sys.version_info[1]}"


def as_user(*argv: str, home: Path, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a command as this user, with this Python's packages."""
    packages = os.pathsep.join((str(ROOT), sysconfig.get_paths()["purelib"]))
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(home), "PYTHONPATH": packages}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(home)}
    return subprocess.run(
        argv,
        user=UID,
        group=UID,
        extra_groups=(),
        env=environment,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # noqa: S108  # pytest's own folder is root's alone
        os.chown(name, UID, UID)
        yield Path(name)


def its_python(home: Path) -> str:
    """A Python of this version that the user can start, with the packages that the suites need; empty without one."""
    for python in (sys.executable, f"/usr/bin/{VERSION}", f"/usr/local/bin/{VERSION}"):
        try:
            tried = as_user(python, "-c", "import pytest, psutil, numpy, swarm, node", home=home, timeout_s=60)
        except OSError:
            continue
        if tried.returncode == 0:
            return python
    return ""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="this suite runs as an ordinary user")
def test_walls_hold_an_ordinary_user_too(home: Path) -> None:
    python = its_python(home)
    if not python:
        pytest.skip(f"no {VERSION} with our packages that another user may start")
    argv = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={home / 'tests'}", *SUITES)
    said = as_user(*argv, home=home, timeout_s=300)
    assert said.returncode == 0, said.stdout[-4000:] + said.stderr[-2000:]
    passed = re.search(r"(\d+) passed", said.stdout)
    assert passed is not None and int(passed.group(1)) > 50, said.stdout[-2000:]
