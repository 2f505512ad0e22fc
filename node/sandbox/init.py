"""The first process of a box: start the candidate, collect whoever is left without a parent, end when it ends.

    python -I -S init.py READY_FD PROCESSES -- PROGRAM ARGUMENT...

Everything in the box dies with this process, which is the kernel's promise for the first of a process namespace; and
because it collects its children, the CPU time of all of them is known outside, to the tick. READY_FD gets `+` when
the box stands, and a sentence when the program could not be started; it is closed when the program runs.
"""

import os
import resource
import sys

SIGNALLED = 128  # as shells do it: 128 + the signal's number


def become(program: list[str], ready: int, processes: int) -> None:
    """Turn into the program, within its limit of processes."""
    try:
        hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        limit = processes if hard == resource.RLIM_INFINITY else min(processes, hard)
        resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
        os.execv(program[0], program)
    except OSError as error:
        os.write(ready, f"{program[0]}: {error.strerror}".encode())
    os._exit(1)


def collect(child: int) -> int:
    """Wait for the program, and for every orphan before it; what it returned."""
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else SIGNALLED - code


if __name__ == "__main__":
    ready, processes, program = int(sys.argv[1]), int(sys.argv[2]), sys.argv[4:]
    os.set_inheritable(ready, False)
    os.write(ready, b"+")
    child = os.fork()
    if child == 0:
        become(program, ready, processes)
    os.close(ready)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # the pipes are the candidate's: they end when it closes them
        os.dup2(nothing, descriptor)
    os._exit(collect(child))
