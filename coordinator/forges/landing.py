"""Which tree may land on the shared branch. Common to every forge, so that they differ in nothing that matters.

Owns the rule: every file that was measured lands byte for byte. What came to the shared branch meanwhile is kept when
it is a page (LEADERBOARD.md, program.md, records) or a file that the measured tree does not have, and stops the landing
when it is a measured file. Must not know where a forge lives or what a request looks like there.

Not covered: a foreign file that is new, is not part of the measured tree, and changes what the measured files do.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import getLogger
from pathlib import PurePosixPath

from coordinator.forges import SHARED_BRANCH, Request
from swarm.errors import ForgeError, PrerequisiteError, TreeMismatch
from swarm.repo import GitError, RefMoved, Repo

AUTHOR = "swarm <swarm@localhost>"
SHARED_REF = "refs/swarm/shared"
"""Where the study's repository keeps the last seen tip of the shared branch."""

RECENT = 200  # commits; a landing is looked up again within minutes, one page is published every half minute
Tree = Mapping[str, bytes]
_PAGES = {".md", ".tsv", ".svg", ".png"}
_log = getLogger(__name__)


def is_page(path: str) -> bool:
    """Whether a file is for people: generated or written beside the code, never part of what was measured."""
    return PurePosixPath(path).suffix in _PAGES or path.startswith("records/")


def disagreements(landing: Tree, measured: Tree) -> list[str]:
    """Measured files that would land, or have landed, with other bytes."""
    return sorted(path for path, text in measured.items() if not is_page(path) and landing.get(path) != text)


def changes_to_land(base: Tree, shared: Tree, measured: Tree) -> dict[str, bytes | None]:
    """What to put on top of the shared tree so that the measured tree lands; None removes a file.

    A file that somebody else changed on the shared branch is left as it is; `disagreements` finds it.
    """
    mine = {path for path in measured.keys() | base.keys() if measured.get(path) != base.get(path)}
    untouched = {path for path in mine if shared.get(path) == base.get(path)}
    return {path: measured.get(path) for path in untouched}


def landing_commit(repo: Repo, request: Request, shared: str, at: float) -> str:
    """The commit to move the shared branch to: the measured one, or a merge of it with the pages published meanwhile.

    Raises:
        TreeMismatch: another tree than the measured one would land.
    """
    if repo.is_ancestor(shared, request.commit):
        return request.commit
    changes = landing_changes(repo, request, shared)
    message = f"Merge {request.branch}\n\n{request.title}\n"
    return repo.commit(changes, parents=[shared, request.commit], message=message, author=AUTHOR, at=at)


def landing_changes(repo: Repo, request: Request, shared: str) -> dict[str, bytes | None]:
    """What landing the request changes on the shared branch.

    Raises:
        TreeMismatch: another tree than the measured one would land.
    """
    ours, measured = repo.tree(shared), repo.tree(request.commit)
    changes = changes_to_land(_base(repo, request, shared), ours, measured)
    landing = {path: text for path, text in {**ours, **changes}.items() if text is not None}
    refuse_disagreement(repo, request, landing, shared)
    return changes


def has_landed(repo: Repo, request: Request, shared: str) -> bool:
    """Whether the shared branch holds the measured commit already.

    Raises:
        TreeMismatch: it does, but other files came with it, and nobody has put that right since.
    """
    if repo.ref(request.commit) is None or not repo.is_ancestor(request.commit, shared):
        return False
    merge = next((commit.sha for commit in repo.log(shared, RECENT) if request.commit in commit.parents[1:]), None)
    if merge and disagreements(repo.tree(shared), repo.tree(request.commit)):
        refuse_disagreement(repo, request, repo.tree(merge), merge)
    return True


def _base(repo: Repo, request: Request, shared: str) -> Tree:
    """What the request starts from: its parent if the shared branch holds just that (also squashed), else the fork."""
    parent = next(iter(repo.log(request.commit, 1)[0].parents), None)
    if parent and not disagreements(repo.tree(shared), repo.tree(parent)):
        return repo.tree(parent)
    ancestor = repo.merge_base(shared, request.commit)
    return repo.tree(ancestor) if ancestor else {}


def refuse_disagreement(repo: Repo, request: Request, landing: Tree, shared: str) -> None:
    """Raise TreeMismatch unless every measured file lands as it was measured."""
    if foreign := disagreements(landing, repo.tree(request.commit)):
        _log.warning("%s changed on %s since %s was measured", ", ".join(foreign), SHARED_BRANCH, request.commit[:12])
        raise mismatch(repo, request, shared)


def mismatch(repo: Repo, request: Request, landing: str) -> TreeMismatch:
    """The error that says: this is not what was measured."""
    commit = next(iter(repo.log(request.commit, 1)), None)
    experiment = commit.trailer("Swarm-Experiment") if commit else ""
    return TreeMismatch(experiment=experiment or request.branch, measured=request.commit, landing=landing)


def refuse_unrelated(repo: Repo, shared: str, commit: str, place: str) -> None:
    """Raise PrerequisiteError when the shared branch there is somebody else's history.

    No request could be opened against it, and a first promotion would replace another study's champion.
    """
    if repo.merge_base(shared, commit) is None:
        raise PrerequisiteError(
            f"the branch {SHARED_BRANCH} of {place} belongs to another study: no commit in common with this one; "
            f"use another repository, or rename that branch there"
        )


@contextmanager
def forge_errors(place: str) -> Iterator[None]:
    """What git could not do at a forge is the forge's failure: named, and to be tried again later."""
    try:
        yield
    except (GitError, RefMoved) as error:
        raise ForgeError(f"forge {place}: {error}") from error
