"""Where a node keeps things on its disk, and how people call it. Reads the environment of the agent's process."""

import os
import socket
from pathlib import Path

from swarm.records import Setup, digest


def study_home(setup: Setup) -> Path:
    """Where this node keeps what it knows of one study. That of an earlier study of the same name is moved aside."""
    home = node_home() / setup.study
    mark, identity = home / "study", digest("study", setup.study, setup.opened_at)
    if home.exists() and mark.exists() and mark.read_text() != identity:
        home.rename(home.with_name(f"{setup.study}.{mark.read_text()[:8]}"))
    home.mkdir(parents=True, exist_ok=True)
    if not mark.exists():
        mark.write_text(identity)
    return home


def node_home() -> Path:
    """Where this node keeps its identity, spool and data."""
    return Path(os.environ.get("SWARM_NODE_HOME") or Path.home() / ".cache" / "swarm" / "node")


def trusts_code() -> bool:
    """Whether the owner of this machine said that code may run below the sandbox level that it asks for."""
    return os.environ.get("SWARM_TRUST_CODE") == "1"


def node_name() -> str:
    """How people call this node."""
    return os.environ.get("SWARM_NODE_NAME") or socket.gethostname().split(".")[0].lower()
