"""What a sandbox keeps of its promises on this machine, tried out in a box of it: the table that `swarm doctor` prints.

Owns the outside of the trial: what is planted, who listens, and whether the box's last process is really gone; and
which level the sandbox has with what it keeps. What is tried inside is `inside.py`.
"""

import json
import select
import socket
import sys
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from subprocess import Popen
from typing import NamedTuple

from node.sandbox import Box, Sandbox
from node.sandbox.bwrap import Bwrap
from node.sandbox.inside import MADE
from node.sandbox.landlock import Landlock
from swarm.records import Limits

INSIDE = Path(__file__).with_name("inside.py")
SECRET = "secret"
LIMIT_S = 20.0
TRIED_MB, TRIED_PROCESSES = 100, 20  # of a box that tries to have more
DIES_WITHIN_S = 1.0
# What a box is held to by the kernel, and how more of it is taken.
BOUND = {
    "memory has a hard limit": f"taken = b'x' * {2 * TRIED_MB * 2**20}",
    "processes have a hard limit": f"for _ in range({2 * TRIED_PROCESSES}):\n if os.fork() == 0: signal.pause()",
}
# What a level does not promise: at the first, that files are there can be seen, not what they hold.
UNPROMISED = {2: {*BOUND}, 1: {*BOUND, "other files are hidden"}}
# Where only root may read Python itself, boxes of a node that is root are root's: that is told, and lowers no level.
NOT_ROOT = "not root outside"


class Kept(NamedTuple):
    """What a sandbox keeps here."""

    held: Mapping[str, bool]  # every promise
    level: int  # the sandbox's, or the highest below it of which all is kept
    lacks: str  # in a sentence what was promised and is not kept; empty when all is


def kept(sandbox: Sandbox) -> Kept:
    """Try all of it out: 0.3 s. What a busy machine was too slow for is tried once more.

    Raises:
        OSError: the box did not start, or said nothing that we understand.
    """
    held = promises(sandbox)
    if level_of(sandbox.level, held) < sandbox.level:
        held = {promise: again or held[promise] for promise, again in promises(sandbox).items()}
    level = level_of(sandbox.level, held)
    return Kept(held, level, _lacks(sandbox, held, level))


def _lacks(sandbox: Sandbox, held: Mapping[str, bool], level: int) -> str:
    unpromised = UNPROMISED.get(sandbox.level, set())
    broken = [promise for promise in held if promise not in unpromised and not held[promise]]
    if not broken or sandbox.level == 0:
        return ""
    why = f" ({sandbox.slot.lacks})" if isinstance(sandbox, Bwrap | Landlock) and sandbox.slot.lacks else ""
    counts = f"; runs here count as level {level}" if level < sandbox.level else ""
    return f"sandbox {sandbox.name} does not keep here: {', '.join(broken)}{why}{counts}"


def level_of(level: int, held: Mapping[str, bool]) -> int:
    """The highest level, up to this one, all of whose promises were kept."""
    broken = {promise for promise, kept in held.items() if not kept} - {NOT_ROOT}
    return next((below for below in range(level, 0, -1) if broken <= UNPROMISED.get(below, set())), 0)


def promises(sandbox: Sandbox) -> dict[str, bool]:
    """Every promise, and whether it held.

    Raises:
        OSError: the box did not start, or said nothing that we understand.
    """
    with tempfile.TemporaryDirectory() as name, socket.create_server(("127.0.0.1", 0)) as listener:
        folder, nonce = Path(name).resolve(), uuid.uuid4().hex
        hidden, scratch, code = folder / "hidden", folder / "scratch", folder / "code"
        scratch.mkdir()
        folder.chmod(0o711)  # a box of another user has to pass
        hidden.write_text(SECRET)
        code.mkdir()
        program = code / INSIDE.name
        program.write_bytes(INSIDE.read_bytes())  # a copy: without walls it is written to
        argv = (sys.executable, "-I", str(program), str(hidden), str(listener.getsockname()[1]), nonce)
        process = sandbox.start(Box(argv, (code,), scratch, Limits(LIMIT_S, LIMIT_S), {"NONCE": nonce}))
        with process:
            try:
                told = _first_line(process)
                process.wait(LIMIT_S)
            finally:
                sandbox.kill(process)
            untouched, made = hidden.read_text() == SECRET, scratch / MADE
            told |= {NOT_ROOT: made.exists() and made.stat().st_uid != 0}
            told |= {"other files cannot be written": untouched, "the whole tree dies": _silent(process)}
        return {**told, **{promise: not _had(sandbox, scratch, what) for promise, what in BOUND.items()}}


def _had(sandbox: Sandbox, scratch: Path, attempt: str) -> bool:
    """Whether a box of few limits, which nobody watches, had more than they allow."""
    limits = Limits(LIMIT_S, LIMIT_S, memory_mb=TRIED_MB, processes=TRIED_PROCESSES)
    code = f"import os, signal\n{attempt}\nos.write(1, b'had')\nsignal.pause()"
    process = sandbox.start(Box((sys.executable, "-I", "-S", "-c", code), (), scratch, limits))
    with process:
        assert process.stdout is not None, "a box without answers has its log there"
        try:
            ready, _, _ = select.select([process.stdout], [], [], LIMIT_S)
            return bool(ready) and process.stdout.read(3) == b"had"
        finally:
            sandbox.kill(process)


def _first_line(process: Popen[bytes]) -> dict[str, bool]:
    assert process.stdout is not None, "a box without answers has its log there"
    ready, _, _ = select.select([process.stdout], [], [], LIMIT_S)
    line = process.stdout.readline() if ready else b""
    try:
        told = json.loads(line)
    except ValueError as error:
        raise OSError(f"the box's self-test said {line[:200]!r} and no table") from error
    return {str(promise): bool(held) for promise, held in told.items()}


def _silent(process: Popen[bytes]) -> bool:
    """Whether nobody is left who holds the log."""
    assert process.stdout is not None, "a box without answers has its log there"
    ready, _, _ = select.select([process.stdout], [], [], DIES_WITHIN_S)
    return bool(ready) and process.stdout.read(1) == b""
