"""The first moment of a trial's process: bind its life to its owner's, set its limits, become the program.

    python -I -S launch.py OWNER_PID FILE_BYTES OPEN_FILES -- PROGRAM ARGUMENT...

A program of its own, because the alternative, Python code between fork and exec (`preexec_fn`), may hang in an owner
with many threads, and an agent under Ray has dozens. Costs about 10 ms of CPU. Knows nothing of trials.
"""

import ctypes
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with(owner: int) -> None:
    """Be killed when the owner dies.

    The kernel means the THREAD that started us: an owner starts trials from one thread that lives as long as it does.
    """
    if not sys.platform.startswith("linux"):
        return  # elsewhere a killed agent leaves its trial running; the next start sweeps it
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != owner:  # it died before we asked
        os._exit(1)


def limit(kind: int, value: int) -> None:
    """Lower a limit, never raise it."""
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_FSIZE, int(sys.argv[2]))
    limit(resource.RLIMIT_NOFILE, int(sys.argv[3]))
    program = sys.argv[5:]
    os.execv(program[0], program)
