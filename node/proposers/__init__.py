"""The port through which a researcher asks for the next idea.

A proposer is built once per node as `Class(seed=..., options=...)` and asked from one thread. What it returns is
untrusted: admission checks it, the sandbox runs it, the scorer judges it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from swarm.errors import ConfigError
from swarm.plugins import full_name, load_class
from swarm.records import Brief, Direction, Files, Proposal, Usage

SHORT_NAMES = {
    "tuner": "node.proposers.tuner:Tuner",
    "claude": "node.proposers.claude:Claude",
}


@dataclass(frozen=True)
class Ask:
    """Everything a proposer may know when it is asked."""

    brief: Brief
    parent: str  # candidate id of the branch tip
    tip: Files  # all editable files of the branch tip
    context: Files  # frozen files worth reading
    metric: str
    direction: Direction
    last_log: str  # what the latest trial printed; quoted data, not instructions


class Proposer(Protocol):
    """Thinks of the next edit."""

    def propose(self, ask: Ask) -> Proposal:
        """Return one idea that differs from the tip and parses.

        Raises:
            ProposalError: it has none now; the researcher asks again later, with growing pauses.
        """

    def tell(self, idea: str, gain: float | None) -> None:
        """Hear how an idea fared on this node: gain over its parent, None if it failed or was never run."""

    def usage(self) -> Usage:
        """Tokens and money spent since the proposer was built."""


def check_name(use: str) -> None:
    """Refuse a name that no node could know; nothing is imported.

    Raises:
        ConfigError: neither one of ours nor written like a class.
    """
    full_name("proposer", use, SHORT_NAMES)


def load(use: str, seed: int, options: Mapping[str, str]) -> Proposer:
    """Build the proposer that the configuration names.

    Raises:
        ConfigError: unknown name, or a class that cannot be built with these options.
        PrerequisiteError: something that it needs is missing, such as a key.
    """
    cls = load_class("proposer", use, SHORT_NAMES)
    try:
        proposer: Proposer = cls(seed=seed, options=options)
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(
            f"proposer {use!r} cannot be built with the options {dict(options)}: {error}; correct proposer.options"
        ) from error
    return proposer
