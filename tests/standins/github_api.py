"""A stand-in for GitHub: the REST paths that PyGithub uses and git's smart HTTP, over one bare repository on disk.

It answers from that repository as the real service does (a pull request's head follows its branch, a merge is a real
three-way merge, a tree is written with git), and refuses what the real service refuses: a wrong token, an unknown
repository, a second pull request of a branch, a head that is not `sha`, a conflict, a ref that would not move forward.
`fail` makes it answer anything else; `before_merge` is the person who pushes at the wrong moment.
"""

import base64
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "ghp_stand_in"
REPOSITORY = "octo/nano"
Json = dict[str, Any]


@dataclass
class Refusal(Exception):
    """An answer that is not a success."""

    status: int
    message: str


@dataclass
class Pull:
    number: int
    branch: str
    base: str
    title: str
    body: str
    state: str = "open"
    merged: bool = False
    last_head: str = ""  # frozen when it is closed, as on GitHub


@dataclass
class StandIn:
    """What the tests may look at and turn."""

    path: Path  # the bare repository behind it
    url: str = ""
    can_push: bool = True
    can_merge_commit: bool = True
    fail: Refusal | None = None
    before_merge: Callable[[], object] | None = None
    pulls: list[Pull] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    git_authorizations: list[str] = field(default_factory=list)

    @property
    def git_url(self) -> str:
        return f"{self.url}/{REPOSITORY}.git"

    def close_pull(self, number: int) -> None:
        """A person closes a pull request."""
        pull = self.pulls[number - 1]
        pull.last_head, pull.state = self.head_of(pull), "closed"

    def merge_pull(self, number: int) -> str:
        """Land a pull request with a merge commit, as the API or a person's click does."""
        pull = self.pulls[number - 1]
        landed = self._merge(self.git("rev-parse", f"refs/heads/{pull.base}"), self.head_of(pull), pull)
        self.git("update-ref", f"refs/heads/{pull.base}", landed)
        pull.last_head, pull.state, pull.merged = self.head_of(pull), "closed", True
        return landed

    def squash_pull(self, number: int) -> str:
        """A person lands it as one new commit, so that the measured commit is not on the shared branch."""
        pull = self.pulls[number - 1]
        base, head = self.git("rev-parse", f"refs/heads/{pull.base}"), self.head_of(pull)
        landed = self.git("commit-tree", "-p", base, "-m", pull.title, f"{head}^{{tree}}")
        self.git("update-ref", f"refs/heads/{pull.base}", landed)
        pull.last_head, pull.state, pull.merged = head, "closed", True
        return landed

    def head_of(self, pull: Pull) -> str:
        return pull.last_head or self.git("rev-parse", f"refs/heads/{pull.branch}")

    def git(self, *arguments: str, stdin: str = "", env: dict[str, str] | None = None) -> str:
        who = {f"GIT_{role}_{part}": "octo" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
        done = subprocess.run(
            ["git", f"--git-dir={self.path}", *arguments],
            input=stdin,
            env={**os.environ, **who, **(env or {})},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise Refusal(422, done.stderr.strip())
        return done.stdout.strip()

    def _merge(self, base: str, head: str, pull: Pull) -> str:
        with TemporaryDirectory() as folder:
            self.git("worktree", "add", "--quiet", "--detach", folder, base)
            try:
                message = f"Merge pull request #{pull.number} from octo/{pull.branch}\n\n{pull.title}"
                self.git("-C", folder, f"--git-dir={folder}/.git", "merge", "--quiet", "--no-ff", "-m", message, head)
                return self.git("-C", folder, f"--git-dir={folder}/.git", "rev-parse", "HEAD")
            except Refusal as conflict:
                raise Refusal(405, "Pull Request is not mergeable") from conflict
            finally:
                self.git("worktree", "remove", "--force", folder)


# --- the paths -------------------------------------------------------------------------------------------


def show_repository(hub: StandIn, _: Json) -> Json:
    return {
        "full_name": REPOSITORY,
        "url": f"{hub.url}/repos/{REPOSITORY}",
        "archived": False,
        "allow_merge_commit": hub.can_merge_commit,
        "permissions": {"admin": False, "push": hub.can_push, "pull": True},
    }


def show_ref(hub: StandIn, _: Json, ref: str) -> Json:
    try:
        sha = hub.git("rev-parse", "--verify", f"refs/{ref}")
    except Refusal as missing:
        raise Refusal(404, "Not Found") from missing
    return {"ref": f"refs/{ref}", "url": f"{hub.url}/repos/{REPOSITORY}/git/refs/{ref}", "object": {"sha": sha}}


def move_ref(hub: StandIn, given: Json, ref: str) -> Json:
    old = str(show_ref(hub, {}, ref)["object"]["sha"])
    if not given["force"] and hub.git("merge-base", old, given["sha"]) != old:
        raise Refusal(422, "Update is not a fast forward")
    hub.git("update-ref", f"refs/{ref}", given["sha"])
    return show_ref(hub, {}, ref)


def show_commit(hub: StandIn, _: Json, sha: str) -> Json:
    tree, *parents = hub.git("log", "-1", "--format=%T %P", sha).split()
    url = f"{hub.url}/repos/{REPOSITORY}/git"
    return {
        "sha": sha,
        "url": f"{url}/commits/{sha}",
        "message": hub.git("log", "-1", "--format=%B", sha),
        "tree": {"sha": tree, "url": f"{url}/trees/{tree}"},
        "parents": [{"sha": parent} for parent in parents],
    }


def make_commit(hub: StandIn, given: Json) -> Json:
    parents = [argument for parent in given["parents"] for argument in ("-p", parent)]
    return show_commit(hub, {}, hub.git("commit-tree", *parents, "-m", given["message"], given["tree"]))


def make_tree(hub: StandIn, given: Json) -> Json:
    with TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": f"{folder}/index"}
        hub.git("read-tree", given["base_tree"], env=index)
        for entry in given["tree"]:
            blob = hub.git("hash-object", "-w", "--stdin", stdin=entry["content"])
            hub.git("update-index", "--add", "--cacheinfo", f"{entry['mode']},{blob},{entry['path']}", env=index)
        tree = hub.git("write-tree", env=index)
    return {"sha": tree, "url": f"{hub.url}/repos/{REPOSITORY}/git/trees/{tree}", "tree": []}


def show_pull(hub: StandIn, _: Json, number: str) -> Json:
    pull = hub.pulls[int(number) - 1]
    return {
        "number": pull.number,
        "url": f"{hub.url}/repos/{REPOSITORY}/pulls/{pull.number}",
        "html_url": f"https://github.example/{REPOSITORY}/pull/{pull.number}",
        "state": pull.state,
        "title": pull.title,
        "body": pull.body,
        "merged_at": "2026-01-01T00:00:00Z" if pull.merged else None,
        "head": {"ref": pull.branch, "sha": hub.head_of(pull)},
        "base": {"ref": pull.base},
    }


def list_pulls(hub: StandIn, given: Json) -> list[Json]:
    owner, _, branch = given["head"].partition(":")
    assert owner == REPOSITORY.split("/")[0], "GitHub ignores a head filter without the owner"
    wanted = [pull for pull in hub.pulls if pull.branch == branch and pull.base == given["base"]]
    return [show_pull(hub, {}, str(pull.number)) for pull in wanted if given["state"] in ("all", pull.state)]


def make_pull(hub: StandIn, given: Json) -> Json:
    if any(pull.branch == given["head"] and pull.state == "open" for pull in hub.pulls):
        raise Refusal(422, f"A pull request already exists for octo:{given['head']}.")
    for branch in (given["head"], given["base"]):
        hub.git("rev-parse", "--verify", f"refs/heads/{branch}")
    pull = Pull(len(hub.pulls) + 1, given["head"], given["base"], given["title"], given["body"])
    hub.pulls.append(pull)
    return show_pull(hub, {}, str(pull.number))


def merge_pull(hub: StandIn, given: Json, number: str) -> Json:
    pull = hub.pulls[int(number) - 1]
    assert given["merge_method"] == "merge"
    if pull.state != "open":
        raise Refusal(405, "Pull Request is not mergeable")
    if hub.before_merge:
        hub.before_merge()
    if given["sha"] != hub.head_of(pull):
        raise Refusal(409, "Head branch was modified. Review and try the merge again.")
    return {"sha": hub.merge_pull(pull.number), "merged": True, "message": "Pull Request successfully merged"}


ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", r"", show_repository),
    ("GET", r"/git/refs?/(.+)", show_ref),
    ("PATCH", r"/git/refs/(.+)", move_ref),
    ("GET", r"/git/commits/(\w+)", show_commit),
    ("POST", r"/git/commits", make_commit),
    ("POST", r"/git/trees", make_tree),
    ("GET", r"/pulls", list_pulls),
    ("POST", r"/pulls", make_pull),
    ("GET", r"/pulls/(\d+)", show_pull),
    ("PUT", r"/pulls/(\d+)/merge", merge_pull),
]


def answer(hub: StandIn, method: str, path: str, given: Json) -> Json | list[Json]:
    """Find the route and run it."""
    if not path.startswith(f"/repos/{REPOSITORY}"):
        raise Refusal(404, "Not Found")
    rest = path.removeprefix(f"/repos/{REPOSITORY}")
    for verb, pattern, route in ROUTES:
        match = re.fullmatch(pattern, rest)
        if verb == method and match:
            result: Json | list[Json] = route(hub, given, *match.groups())
            return result
    raise Refusal(404, "Not Found")


# --- the server ------------------------------------------------------------------------------------------


class _Handler(BaseHTTPRequestHandler):
    hub: StandIn

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_PATCH = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if parts.path.startswith(f"/{REPOSITORY}.git/"):
            self._git(parts.path, parts.query, body)
            return
        self.hub.calls.append(f"{self.command} {parts.path}")
        try:
            self._check_token()
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            result = answer(self.hub, self.command, parts.path, json.loads(body) if body else query)
            self._reply(201 if self.command == "POST" else 200, result)
        except Refusal as refusal:
            self._reply(refusal.status, {"message": refusal.message})

    def _check_token(self) -> None:
        if self.hub.fail:
            raise self.hub.fail
        if self.headers.get("Authorization") not in (f"token {TOKEN}", f"Bearer {TOKEN}"):
            raise Refusal(401, "Bad credentials")

    def _reply(self, status: int, result: Json | list[Json]) -> None:
        content = json.dumps(result).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _git(self, path: str, query: str, body: bytes) -> None:
        """Smart HTTP through git's own CGI, for those who bring the token as basic authentication."""
        given = self.headers.get("Authorization") or ""
        self.hub.git_authorizations.append(given)
        if given != "Basic " + base64.b64encode(f"x-access-token:{TOKEN}".encode()).decode():
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="GitHub"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        head, _, content = self._http_backend(path, query, body).partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(headers.pop("Status", "200 OK").split()[0]))
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _http_backend(self, path: str, query: str, body: bytes) -> bytes:
        variables = {
            "GIT_PROJECT_ROOT": str(self.hub.path),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path.removeprefix(f"/{REPOSITORY}.git"),
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type") or "",
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding") or "",
            "GIT_PROTOCOL": self.headers.get("Git-Protocol") or "",
            "REMOTE_USER": "octo",
        }
        done = subprocess.run(
            ["git", "http-backend"], input=body, env={**os.environ, **variables}, capture_output=True, check=True
        )
        return done.stdout


@contextmanager
def stand_in(path: Path) -> Iterator[StandIn]:
    """Serve the bare repository at `path` as `octo/nano` until the block ends."""
    hub = StandIn(path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
