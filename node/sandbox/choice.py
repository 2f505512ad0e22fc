"""Which sandbox a node uses, and at which level: the one that is named, or the best that this machine offers."""

import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from node.sandbox import Box, Sandbox
from node.sandbox.bare import Bare
from node.sandbox.bwrap import Bwrap
from node.sandbox.cgroup import Cgroup
from node.sandbox.landlock import Landlock
from node.sandbox.promises import Kept, kept
from swarm.errors import ConfigError, PrerequisiteError
from swarm.plugins import full_name, load_class
from swarm.records import Limits
from swarm.trust import too_open

AUTO = "auto"
SHORT_NAMES = {
    AUTO: "node.sandbox.cgroup:Cgroup",  # or less, where that does not start
    "cgroup": "node.sandbox.cgroup:Cgroup",
    "bwrap": "node.sandbox.bwrap:Bwrap",
    "landlock": "node.sandbox.landlock:Landlock",
    "bare": "node.sandbox.bare:Bare",
}
_found: dict[str, Kept] = {}
PROBE_S = 20.0  # an empty box takes 0.1 s on an idle machine


class Best(NamedTuple):
    """The best sandbox of this machine, and why it is no better."""

    make: Callable[[], Sandbox]
    lacks: str  # empty when nothing is missing


def check_name(use: str) -> None:
    """Refuse a name that no node could know; nothing is imported.

    Raises:
        ConfigError: neither one of ours nor written like a class.
    """
    full_name("sandbox", use, SHORT_NAMES)


def choose_sandbox(use: str, least_level: int = 0) -> Sandbox:
    """Build the sandbox that the configuration names.

    Raises:
        ConfigError: no such sandbox, or it cannot be built.
        PrerequisiteError: code that asks for `least_level` may not run in it.
    """
    sandbox = best().make() if use == AUTO else _build(use)
    if refusal := too_open(sandbox.name, sandbox.level, least_level):
        raise PrerequisiteError(refusal)
    return sandbox


def tried_sandbox(use: str, least_level: int = 0) -> tuple[Sandbox, Kept]:
    """The same, and what it keeps of its promises here; where it keeps less than its level, less code may run in it.

    Raises:
        ConfigError: no such sandbox, it cannot be built, or a box of it does not run; or it was named, and keeps less.
        PrerequisiteError: code that asks for `least_level` may not run in it.
    """
    sandbox = choose_sandbox(use, least_level)
    found = _kept(use, sandbox)
    if use != AUTO and found.level < sandbox.level:
        raise ConfigError(
            f"{found.lacks}, and nodes.sandbox = {use!r} asks for level {sandbox.level}; see `swarm doctor`"
        )
    if refusal := too_open(sandbox.name, found.level, least_level):
        raise PrerequisiteError(f"{refusal} ({found.lacks})")
    return sandbox, found


def _kept(use: str, sandbox: Sandbox) -> Kept:
    """Tried once per process; level 0 promises nothing."""
    if sandbox.level == 0:
        return Kept({}, 0, "")
    if use not in _found:
        try:
            _found[use] = kept(sandbox)
        except OSError as error:
            raise ConfigError(f"sandbox {sandbox.name} could not be tried out: {error}; see `swarm doctor`") from error
    return _found[use]


def _build(use: str) -> Sandbox:
    cls = load_class("sandbox", use, SHORT_NAMES)
    try:
        sandbox: Sandbox = cls()
    except (TypeError, ValueError, OSError) as error:
        raise ConfigError(f"sandbox {use!r} cannot be built: {error}; correct nodes.sandbox") from error
    return sandbox


@cache
def best() -> Best:
    """The first of them, from the best down, that starts an empty box here. Tried once per process."""
    if not sys.platform.startswith("linux"):
        return Best(Bare, "walls need Linux; use Linux or WSL2")
    lacks: dict[str, None] = {}  # level 3 lacks what level 2 does: said once
    for kind in (Cgroup, Bwrap, Landlock):
        try:
            starts(kind())
        except (OSError, ValueError) as error:
            lacks[str(error)] = None
        else:
            return Best(kind, "; ".join(lacks))
    return Best(Bare, "; ".join(lacks))


def starts(sandbox: Sandbox) -> None:
    """Start an empty box, and end it.

    Raises:
        OSError: it does not start.
    """
    with tempfile.TemporaryDirectory() as folder:
        argv = (sys.executable, "-I", "-S", "-c", "")
        process = sandbox.start(Box(argv, (), Path(folder).resolve(), Limits(PROBE_S, PROBE_S)))
        with process:
            try:
                code = process.wait(PROBE_S)
            finally:
                sandbox.kill(process)
    if code != 0:
        raise OSError(f"an empty box ended with code {code}")
