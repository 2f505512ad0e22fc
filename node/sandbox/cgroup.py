"""Level 3: the box of level 2, whose memory and number of processes the kernel bounds by a control group of its own.

Owns that a box's tree is in its group from its first process on, and that the group ends with it. NOT covered: CPU time
(counted here, not bound), wall time, the log and the disk, which are watched (`node/watch.py`) as at every level.
"""

from subprocess import Popen
from weakref import WeakKeyDictionary

from node.sandbox import Box
from node.sandbox.bwrap import Bwrap
from node.sandbox.groups import Group, make_group, sweep
from swarm.records import Limits


class Cgroup(Bwrap):
    """Starts and ends process trees behind walls, in groups."""

    level: int = 3
    name: str = "cgroup"

    def __init__(self) -> None:
        """Find the program that builds walls, remove what killed nodes left, and make a group to see that one can.

        Raises:
            ValueError: walls cannot be built here.
            OSError: walls can, groups cannot.
        """
        super().__init__()
        self._groups: WeakKeyDictionary[Popen[bytes], Group] = WeakKeyDictionary()
        try:
            sweep()
            make_group(Limits(1.0, 1.0)).remove()
        except OSError as error:
            raise OSError(f"no control group can be made ({error}): memory is watched, not bound") from error

    def start(self, box: Box) -> Popen[bytes]:
        """Build the walls, and start the tree behind them.

        Raises:
            OSError: no such program, or neither walls nor group could be made.
        """
        group = make_group(box.limits)
        try:
            with group.doors() as doors:
                process = self.begin(box, doors)
        except BaseException:
            group.remove()
            raise
        self._groups[process] = group
        return process

    def kill(self, process: Popen[bytes]) -> None:
        """End the whole tree within a second and reap it. Harmless when it has ended already.

        Raises:
            OSError: the kernel does not let go of it (a hung driver); the machine needs a person.
        """
        super().kill(process)
        if process in self._groups:
            self._groups[process].remove()

    def starved(self, process: Popen[bytes]) -> bool:
        """Whether somebody of the tree was ended because it met its limit on memory."""
        return self._groups[process].starved()

    def used_s(self, process: Popen[bytes]) -> float:
        """What the group counted since its first process entered."""
        return self._groups[process].used_s()
