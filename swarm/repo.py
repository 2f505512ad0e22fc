"""The only home of git: a bare repository, written and read without a work tree.

Owns commits that are a pure function of their inputs (same files, parents, message, author and time: same sha), refs
that move only when they still point where the caller thinks, and transport to other repositories. Must not know what a
Candidate or a forge is. How one git command is run, and how it fails, is the business of swarm/git.py.

Protective: trees written to a folder hold no symbolic links and stay inside it.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from swarm.errors import PrerequisiteError, SwarmError
from swarm.git import NETWORK_TIMEOUT_S, SETTINGS, Git, GitError, writing_to

__all__ = ["EMPTY_TREE", "Commit", "Entry", "GitError", "RefMoved", "Repo"]

EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"  # git's name for a tree without files, in every repository
_NO_REF = "0" * 40
_FILE, _PROGRAM = "100644", "100755"
_AUTHOR = re.compile(r"(?P<name>[^<>\n]+) <(?P<email>[^<>\n ]*)>")


@dataclass(eq=False)
class RefMoved(SwarmError):
    """A ref no longer points where the caller thought; nothing was changed."""

    ref: str
    expected: str | None
    found: str | None

    def __str__(self) -> str:
        return f"{self.ref} is at {self.found or 'nothing'}, not at {self.expected or 'nothing'}; read it again"


class Commit(NamedTuple):
    """One line of a log."""

    sha: str
    at: float
    author: str
    message: str
    parents: tuple[str, ...] = ()

    @property
    def subject(self) -> str:
        return self.message.partition("\n")[0]

    def trailer(self, key: str) -> str:
        """The value of the last `key: value` line, or an empty string."""
        values = re.findall(rf"^{re.escape(key)}: *(.*)$", self.message, flags=re.MULTILINE)
        return str(values[-1]).strip() if values else ""


class Entry(NamedTuple):
    """One file of a tree."""

    mode: str
    sha: str


class Repo:
    """A bare git repository."""

    def __init__(self, path: Path) -> None:
        """Speak of the repository at `path`; `create` makes sure that it is there."""
        self.path = path.resolve()
        self._git = Git(self.path)

    @classmethod
    def create(cls, path: Path, head: str = "main") -> "Repo":
        """Make a bare repository at `path` whose HEAD names the branch `head`; an existing one is left as it is."""
        repo = cls(path)
        if not (repo.path / "HEAD").exists():
            with writing_to(repo.path):
                _refuse_foreign_folder(repo.path)
                _create_at_once(repo.path, head)
        return repo

    # --- writing ---

    def commit(
        self,
        files: Mapping[str, str | bytes | None],
        *,
        parents: Sequence[str],
        message: str,
        author: str,
        at: float,
        base: str | None = None,
    ) -> str:
        """Write a commit and return its sha, which depends on the arguments alone. No ref moves.

        Args:
            files: path -> content, put on top of the tree of `base`; `None` removes a path.
            parents: commits; the first one is the default `base`. Without parents and base, `files` is the whole tree.
            message: as it will stand, trailers included.
            author: "Name <email>", also the committer.
            at: Unix time, cut to the second, written as UTC.
            base: a commit or tree; `EMPTY_TREE` makes `files` the whole tree of a commit with parents.
        """
        tree = self._write_tree(files, base or next(iter(parents), EMPTY_TREE))
        arguments = [argument for parent in parents for argument in ("-p", parent)]
        out = self._git.run("commit-tree", *arguments, tree, stdin=_encode(message), env=_identity(author, at))
        return out.decode().strip()

    def _write_tree(self, files: Mapping[str, str | bytes | None], base: str) -> str:
        lines = b"".join(self._index_line(path, content) for path, content in sorted(files.items()))
        with writing_to(self.path), tempfile.TemporaryDirectory(prefix="swarm-index-") as folder:
            index = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
            self._git.run("read-tree", base, env=index)
            self._git.run("update-index", "--add", "--replace", "-z", "--index-info", stdin=lines, env=index)
            return self._git.run("write-tree", env=index).decode().strip()

    def _index_line(self, path: str, content: str | bytes | None) -> bytes:
        _refuse_escape(path)
        if content is None:
            return f"0 {_NO_REF}\t{path}\0".encode()
        sha = self._git.run("hash-object", "-w", "--stdin", stdin=_encode(content)).decode().strip()
        return f"{_FILE} {sha}\t{path}\0".encode()

    def set_ref(self, ref: str, new: str, old: str | None = None) -> None:
        """Point `ref` at `new`; where `old` is given, only if it points there now (empty: only if it does not exist).

        A ref that is at `new` already is fine: that is what a repeated call after a crash finds.

        Raises:
            RefMoved: it points elsewhere.
        """
        name = _full(ref)
        expected = [] if old is None else [old or _NO_REF]
        try:
            self._git.run("update-ref", name, new, *expected)
        except GitError:
            found = self.ref(name)
            if old is None or found == (old or None):
                raise
            if found != new:
                raise RefMoved(ref, old or None, found) from None

    # --- reading ---

    def ref(self, name: str) -> str | None:
        """The commit that a branch, a full ref or a sha names; None when there is no such thing."""
        arguments = ("rev-parse", "--verify", "--quiet", f"{_full(name)}^{{commit}}")
        done = self._git.attempt(arguments)
        if done.code > 1:
            raise self._git.error(arguments, done.err)
        return done.out.decode().strip() or None

    def refs(self, prefix: str) -> dict[str, str]:
        """Every full ref below `prefix` and the object it names."""
        out = self._git.run("for-each-ref", "--format=%(refname) %(objectname)", prefix).decode()
        return {name: sha for name, sha in (line.split() for line in out.splitlines())}

    def entries(self, commit: str) -> dict[str, Entry]:
        """Every file of a commit's tree: path -> mode and blob."""
        out = self._git.run("ls-tree", "-r", "-z", "--full-tree", commit)
        lines = (line.partition("\t") for line in os.fsdecode(out).split("\0") if line)
        return {path: Entry(mode=head.split()[0], sha=head.split()[2]) for head, _, path in lines}

    def tree(self, commit: str) -> dict[str, bytes]:
        """Every file of a commit's tree with its content."""
        entries = self.entries(commit)
        blobs = self._blobs({entry.sha for entry in entries.values()})
        return {path: blobs[entry.sha] for path, entry in entries.items()}

    def read(self, commit: str, path: str) -> str | None:
        """The text of one file of a commit, or None when it is not there."""
        entry = self.entries(commit).get(path)
        return self._blobs({entry.sha})[entry.sha].decode(errors="replace") if entry else None

    def _blobs(self, shas: set[str]) -> dict[str, bytes]:
        out = self._git.run("cat-file", "--batch", stdin="".join(f"{sha}\n" for sha in sorted(shas)).encode())
        found, at = {}, 0
        while at < len(out):
            header, at = out[at : (end := out.index(b"\n", at))].decode().split(), end + 1
            if len(header) != 3 or header[1] != "blob":  # a missing object, or a submodule's commit
                raise GitError("git cat-file --batch", f"{header[0]} is no file of this repository")
            found[header[0]] = out[at : at + int(header[2])]
            at += int(header[2]) + 1
        return found

    def diff(self, a: str, b: str) -> str:
        """Unified diff from `a` to `b`."""
        out = self._git.run(
            "diff-tree", "-r", "-p", "--no-renames", "--no-ext-diff", "--no-textconv", "--no-color", a, b
        )
        return out.decode(errors="replace")

    def log(self, ref: str, n: int) -> list[Commit]:
        """The last `n` commits reachable from `ref`, newest first."""
        out = self._git.run("log", "-z", f"-{n}", "--format=%H%n%P%n%at%n%an <%ae>%n%B", _full(ref)).decode(
            errors="replace"
        )
        rows = (record.split("\n", 4) for record in out.split("\0") if record)
        return [
            Commit(sha, float(at), author, message.strip(), tuple(parents.split()))
            for sha, parents, at, author, message in rows
        ]

    def merge_base(self, a: str, b: str) -> str | None:
        """The newest commit that both descend from; None for unrelated histories."""
        done = self._git.attempt(("merge-base", a, b))
        if done.code > 1:
            raise self._git.error(("merge-base", a, b), done.err)
        return done.out.decode().strip() or None

    def is_ancestor(self, old: str, new: str) -> bool:
        """Whether `old` is `new` or reachable from it."""
        return self.merge_base(old, new) == self.ref(old)

    def checkout(self, commit: str, folder: Path) -> None:
        """Write the files of a commit into `folder`, over what is there; other files in it stay.

        Raises:
            GitError: the tree holds a symbolic link, a submodule, or a path that leaves the folder. Nothing is written.
        """
        entries = self.entries(commit)
        for path, entry in entries.items():
            _refuse_escape(path)
            if entry.mode not in (_FILE, _PROGRAM):
                raise GitError(f"checkout {commit[:12]}", f"{path!r} is a link or a submodule; remove it there")
        blobs = self._blobs({entry.sha for entry in entries.values()})
        with writing_to(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for path, entry in entries.items():
                _write_inside(folder.resolve(), path, blobs[entry.sha], 0o755 if entry.mode == _PROGRAM else 0o644)

    # --- transport ---

    def push(self, url: str, refspecs: Sequence[str], *, force: bool = False, token: str = "") -> None:
        """Push to another repository, a path or a URL; `token` is sent as HTTP basic authentication."""
        flags = ["--quiet", *(["--force"] if force else [])]
        self._git.run("push", *flags, "--", url, *refspecs, url=url, token=token, timeout_s=NETWORK_TIMEOUT_S)

    def fetch(self, url: str, refspec: str, *, token: str = "") -> None:
        """Fetch one refspec (and no tags) from another repository; no FETCH_HEAD is written."""
        flags = ("--quiet", "--no-tags", "--no-write-fetch-head")
        self._git.run("fetch", *flags, "--", url, refspec, url=url, token=token, timeout_s=NETWORK_TIMEOUT_S)

    # --- the one place where git runs ---


def _identity(author: str, at: float) -> dict[str, str]:
    match = _AUTHOR.fullmatch(author)
    if match is None:
        raise ValueError(f"author {author!r} is not of the form 'Name <email>'")
    roles = ("AUTHOR", "COMMITTER")
    parts = {"NAME": match["name"], "EMAIL": match["email"], "DATE": f"@{int(at)} +0000"}
    return {f"GIT_{role}_{part}": value for role in roles for part, value in parts.items()}


def _full(name: str) -> str:
    """A branch by its short name, a full ref or a sha, as git cannot misread it."""
    known = name == "HEAD" or name.startswith("refs/") or re.fullmatch(r"[0-9a-f]{40}", name)
    return name if known else f"refs/heads/{name}"


def _encode(content: str | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.encode(errors="replace")


def _refuse_escape(path: str) -> None:
    parts = path.split("/")
    if "\0" in path or "\\" in path or any(part in ("", ".", "..") or part.lower() == ".git" for part in parts):
        raise GitError("check of a path", f"{path!r} is no plain path inside a folder")


def _write_inside(folder: Path, path: str, content: bytes, mode: int) -> None:
    target = folder.joinpath(*PurePosixPath(path).parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.parent.resolve().is_relative_to(folder):  # a link that was in the folder before us
        raise GitError("checkout", f"{path!r} would be written outside of {folder}; remove the link in the way")
    draft = target.with_name(f".{target.name}.swarm-new")
    draft.unlink(missing_ok=True)
    draft.write_bytes(content)
    draft.chmod(mode)
    draft.replace(target)  # replaces a link instead of following it, and is whole or not there after a kill


def _refuse_foreign_folder(path: Path) -> None:
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise PrerequisiteError(f"{path} exists and is no bare git repository; move it away or name another folder")


def _create_at_once(path: Path, head: str) -> None:
    """Create beside and rename: a kill leaves either no repository or a whole one."""
    draft = Repo(path.with_name(f".{path.name}.creating"))
    shutil.rmtree(draft.path, ignore_errors=True)
    draft.path.mkdir(parents=True)
    draft._git.run("init", "--quiet", "--bare", "--template=")
    draft._git.run("symbolic-ref", "HEAD", f"refs/heads/{head}")
    for key in ("core.hooksPath", "gc.auto", "receive.autogc"):  # also for git commands that others run in it
        draft._git.run("config", key, SETTINGS[key])
    draft.path.rename(path)
