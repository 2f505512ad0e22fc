"""The git store: deterministic commits, careful refs, folders that nothing leaves, errors without secrets."""

import subprocess
from pathlib import Path

import pytest

from swarm.errors import PrerequisiteError
from swarm.repo import EMPTY_TREE, GitError, RefMoved, Repo

AUTHOR = "swarm <swarm@localhost>"


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return Repo.create(tmp_path / "study.git")


def first(repo: Repo, **files: str) -> str:
    named = {f"{name}.py": text for name, text in files.items()}
    return repo.commit(named, parents=[], message="first", author=AUTHOR, at=1000.7)


def child(repo: Repo, parent: str, files: dict[str, str | bytes | None], base: str | None = None) -> str:
    return repo.commit(files, parents=[parent], message="child", author=AUTHOR, at=2000.0, base=base)


def raw_git(repo: Repo, *arguments: str, stdin: bytes = b"") -> str:
    done = subprocess.run(["git", "-C", str(repo.path), *arguments], input=stdin, capture_output=True, check=True)
    return done.stdout.decode().strip()


def raw_tree(repo: Repo, line: bytes) -> str:
    """A commit whose tree only a hostile program would write."""
    tree = raw_git(repo, "hash-object", "-t", "tree", "-w", "--literally", "--stdin", stdin=line)
    return raw_git(repo, "-c", "user.name=x", "-c", "user.email=x@x", "commit-tree", "-m", "hostile", tree)


def test_the_same_inputs_give_the_same_commit_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = first(Repo.create(tmp_path / "one.git"), train="a = 1\n")
    monkeypatch.setenv("GIT_AUTHOR_NAME", "somebody else")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert first(Repo.create(tmp_path / "two.git"), train="a = 1\n") == one
    assert first(Repo.create(tmp_path / "two.git"), train="a = 2\n") != one


def test_files_replace_add_and_remove_on_top_of_the_first_parent(repo: Repo) -> None:
    parent = first(repo, train="a = 1\n", score="s\n")
    commit = child(repo, parent, {"train.py": "a = 2\n", "notes/é.bin": b"\xff\0", "score.py": None})
    assert repo.tree(commit) == {"train.py": b"a = 2\n", "notes/é.bin": b"\xff\0"}
    assert repo.tree(parent) == {"train.py": b"a = 1\n", "score.py": b"s\n"}


def test_a_base_decides_what_the_files_are_put_on(repo: Repo) -> None:
    parent = first(repo, train="a = 1\n")
    other = child(repo, parent, {"extra.py": "x\n"})
    assert set(repo.tree(child(repo, parent, {"new.py": "n\n"}, base=other))) == {"train.py", "extra.py", "new.py"}
    assert set(repo.tree(child(repo, parent, {"new.py": "n\n"}, base=EMPTY_TREE))) == {"new.py"}


def test_a_file_may_become_a_folder(repo: Repo) -> None:
    commit = child(repo, repo.commit({"a": "1"}, parents=[], message="m", author=AUTHOR, at=0.0), {"a/b": "2"})
    assert repo.tree(commit) == {"a/b": b"2"}


def test_reading_what_is_not_there(repo: Repo) -> None:
    commit = first(repo, train="a = 1\n")
    assert repo.read(commit, "train.py") == "a = 1\n"
    assert repo.read(commit, "missing.py") is None
    assert repo.ref("swarm/best") is None
    assert repo.ref("f" * 40) is None
    with pytest.raises(GitError):
        repo.tree("f" * 40)
    with pytest.raises(GitError, match="not a git repository"):
        Repo(repo.path.parent / "nowhere").ref("swarm/best")


def test_a_ref_moves_only_from_where_the_caller_saw_it(repo: Repo) -> None:
    one = first(repo, train="1")
    two, three = child(repo, one, {"train.py": "2"}), child(repo, one, {"train.py": "3"})
    repo.set_ref("swarm/best", one, old="")
    repo.set_ref("swarm/best", two, old=one)
    repo.set_ref("swarm/best", two, old=one)  # repeated after a crash
    with pytest.raises(RefMoved) as moved:
        repo.set_ref("swarm/best", three, old=one)
    assert (moved.value.expected, moved.value.found) == (one, two)
    assert repo.ref("swarm/best") == repo.ref("refs/heads/swarm/best") == two
    repo.set_ref("swarm/best", three)
    assert repo.ref("swarm/best") == three


def test_a_lock_that_a_killed_git_left_does_not_stop_the_next(repo: Repo) -> None:
    commit = first(repo, train="1")
    lock = repo.path / "refs/heads/best.lock"
    lock.write_bytes(b"")
    repo.set_ref("best", commit)
    assert repo.ref("best") == commit
    assert not lock.exists()


def test_history_is_told_newest_first(repo: Repo) -> None:
    one = repo.commit({"a": "1"}, parents=[], message="One\n\nSwarm-Experiment: abc", author=AUTHOR, at=1.0)
    two = child(repo, one, {"a": "2"})
    repo.set_ref("swarm/best", two)
    newest, oldest = repo.log("swarm/best", 5)
    assert (newest.sha, newest.at, newest.author) == (two, 2000.0, AUTHOR)
    assert (oldest.subject, oldest.trailer("Swarm-Experiment"), newest.trailer("Swarm-Experiment")) == (
        "One",
        "abc",
        "",
    )
    assert "-1\n" in repo.diff(one, two)
    assert repo.is_ancestor(one, two) and not repo.is_ancestor(two, one)
    assert repo.merge_base(one, repo.commit({}, parents=[], message="x", author=AUTHOR, at=0.0)) is None


