"""Every error the swarm raises on purpose.

SwarmError
├── PrerequisiteError      the user can fix it: printed without a traceback, ends with the fix
│   ├── ConfigError        a TOML file says something that cannot be obeyed
│   └── TaskError          a task folder is not what it claims to be
├── ProposalError          a proposer gave nothing usable; costs no trial
├── ForgeError             the forge refused or could not be reached
│   └── RequestClosed      a person closed the request: a veto
├── ClusterError           Ray or a node did not answer
├── TreeMismatch           about to land another tree than the one that was measured
└── StaleEpoch             an older coordinator spoke to an agent
"""

from dataclasses import dataclass


class SwarmError(Exception):
    """Base of everything below."""


class PrerequisiteError(SwarmError):
    """Something the user can mend. The message names what, where, and what to do next."""


class ConfigError(PrerequisiteError):
    """A configuration file or `--set` cannot be obeyed."""


class TaskError(PrerequisiteError):
    """A task folder lacks something or its frozen files changed."""


class ProposalError(SwarmError):
    """A proposer returned nothing that can be tried."""


class ForgeError(SwarmError):
    """The forge refused a request or could not be reached."""


class RequestClosed(ForgeError):
    """A person closed the request of what was about to land."""


class ClusterError(SwarmError):
    """Ray, the bridge or an agent did not answer as it should."""


@dataclass
class TreeMismatch(SwarmError):
    """The tree about to land is not the tree that was measured."""

    experiment: str
    measured: str
    landing: str

    def __str__(self) -> str:
        return (
            f"experiment {self.experiment}: about to land tree {self.landing[:12]}, "
            f"but {self.measured[:12]} was measured; see `swarm show {self.experiment[:8]}`"
        )


@dataclass
class StaleEpoch(SwarmError):
    """A coordinator with an older epoch gave orders; a newer one has taken over."""

    got: int
    newest: int

    def __str__(self) -> str:
        return f"orders of epoch {self.got} refused: epoch {self.newest} has taken over"
