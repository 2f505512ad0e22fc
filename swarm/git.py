"""One git command, safely: swarm/repo.py is its only caller.

Owns the settings and environment that every git process of the swarm gets, its time limit, and what becomes of its
failures. Nothing that a person or a machine has configured for git (hooks, signing, credential helpers, templates)
takes part, so that two nodes cannot differ.

Protective: a token travels in the environment of one git process and is struck out of every error. Not covered: who
else can read the environment of this user's processes.
"""

import base64
import errno
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from swarm.errors import PrerequisiteError, SwarmError

LOCAL_TIMEOUT_S = 60.0  # a verb on our own disk takes milliseconds; a full minute means a dead disk
NETWORK_TIMEOUT_S = 300.0  # a first push of a few megabytes over a slow line
REF_LOCK_WAIT_MS = 2000  # git holds a ref's lock for milliseconds: whoever held it for longer was killed
STDERR_TAIL = 2000  # characters; enough for git's own words, not for a server's web page

SETTINGS = {
    "core.hooksPath": os.devnull,
    "core.filesRefLockTimeout": str(REF_LOCK_WAIT_MS),
    "core.packedRefsTimeout": str(REF_LOCK_WAIT_MS),
    "credential.helper": "",
    "gc.auto": "0",
    "receive.autogc": "false",
}
_PROTOCOLS = "file:git:http:https:ssh"
_LOCK = re.compile(r"Unable to create '(.+?\.lock)': File exists")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")


@dataclass(eq=False)
class GitError(SwarmError):
    """A git command failed."""

    command: str
    stderr: str

    def __str__(self) -> str:
        return f"`{self.command}` failed: {self.stderr or 'it said nothing'}"


class Done(NamedTuple):
    """How a git command ended."""

    code: int
    out: bytes
    err: str


class Git:
    """The git commands of one repository."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(
        self,
        *arguments: str,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        url: str = "",
        token: str = "",
        timeout_s: float = LOCAL_TIMEOUT_S,
    ) -> bytes:
        """Run a command and return its standard output.

        Raises:
            GitError: it failed, or gave no answer in time.
            PrerequisiteError: there is no git, the disk is full, or the repository is not ours.
        """
        environment = {**(env or {}), **_authorization(url, token)}
        done = self.attempt(arguments, stdin, environment, timeout_s)
        if done.code and self._remove_dead_lock(done.err, url):
            done = self.attempt(arguments, stdin, environment, timeout_s)
        if done.code:
            raise self.error(arguments, done.err, token)
        return done.out

    def attempt(
        self,
        arguments: Sequence[str],
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout_s: float = LOCAL_TIMEOUT_S,
    ) -> Done:
        """Run a command whose exit status is an answer."""
        settings = [argument for key, value in SETTINGS.items() for argument in ("-c", f"{key}={value}")]
        return _run(["git", f"--git-dir={self.path}", *settings, *arguments], stdin, _environment(env or {}), timeout_s)

    def _remove_dead_lock(self, stderr: str, url: str) -> bool:
        """Remove the lock that a killed git left behind, here or in a local repository pushed to."""
        match = _LOCK.search(stderr)
        lock = Path(match[1]) if match else None
        roots = [self.path, *([Path(url).resolve()] if url and "://" not in url else [])]
        if lock is None or not any(lock.resolve().is_relative_to(root) for root in roots):
            return False
        lock.unlink(missing_ok=True)  # git has waited REF_LOCK_WAIT_MS for its holder
        return True

    def error(self, arguments: Sequence[str], stderr: str, token: str = "") -> SwarmError:
        """What a failed command means to the caller."""
        if "No space left on device" in stderr or "Disk quota exceeded" in stderr:
            return _full_disk(self.path)
        if "dubious ownership" in stderr:
            return PrerequisiteError(f"{self.path} belongs to another user; make it yours with `chown -R`")
        command = "git " + " ".join(arguments)
        return GitError(_scrubbed(command, token), _scrubbed(stderr.strip(), token)[-STDERR_TAIL:])


def _run(command: Sequence[str], stdin: bytes, env: Mapping[str, str], timeout_s: float) -> Done:
    # Its own session: a Ctrl-C meant for the swarm does not cut a push in two, and its helpers can be killed with it.
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env),
            start_new_session=True,
        )
    except FileNotFoundError:
        raise PrerequisiteError("git was not found; install it (e.g. `apt install git`) and try again") from None
    with process:
        try:
            out, err = process.communicate(stdin, timeout=timeout_s)
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return Done(124, b"", f"no answer within {timeout_s:.0f} s")
    return Done(process.returncode, out, err.decode(errors="replace"))


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "SSH_ASKPASS"))}
    return inherited | {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": _PROTOCOLS,
        "LC_ALL": "C",
        **extra,
    }


def _authorization(url: str, token: str) -> dict[str, str]:
    """The token as a header for this URL only; the environment, unlike argv, is not shown to other users by `ps`."""
    if not token:
        return {}
    basic = _basic(token)
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"http.{url}.extraHeader",
        "GIT_CONFIG_VALUE_0": f"Authorization: Basic {basic}",
    }


def _basic(token: str) -> str:
    return base64.b64encode(f"x-access-token:{token}".encode()).decode()


def _scrubbed(text: str, token: str) -> str:
    for secret in (token, _basic(token)) if token else ():
        text = text.replace(secret, "***")
    return _CREDENTIALS.sub("***@", text)


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turn a full disk or a forbidden folder into a sentence that says how to mend it."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full_disk(path) from error
        if isinstance(error, PermissionError):
            raise PrerequisiteError(
                f"{path} cannot be written: {error}; mend its permissions or name another"
            ) from error
        raise


def _full_disk(path: Path) -> PrerequisiteError:
    return PrerequisiteError(f"the disk that holds {path} is full; free some space and run the same command again")
