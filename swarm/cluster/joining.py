"""Keeping this machine in the cluster: start Ray, wait, start it again when it ends, until asked to stop."""

import logging
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from swarm.cluster.processes import Started, sweep
from swarm.errors import ClusterError

log = logging.getLogger(__name__)

_SHORTEST_S, _LONGEST_S = 2.0, 60.0
_STEADY_S = 60.0  # a node that was up this long starts again with the shortest wait


def join_loop(start: Callable[[], Started], home: Path, *, stop: threading.Event | None = None) -> None:
    """Keep a node joined until SIGTERM, SIGINT or `stop`; then end all that runs in its home.

    Args:
        start: starts the node, or adopts one: `start_node` with its arguments bound.
        home: the directory of the node.
        stop: set by somebody to end the loop; without it only signals do.

    Raises:
        PrerequisiteError: the node can not join before a person mends something.
    """
    stop = stop or threading.Event()
    wait_s = _SHORTEST_S
    with _stopped_by_signals(stop):
        try:
            while not stop.is_set():
                if _stay_joined(start, stop) > _STEADY_S:
                    wait_s = _SHORTEST_S
                sweep(home)  # orphans of what died: Ray's helpers take up to 30 s to notice
                if stop.wait(wait_s * random.uniform(0.5, 1.0)):  # jitter: a lab's nodes do not return all at once
                    break
                wait_s = min(2 * wait_s, _LONGEST_S)
        finally:
            sweep(home)


def _stay_joined(start: Callable[[], Started], stop: threading.Event) -> float:
    """Start the node and wait for its end. Returns for how long it was joined."""
    try:
        started = start()
    except ClusterError as error:
        log.warning("could not join: %s", error)
        return 0.0
    log.info("joined %s as %s", started.address, started.name)
    joined_at = time.monotonic()
    while started.alive() and not stop.wait(0.5):
        pass
    if not stop.is_set():
        log.warning("lost the cluster at %s", started.address)
    return time.monotonic() - joined_at


@contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set the event; in a thread other than the main one Python does not allow that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {n: signal.signal(n, lambda *_: stop.set()) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
