"""The port to the place where candidates run.

A sandbox turns a Box (what may be seen, written and used) into a running process tree and promises to end the
whole tree. `bare` offers process group, limits and an empty environment, and no isolation at all: it is level 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Protocol

from swarm.records import Limits


@dataclass(frozen=True)
class Box:
    """What one process tree may see and use."""

    argv: tuple[str, ...]
    readable: tuple[Path, ...]  # files and folders, read-only, nothing else of the user's
    scratch: Path  # the only writable folder, and the working directory
    limits: Limits
    environment: Mapping[str, str] = field(default_factory=dict)
    # True: stdin and stdout are binary pipes for the scorer, stderr is the log. False: stdout and stderr are the log.
    answers: bool = False
    # Behind walls: no new process, only threads, so that all CPU time is counted. Level 0 cannot hold it.
    threads_only: bool = False
    library: Path | None = None  # walls show it in place of this Python's standard library, and no other one


class Sandbox(Protocol):
    """Starts and ends process trees."""

    level: int
    name: str

    def start(self, box: Box) -> Popen[bytes]:
        """Start the tree.

        Raises:
            OSError: the machinery failed (no such program, no memory); not the candidate's fault.
        """

    def kill(self, process: Popen[bytes]) -> None:
        """End the whole tree within a second and reap it. Harmless when it has ended already."""

    def starved(self, process: Popen[bytes]) -> bool:
        """Whether the kernel ended somebody of the tree at its limit on memory; False where nobody but us holds it."""

    def used_s(self, process: Popen[bytes]) -> float:
        """CPU seconds that the kernel counted of the tree, with children that nobody collected; 0 where none."""
