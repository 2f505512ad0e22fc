"""The forge on GitHub: the only home of PyGithub. Git carries the commits, the REST API the pull requests.

Owns how a promotion becomes a pull request and lands, and one clear sentence for every way in which GitHub can refuse.
Must not know how a promotion is decided or told. Nothing is remembered between calls: people merge, close and push
there too, so each verb reads GitHub first, and a verb that was killed anywhere can be repeated.

Protective: the token goes into HTTP headers only, of the API and of git; `pull.merge` names the measured commit, and
the tree is compared before and after. Not covered: a push by a person to a measured file within the second of the merge
is found only after it; it is then reported until a person puts it right, not undone.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from github import Auth, Github, GithubException, InputGitTreeElement, RateLimitExceededException
from github.PullRequest import PullRequest
from github.Repository import Repository
from urllib3.util import Retry

from coordinator.forges import SHARED_BRANCH, Opened, Request
from coordinator.forges.landing import (
    SHARED_REF,
    forge_errors,
    has_landed,
    landing_changes,
    mismatch,
    refuse_disagreement,
    refuse_unrelated,
)
from swarm.errors import ForgeError, PrerequisiteError, RequestClosed, SwarmError
from swarm.repo import GitError, Repo

API_URL = "https://api.github.com"
TIMEOUT_S = 20  # of one API call; GitHub itself gives up after 10 s
# Two quick repeats carry reads over a hiccup. Never wait for a rate limit here: the caller comes back on its own time.
_RETRY = Retry(
    total=2,
    backoff_factor=0.1,
    status_forcelist=(500, 502, 503, 504),
    allowed_methods=("GET",),
    respect_retry_after_header=False,
    raise_on_status=False,
)
_RIGHTS = "it needs write access to 'Contents' and 'Pull requests' of that repository"


class GitHubForge:
    """A forge in a repository on GitHub, or on anything that speaks its protocol."""

    def __init__(self, repository: str, token: str, base_url: str = API_URL, git_url: str | None = None) -> None:
        """Speak of `repository` ("owner/name"); nothing is asked of GitHub yet.

        Args:
            repository: "owner/name".
            token: fine-grained or classic, with write access to contents and pull requests.
            base_url: of the REST API; "https://HOST/api/v3" on GitHub Enterprise.
            git_url: what git pushes to and fetches from; by default the same host over HTTPS.
        """
        if repository.count("/") != 1 or not all(repository.split("/")):
            raise PrerequisiteError(f"forge.repository is {repository!r}; write it as 'owner/name'")
        if not token:
            raise PrerequisiteError(f"no token for {repository}; put one into the environment variable GITHUB_TOKEN")
        self._name, self._token = repository, token
        self._git_url = git_url or _git_url(base_url, repository)
        # Pauses between calls (0.25 s, 1 s after writes by default) guard bulk jobs; we make a handful per promotion.
        self._api = Github(
            auth=Auth.Token(token),
            base_url=base_url,
            timeout=TIMEOUT_S,
            retry=_RETRY,
            seconds_between_requests=None,
            seconds_between_writes=None,
        )

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        self._api.close()

    def prepare(self, repo: Path, commit: str) -> None:
        """Check token, repository and rights, and make the shared branch if it is not there."""
        study = Repo(repo)
        with self._asking(PrerequisiteError):
            repository = self._api.get_repo(self._name)
            self._check_rights(repository)
            shared = self._tip(repository)
            if shared is None:
                study.push(self._git_url, [f"{commit}:refs/heads/{SHARED_BRANCH}"], token=self._token)
            else:
                refuse_unrelated(study, self._fetch_shared(study), commit, self._name)

    def head(self) -> str:
        """Commit at the tip of the shared branch."""
        with self._asking():
            return self._head(self._api.get_repo(self._name))

    def open(self, repo: Path, request: Request) -> Opened:
        """Push the branch and open a pull request, unless the branch has one, whatever became of it."""
        with self._asking():
            repository = self._api.get_repo(self._name)
            pull = self._pull(repository, request)
            if pull is None:
                branch = f"{request.commit}:refs/heads/{request.branch}"
                Repo(repo).push(self._git_url, [branch], force=True, token=self._token)
                pull = repository.create_pull(SHARED_BRANCH, request.branch, title=request.title, body=request.body)
            return Opened(f"#{pull.number}", pull.html_url, merged=pull.merged_at is not None)

    def merge(self, repo: Path, request: Request) -> str:
        """Have GitHub merge exactly the measured commit; what a person has merged already is checked and accepted."""
        study = Repo(repo)
        with self._asking():
            pull = self._pull(self._api.get_repo(self._name), request)
            shared = self._fetch_shared(study)
            if has_landed(study, request, shared):
                return shared
            if pull is None:
                raise ForgeError(f"{self._name} has no pull request of {request.branch}; open it first")
            self._refuse(study, pull, request, shared)
            if pull.merged_at is None:
                self._merge(study, pull, request)
                shared = self._fetch_shared(study)
            refuse_disagreement(study, request, study.tree(shared), shared)
            return shared

    def _refuse(self, study: Repo, pull: PullRequest, request: Request, shared: str) -> None:
        if pull.head.sha != request.commit:
            raise mismatch(study, request, pull.head.sha)
        if pull.state == "closed" and pull.merged_at is None:
            raise RequestClosed(f"{pull.html_url} was closed by a person")
        if pull.merged_at is None:
            landing_changes(study, request, shared)

    def _merge(self, study: Repo, pull: PullRequest, request: Request) -> None:
        try:
            pull.merge(sha=request.commit, merge_method="merge")
        except GithubException as error:
            if error.status != 409:  # 409: the head is not `sha` any more
                raise
            pull.update()
            raise mismatch(study, request, pull.head.sha) from error

    def publish(self, files: Mapping[str, str], message: str) -> str:
        """Commit the pages through the API, without a clone; the same tree again makes no commit."""
        with self._asking():
            repository = self._api.get_repo(self._name)
            parent = repository.get_git_commit(self._head(repository))
            pages = [InputGitTreeElement(path, "100644", "blob", content=text) for path, text in files.items()]
            tree = repository.create_git_tree(pages, parent.tree) if pages else parent.tree
            if tree.sha == parent.tree.sha:
                return parent.sha
            page = repository.create_git_commit(message, tree, [parent])
            repository.get_git_ref(f"heads/{SHARED_BRANCH}").edit(page.sha, force=False)
            return page.sha

    def fetch(self, folder: Path) -> str:
        """Copy the tree of the shared branch into `folder`."""
        with TemporaryDirectory(prefix="swarm-fetch-") as scratch:
            clone = Repo.create(Path(scratch, "clone.git"))
            with self._asking():
                shared = self._fetch_shared(clone)
            with forge_errors(self._name):
                clone.checkout(shared, folder)
            return shared

    # --- reading GitHub ---

    def _check_rights(self, repository: Repository) -> None:
        if repository.permissions is not None and not repository.permissions.push:
            raise PrerequisiteError(f"the token may read {self._name} but not push to it; {_RIGHTS}")
        if repository.archived:
            raise PrerequisiteError(f"{self._name} is archived and takes no commits; unarchive it or name another")
        if repository.allow_merge_commit is False:
            raise PrerequisiteError(f"{self._name} forbids merge commits; allow them in its settings")

    def _tip(self, repository: Repository) -> str | None:
        try:
            return repository.get_git_ref(f"heads/{SHARED_BRANCH}").object.sha
        except GithubException as error:
            if error.status in (404, 409):  # 409: the repository has no commit at all
                return None
            raise

    def _head(self, repository: Repository) -> str:
        tip = self._tip(repository)
        if tip is None:
            raise ForgeError(f"{self._name} has no branch {SHARED_BRANCH}; it was not prepared, or was removed")
        return tip

    def _pull(self, repository: Repository, request: Request) -> PullRequest | None:
        """The branch's pull request: an open one, else a merged one, else one that a person closed."""
        head = f"{self._name.partition('/')[0]}:{request.branch}"
        pulls = list(repository.get_pulls(state="all", base=SHARED_BRANCH, head=head))
        pulls.sort(key=lambda pull: (pull.state != "open", pull.merged_at is None, -pull.number))
        return next(iter(pulls), None)

    def _fetch_shared(self, repo: Repo) -> str:
        repo.fetch(self._git_url, f"+refs/heads/{SHARED_BRANCH}:{SHARED_REF}", token=self._token)
        shared = repo.ref(SHARED_REF)
        if shared is None:
            raise ForgeError(f"{self._name} has no branch {SHARED_BRANCH}; it was not prepared, or was removed")
        return shared

    # --- what went wrong, in one sentence ---

    @contextmanager
    def _asking(self, lasting: type[SwarmError] = ForgeError) -> Iterator[None]:
        """Turn every refusal into a sentence: `lasting` when a person has to act, ForgeError when it may pass."""
        try:
            with forge_errors(self._name):
                yield
        except GithubException as error:
            raise self._explained(error, lasting) from error
        except ForgeError as error:
            if isinstance(error.__cause__, GitError) and _denied(error.__cause__):
                raise lasting(f"git may not push to {self._name}: {_RIGHTS} ({error.__cause__.stderr})") from error
            raise
        except OSError as error:  # of the connection: requests' errors are OSErrors
            raise ForgeError(f"GitHub ({self._name}) can not be reached: {error}") from error

    def _explained(self, error: GithubException, lasting: type[SwarmError]) -> SwarmError:
        said = f"GitHub said {error.status}: {error.message or 'nothing'}"
        if isinstance(error, RateLimitExceededException) or error.status == 429:
            return ForgeError(f"GitHub's rate limit is used up; {self._name} is asked again later ({said})")
        if error.status == 401:
            return lasting(f"GitHub refused the token for {self._name}; put a valid one into GITHUB_TOKEN ({said})")
        if error.status == 403:
            return lasting(f"the token may not do this in {self._name}; {_RIGHTS} ({said})")
        if error.status == 404:
            return lasting(f"there is no repository {self._name}, or the token may not see it; {_RIGHTS} ({said})")
        if error.status == 405:
            return ForgeError(f"{self._name} does not let it merge yet: checks, reviews or a conflict ({said})")
        return ForgeError(f"{self._name}: {said}; it is asked again later")


def _denied(error: GitError) -> bool:
    signs = ("error: 401", "error: 403", "Authentication failed", "Permission to", "could not read Username")
    return any(sign in error.stderr for sign in signs)


def _git_url(base_url: str, repository: str) -> str:
    if base_url.rstrip("/") == API_URL:
        return f"https://github.com/{repository}.git"
    parts = urlsplit(base_url)
    return f"{parts.scheme}://{parts.netloc}/{repository}.git"
