"""Trees whose first process is ours (`first.py`) and stays: how their end is read, and whether they began at all."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from subprocess import Popen

from node.sandbox.first import SIGNALLED


class Told(Popen[bytes]):
    """Such a tree; the signal that ended its program comes back as it does without a first process: as -signal."""

    def poll(self) -> int | None:
        """The exit code, if it has ended."""
        super().poll()
        return self._told()

    def wait(self, timeout: float | None = None) -> int:
        """The exit code."""
        super().wait(timeout)
        code = self._told()
        assert code is not None, "it has ended"
        return code

    def _told(self) -> int | None:
        code: int | None = self.returncode
        if code is not None and SIGNALLED < code <= SIGNALLED + signal.NSIG:
            self.returncode = SIGNALLED - code
        result: int | None = self.returncode
        return result


def begun(start: Callable[[int], Popen[bytes]], kill: Callable[[Popen[bytes]], None]) -> Popen[bytes]:
    """Start a tree with the descriptor that it tells its beginning through, and wait until its program runs.

    Raises:
        OSError: what goes wrong before that is not the candidate's fault.
    """
    told, ready = os.pipe()
    with os.fdopen(told, "rb") as note:
        try:
            process = start(ready)
        finally:
            os.close(ready)
        word = note.read()
    if word == b"+":
        return process
    kill(process)
    log = process.stderr or process.stdout
    said = word.removeprefix(b"+") or (log.read() if log else b"")
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    raise OSError(f"the box could not be built: {said.decode('utf-8', 'replace').strip() or 'nothing was said'}")


@contextmanager
def files(*contents: bytes) -> Iterator[list[int]]:
    """Bytes as descriptors that a child may read from their beginning."""
    descriptors: list[int] = []
    try:
        for content in contents:
            descriptors.append(os.memfd_create("box"))
            os.write(descriptors[-1], content)
            os.lseek(descriptors[-1], 0, os.SEEK_SET)
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
