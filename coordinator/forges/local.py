"""The forge that needs nothing: a bare git repository with the same verbs as a hosted one.

Owns the shared branch, one branch per request, and the branch `swarm/requests` on which each request is a page for
people and a few lines for programs: `git show swarm/requests:0001.md`. To veto a request, commit `"state": "closed"` to
its `.json` there. Must not know how a promotion is decided or told.

Every verb may be killed anywhere and repeated: a ref moves last, and only from where it was seen.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from coordinator.forges import SHARED_BRANCH, Opened, Request
from coordinator.forges.landing import (
    AUTHOR,
    SHARED_REF,
    forge_errors,
    has_landed,
    landing_commit,
    mismatch,
    refuse_unrelated,
)
from swarm.errors import ForgeError, RequestClosed
from swarm.records import STRICT
from swarm.repo import Repo

REQUESTS_BRANCH = "swarm/requests"


@dataclass(frozen=True)
class _Page:
    """A request as it stands on `swarm/requests`."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    number: int
    state: Literal["open", "merged", "closed"]
    branch: str
    commit: str
    title: str
    landed: str = ""  # tip of the shared branch after the merge

    @property
    def name(self) -> str:
        return f"local#{self.number}"

    def files(self, body: str) -> dict[str, str]:
        stem = f"{self.number:04d}"
        return {f"{stem}.json": json.dumps(asdict(self), indent=2) + "\n", f"{stem}.md": self._text(body)}

    def _text(self, body: str) -> str:
        landed = f", landed as {self.landed}" if self.landed else ""
        changes = f"`git show {self.commit}`"
        facts = f"- state: {self.state}{landed}\n- branch: {self.branch} at {self.commit}\n- changes: {changes}"
        return f"# {self.name}: {self.title}\n\n{facts}\n\n{body}"


_PAGE = TypeAdapter(_Page)


class LocalForge:
    """A forge in one folder."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Speak of the bare repository at `path`; `prepare` makes it."""
        self._path = path.resolve()
        self._repo = Repo(self._path)
        self._clock = clock

    def prepare(self, repo: Path, commit: str) -> None:
        """Make the repository and its shared branch, if they are not there."""
        with forge_errors(str(self._path)):
            Repo.create(self._path, head=SHARED_BRANCH)
            study, shared = Repo(repo), self._repo.ref(SHARED_BRANCH)
            if shared is None:
                study.push(str(self._path), [f"{commit}:refs/heads/{SHARED_BRANCH}"])
                return
            study.fetch(str(self._path), f"+refs/heads/{SHARED_BRANCH}:{SHARED_REF}")
            refuse_unrelated(study, shared, commit, str(self._path))

    def head(self) -> str:
        """Commit at the tip of the shared branch."""
        with forge_errors(str(self._path)):
            head = self._repo.ref(SHARED_BRANCH)
        if head is None:
            raise ForgeError(f"forge {self._path} has no branch {SHARED_BRANCH}; it was not prepared, or was removed")
        return head

    def open(self, repo: Path, request: Request) -> Opened:
        """Push the branch, then write the request's page, unless there is one."""
        with forge_errors(str(self._path)):
            page = self._find(request.branch)
            if page is None:
                Repo(repo).push(str(self._path), [f"{request.commit}:refs/heads/{request.branch}"], force=True)
                number = 1 + max((page.number for page in self._pages()), default=0)
                page = _Page(number, "open", request.branch, request.commit, request.title)
                self._write(page, request.body, f"Open {page.name}")
        url = f"git --git-dir={self._path} show {REQUESTS_BRANCH}:{page.number:04d}.md"
        return Opened(page.name, url, merged=page.state == "merged")

    def merge(self, repo: Path, request: Request) -> str:
        """Move the shared branch to the measured commit, or to its merge with the pages published meanwhile."""
        with forge_errors(str(self._path)):
            page, shared = self._find(request.branch), self.head()
            if page is None:
                raise ForgeError(f"forge {self._path} has no request of {request.branch}; open it first")
            if not has_landed(self._repo, request, shared):
                self._refuse(page, Repo(repo), request)
                landing = landing_commit(self._repo, request, shared, self._clock())
                self._repo.set_ref(SHARED_BRANCH, landing, old=shared)
                shared = landing
            if page.state != "merged":
                merged = replace(page, state="merged", landed=shared)
                self._write(merged, request.body, f"Merge {page.name}")
            return shared

    def _refuse(self, page: _Page, study: Repo, request: Request) -> None:
        head = self._repo.ref(request.branch)
        if page.state == "closed" and page.commit == request.commit:
            raise RequestClosed(f"{page.name} was closed by a person")
        if page.state != "open" or head != request.commit:
            raise mismatch(study, request, head or "nothing")

    def publish(self, files: Mapping[str, str], message: str) -> str:
        """Commit the pages that differ from what is there."""
        with forge_errors(str(self._path)):
            shared = self.head()
            there = self._repo.tree(shared)
            changed = {path: text for path, text in files.items() if there.get(path) != text.encode()}
            if not changed:
                return shared
            page = self._repo.commit(changed, parents=[shared], message=message, author=AUTHOR, at=self._clock())
            self._repo.set_ref(SHARED_BRANCH, page, old=shared)
            return page

    def fetch(self, folder: Path) -> str:
        """Copy the tree of the shared branch into `folder`."""
        with forge_errors(str(self._path)):
            shared = self.head()
            self._repo.checkout(shared, folder)
            return shared

    # --- the pages on `swarm/requests` ---

    def _pages(self) -> list[_Page]:
        tip = self._repo.ref(REQUESTS_BRANCH)
        tree = self._repo.tree(tip) if tip else {}
        return [self._parse(path, text) for path, text in sorted(tree.items()) if path.endswith(".json")]

    def _parse(self, path: str, text: bytes) -> _Page:
        try:
            return _PAGE.validate_json(text)
        except ValidationError as error:
            raise ForgeError(f"forge {self._path}: {REQUESTS_BRANCH}:{path} is no request: {error}") from error

    def _find(self, branch: str) -> _Page | None:
        return next((page for page in self._pages() if page.branch == branch), None)

    def _write(self, page: _Page, body: str, message: str) -> None:
        tip = self._repo.ref(REQUESTS_BRANCH)
        parents = [tip] if tip else []
        commit = self._repo.commit(page.files(body), parents=parents, message=message, author=AUTHOR, at=self._clock())
        self._repo.set_ref(REQUESTS_BRANCH, commit, old=tip or "")