def test_push_and_fetch_between_two_repositories(repo: Repo, tmp_path: Path) -> None:
    other = Repo.create(tmp_path / "other.git")
    one, two = first(repo, train="1"), first(repo, train="2")
    repo.push(str(other.path), [f"{one}:refs/heads/shared"])
    assert other.ref("shared") == one
    with pytest.raises(GitError):
        repo.push(str(other.path), [f"{two}:refs/heads/shared"])
    (other.path / "refs/heads/shared.lock").write_bytes(b"")  # a killed push
    repo.push(str(other.path), [f"{two}:refs/heads/shared"], force=True)
    third = Repo.create(tmp_path / "third.git")
    third.fetch(str(other.path), "+refs/heads/shared:refs/seen/shared")
    assert third.ref("refs/seen/shared") == two


def test_checkout_writes_the_files_and_keeps_the_others(repo: Repo, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    (folder / "train.py").symlink_to(folder / "mine.txt")
    repo.checkout(child(repo, first(repo, train="1"), {"deep/er/x.py": "x"}), folder)
    assert {path.name: path.read_text() for path in folder.rglob("*") if path.is_file()} == {
        "mine.txt": "mine",
        "train.py": "1",
        "x.py": "x",
    }
    assert not (folder / "train.py").is_symlink()


def test_checkout_refuses_links_and_paths_that_leave_the_folder(repo: Repo, tmp_path: Path) -> None:
    blob = bytes.fromhex(raw_git(repo, "hash-object", "-w", "--stdin", stdin=b"/etc/passwd"))
    inner = raw_git(repo, "hash-object", "-t", "tree", "-w", "--stdin", stdin=b"100644 evil.py\0" + blob)
    module = b"160000 sub\0" + bytes(19) + b"1"
    for line in (module, b"120000 link\0" + blob, b"40000 ..\0" + bytes.fromhex(inner), b"100644 .GIT\0" + blob):
        commit = raw_tree(repo, line)
        with pytest.raises(GitError):
            repo.checkout(commit, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "evil.py").exists()


def test_hooks_and_filters_that_a_repository_brings_are_not_run(repo: Repo, tmp_path: Path) -> None:
    marker, theirs = tmp_path / "marker", Repo.create(tmp_path / "theirs.git")
    for name in ("post-checkout", "reference-transaction", "pre-push", "update", "post-update"):
        (theirs.path / "hooks" / name).parent.mkdir(exist_ok=True)
        (theirs.path / "hooks" / name).write_text(f"#!/bin/sh\ntouch {marker}\n")
        (theirs.path / "hooks" / name).chmod(0o755)
    raw_git(theirs, "config", "filter.evil.smudge", f"touch {marker}; cat")
    commit = child(theirs, first(theirs, train="1"), {".gitattributes": "*.py filter=evil\n"})
    theirs.set_ref("refs/heads/x", commit)
    repo.fetch(str(theirs.path), "+refs/heads/x:refs/seen/x")
    repo.push(str(theirs.path), [f"{commit}:refs/heads/y"])
    theirs.checkout(commit, tmp_path / "out")
    assert (tmp_path / "out" / "train.py").exists() and not marker.exists()
    (tmp_path / "plain").mkdir()
    raw_git(theirs, f"--git-dir={theirs.path}", f"--work-tree={tmp_path / 'plain'}", "checkout", "-f", "x")
    assert marker.exists(), "git by itself runs them"


def test_checkout_does_not_follow_a_linked_folder(repo: Repo, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out/deep").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(GitError, match="outside"):
        repo.checkout(child(repo, first(repo, train="1"), {"deep/x.py": "x"}), tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("path", ["../x", "/x", "a//b", ".git/config", "a/./b", "a\\b", ""])
def test_a_commit_refuses_a_path_that_escapes(repo: Repo, path: str) -> None:
    with pytest.raises(GitError):
        repo.commit({path: "x"}, parents=[], message="m", author=AUTHOR, at=0.0)


def test_an_error_never_holds_a_credential(repo: Repo) -> None:
    commit = first(repo, train="1")
    with pytest.raises(GitError) as failed:
        repo.push("http://user:hunter2@127.0.0.1:9/x.git", [f"{commit}:refs/heads/x"], token="ghp_secret")
    assert "hunter2" not in str(failed.value) and "ghp_secret" not in str(failed.value)
    assert "***@127.0.0.1" in failed.value.command


def test_create_is_repeatable_and_respects_what_is_there(tmp_path: Path) -> None:
    repo = Repo.create(tmp_path / "a.git", head="swarm/best")
    commit = first(repo, train="1")
    repo.set_ref("swarm/best", commit)
    (tmp_path / ".b.git.creating").mkdir()  # a killed creation
    Repo.create(tmp_path / "b.git")
    assert Repo.create(tmp_path / "a.git").ref("HEAD") == commit
    (tmp_path / "full").mkdir()
    (tmp_path / "full/precious.txt").write_text("x")
    with pytest.raises(PrerequisiteError, match="no bare git repository"):
        Repo.create(tmp_path / "full")


def test_without_git_one_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PrerequisiteError, match="install it"):
        Repo.create(tmp_path / "a.git")
