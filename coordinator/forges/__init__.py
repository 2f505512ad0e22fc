"""The port to the place where winners are shared: a branch that others pull from, and a request per promotion.

Every verb may be repeated after a crash: look before create, names are deterministic.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

SHARED_BRANCH = "swarm/best"


@dataclass(frozen=True)
class Request:
    """A promotion as people review it."""

    branch: str  # e.g. "swarm/laptop-1/promotion-1", already a ref of the study's repository
    commit: str  # the tree that was measured
    title: str
    body: str  # Markdown: evidence table, decision line, how to reproduce


@dataclass(frozen=True)
class Opened:
    """What the forge made of a Request."""

    name: str  # e.g. "#3" on GitHub, "local#3"
    url: str
    merged: bool


class Forge(Protocol):
    """Where winners are shared."""

    def prepare(self, repo: Path, commit: str) -> None:
        """Make sure the shared branch exists; create it at `commit` (a commit of the bare repository `repo`) if not.

        Raises:
            PrerequisiteError: wrong token, no such repository, no right to push; says which and how to mend it.
            ForgeError: it cannot be reached now.
        """

    def head(self) -> str:
        """Commit at the tip of the shared branch."""

    def open(self, repo: Path, request: Request) -> Opened:
        """Push the branch from `repo` and open the request; one that the branch has already is returned as it is.

        Raises:
            ForgeError: it cannot be reached now; ask again later.
        """

    def merge(self, repo: Path, request: Request) -> str:
        """Land exactly `request.commit` on the shared branch and return the branch's new tip.

        Raises:
            TreeMismatch: the request's head is no longer the measured commit.
            RequestClosed: a person has closed the request, with this commit.
            ForgeError: it cannot be reached now.
        """

    def publish(self, files: Mapping[str, str], message: str) -> str:
        """Put generated pages (LEADERBOARD.md ...) on the shared branch in one commit; no commit if nothing changed."""

    def fetch(self, folder: Path) -> str:
        """Copy the tree of the shared branch into `folder` and return its commit."""
