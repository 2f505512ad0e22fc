"""What a sandbox keeps of its promises on this machine, tried out in a box of it: the table that `swarm doctor` prints.

Owns the outside of the trial: what is planted, who listens, and whether the box's last process is really gone. What is
tried inside is `inside.py`.
"""

import json
import select
import socket
import sys
import tempfile
import uuid
from pathlib import Path
from subprocess import Popen

from node.sandbox import Box, Sandbox
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


def promises(sandbox: Sandbox) -> dict[str, bool]:
    """Every promise, and whether it held.

    Raises:
        OSError: the box did not start, or said nothing that we understand.
    """
    with tempfile.TemporaryDirectory() as name, socket.create_server(("127.0.0.1", 0)) as listener:
        folder, nonce = Path(name).resolve(), uuid.uuid4().hex
        hidden, scratch, code = folder / "hidden", folder / "scratch", folder / "code"
        scratch.mkdir()
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
            untouched = hidden.read_text() == SECRET
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
