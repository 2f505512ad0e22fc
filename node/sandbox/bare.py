"""Level 0: a process group, limits and an empty environment, on any Unix. No isolation at all.

Owns how a tree is started and ended without help of the kernel's namespaces. NOT covered: the candidate reads every
file that this user can read, reaches the network, sees other processes, and may write outside its scratch. Only code
that one trusts belongs here.
"""

import os
import sys
import uuid
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, Popen, TimeoutExpired
from weakref import WeakKeyDictionary

from node.processes import MARK, kill_marked, kill_tree
from node.sandbox import Box

FILE_BYTES = 2**30  # one file of a trial; artifacts are far smaller
OPEN_FILES = 1024
CORE_BYTES = (
    1  # less than any core has; where a program of the machine takes them in, 0 would hand it one, and only 1 not
)
REAP_S = 5.0  # a killed process that is still there after this is stuck in the kernel
FIRST = Path(__file__).with_name("first.py")
# Of a virtual environment the Python below it: it starts 4 ms sooner, and needs no package.
PYTHON = getattr(sys, "_base_executable", "") or sys.executable
# Where programs, their libraries and the lent GPU are found. Everything else of ours stays with us.
# SWARM_HOME marks a process as one of this study: whatever a killed agent leaves is found by it and ended.
INHERITED = ("PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "SWARM_HOME")


class Bare:
    """Starts and ends process trees without isolating them.

    With `box.answers` stdin and stdout are the pipes and `stderr` is the log; else `stdout` is the log.
    """

    level: int = 0
    name: str = "bare"

    def __init__(self) -> None:
        """Nothing to prepare."""
        self._marks: WeakKeyDictionary[Popen[bytes], str] = WeakKeyDictionary()

    def start(self, box: Box) -> Popen[bytes]:
        """Start the tree.

        Raises:
            OSError: no such program, or the machine could not start it.
        """
        argv = (*first(), f"owner={os.getpid()}", "--", *box.argv)
        return self.launch(box, argv, {**inherited(), **private(box), **box.environment})

    def launch(
        self,
        box: Box,
        argv: tuple[str, ...],
        environment: dict[str, str],
        kind: type[Popen[bytes]] = Popen,
        pass_fds: tuple[int, ...] = (),
    ) -> Popen[bytes]:
        """Start `argv`, for other sandboxes what builds their walls, as the first process of a box's tree.

        Raises:
            OSError: no such program, or the machine could not start it.
        """
        if not os.access(box.argv[0], os.X_OK):
            raise FileNotFoundError(f"{box.argv[0]} is not a program; give its absolute path")
        mark = environment.setdefault(MARK, uuid.uuid4().hex)
        process = kind(
            argv,
            stdin=PIPE if box.answers else DEVNULL,
            stdout=PIPE,
            stderr=PIPE if box.answers else STDOUT,
            bufsize=0,
            cwd=box.scratch,
            env=environment,
            start_new_session=True,
            pass_fds=pass_fds,
        )
        self._marks[process] = mark
        return process

    def kill(self, process: Popen[bytes]) -> None:
        """End the whole tree within a second and reap it. Harmless when it has ended already.

        Raises:
            OSError: the kernel does not let go of it (a hung driver); the machine needs a person.
        """
        mark = self._marks[process]
        if process.returncode is not None:  # reaped: its pid may be somebody else's by now
            kill_marked(mark)
            return
        kill_tree(process.pid, mark)
        try:
            process.wait(REAP_S)
        except TimeoutExpired as error:
            raise OSError(
                f"process {process.pid} can not be killed: hung in the kernel; restart the machine"
            ) from error

    def starved(self, process: Popen[bytes]) -> bool:
        """Nobody but the trial's watch holds memory here."""
        return False

    def used_s(self, process: Popen[bytes]) -> float:
        """The kernel counts for each process alone."""
        return 0.0


def first(path: str = str(FIRST)) -> tuple[str, ...]:
    """The command that starts a tree's first process, with the limits that hold in every box."""
    return (PYTHON, "-I", "-S", path, f"core={CORE_BYTES}", f"fsize={FILE_BYTES}", f"nofile={OPEN_FILES}")


def inherited() -> dict[str, str]:
    """What of our environment a tree gets."""
    return {name: os.environ[name] for name in INHERITED if name in os.environ}


def private(box: Box) -> dict[str, str]:
    """What every tree is told of itself: its scratch is its home."""
    scratch = str(box.scratch)
    return {"HOME": scratch, "TMPDIR": scratch, "USER": "trial", "LANG": "C.UTF-8"}
