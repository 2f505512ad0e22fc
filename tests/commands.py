"""`swarm` as a person gives it: arguments and a folder in; exit code, output and errors out."""

import io
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from swarm.cli import main

HOME = Path(__file__).resolve().parents[1]
PROGRAM = (sys.executable, "-c", "from swarm.cli import main; main()")


class Said(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one refusal of a mistake: exit code 2, nothing but words, no traceback."""
        assert self.code == 2, self
        assert self.err.startswith(("swarm: ", "Usage: ")), self
        assert "Traceback" not in self.err
        return self.err


def swarm(folder: Path, *arguments: str, columns: int = 80, env: Mapping[str, str] | None = None) -> Said:
    """Run a command in this process, through the entry point of the program."""
    out, err = _stream(), _stream()
    with (
        chdir(folder),
        patch.dict(os.environ, {"COLUMNS": str(columns), **(env or {})}),
        patch.object(sys, "argv", ["swarm", *arguments]),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Said(code, _text(out), _text(err))


def start(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a command as a process of its own."""
    return subprocess.Popen(
        (*PROGRAM, *arguments),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(HOME), "COLUMNS": "100", **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def swarm_process(folder: Path, *arguments: str, env: Mapping[str, str] | None = None, timeout_s: float = 60) -> Said:
    """Run a command as a process of its own, to its end."""
    with start(folder, *arguments, env=env) as process:
        out, err = process.communicate(timeout=timeout_s)
        return Said(process.returncode, out, err)


def _stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode()
