"""One contract for every forge, told as stories; then what only one of them can do wrong."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import pytest
from standins.github_api import REPOSITORY, TOKEN, Refusal, StandIn, stand_in

from coordinator.forges import SHARED_BRANCH, Forge, Request
from coordinator.forges.github import GitHubForge
from coordinator.forges.landing import changes_to_land, disagreements, is_page
from coordinator.forges.local import LocalForge
from swarm.errors import ForgeError, PrerequisiteError, RequestClosed, TreeMismatch
from swarm.repo import Repo

AUTHOR = "swarm <swarm@localhost>"
TRAIN = "LR = 1\n" + "\n".join(f"line_{n} = {n}" for n in range(20)) + "\n"
BASELINE = {"train.py": TRAIN, "prepare.py": "frozen\n", "program.md": "Be bold.\n"}


@dataclass
class World:
    """A study with its repository, a forge, and the bare repository that stands behind the forge."""

    study: Repo
    behind: Repo
    connect: Callable[[], Forge]  # as after a restart: nothing is remembered
    baseline: str

    @property
    def forge(self) -> Forge:
        return self.connect()

    def candidate(self, parent: str, text: str, message: str = "Idea\n\nSwarm-Experiment: e1", **more: str) -> str:
        """A measured commit on top of `parent`."""
        files = {"train.py": text, **{name.replace("__", "/") + ".json": value for name, value in more.items()}}
        return self.study.commit(files, parents=[parent], message=message, author=AUTHOR, at=2000.0)

    def request(self, number: int, commit: str) -> Request:
        branch = f"swarm/lab/promotion-{number}"
        self.study.set_ref(branch, commit)
        return Request(branch, commit, f"[record] idea {number}", f"evidence {number}\n")

    def promote(self, number: int, commit: str) -> str:
        request = self.request(number, commit)
        self.forge.open(self.study.path, request)
        return self.forge.merge(self.study.path, request)

    def foreign_push(self, branch: str, **files: str) -> str:
        """Somebody else commits on a branch of the forge."""
        tip = self.behind.ref(branch)
        assert tip is not None
        named = {name.replace("_", "."): text for name, text in files.items()}
        commit = self.behind.commit(named, parents=[tip], message="foreign", author="x <x@x>", at=3000.0)
        self.behind.set_ref(branch, commit)
        return commit

    def landed(self) -> dict[str, str]:
        return {path: text.decode() for path, text in self.behind.tree(self.forge.head()).items()}


def make_world(tmp_path: Path, behind: Path, connect: Callable[[], Forge]) -> World:
    study = Repo.create(tmp_path / "study.git")
    baseline = study.commit(BASELINE, parents=[], message="Baseline", author=AUTHOR, at=1000.0)
    world = World(study, Repo(behind), connect, baseline)
    world.forge.prepare(study.path, baseline)
    return world


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with stand_in(Repo.create(tmp_path / "hub.git").path) as hub:
        yield hub


@pytest.fixture
def connect(hub: StandIn) -> Iterator[Callable[[], GitHubForge]]:
    """New connections to the stand-in, closed at the end; git goes by file path."""
    with ExitStack() as opened:

        def connect() -> GitHubForge:
            forge = GitHubForge(REPOSITORY, TOKEN, base_url=hub.url, git_url=str(hub.path))
            opened.callback(forge.close)
            return forge

        yield connect


@pytest.fixture
def github(tmp_path: Path, hub: StandIn, connect: Callable[[], GitHubForge]) -> World:
    return make_world(tmp_path, hub.path, connect)


@pytest.fixture(params=["local", "github"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    if request.param == "github":
        return cast("World", request.getfixturevalue("github"))
    path = tmp_path / "forge.git"
    return make_world(tmp_path, path, lambda: LocalForge(path, clock=lambda: 5000.0))


# --- the contract ----------------------------------------------------------------------------------------


def test_prepare_makes_the_shared_branch_once(world: World) -> None:
    assert world.forge.head() == world.baseline
    tip = world.promote(1, world.candidate(world.baseline, "LR = 2\n"))
    world.forge.prepare(world.study.path, world.baseline)
    assert world.forge.head() == tip


def test_prepare_refuses_the_history_of_another_study(world: World) -> None:
    other = world.study.commit({"train.py": "other\n"}, parents=[], message="Other", author=AUTHOR, at=1.0)
    with pytest.raises(PrerequisiteError, match="belongs to another study"):
        world.forge.prepare(world.study.path, other)


def test_opening_twice_gives_the_same_request(world: World) -> None:
    request = world.request(1, world.candidate(world.baseline, "LR = 2\n"))
    opened = world.forge.open(world.study.path, request)
    assert not opened.merged and "1" in opened.name and opened.url
    assert world.forge.open(world.study.path, request) == opened
    world.forge.merge(world.study.path, request)
    assert world.forge.open(world.study.path, request) == replace(opened, merged=True)
    assert world.forge.head() != world.baseline


def test_a_merge_lands_exactly_the_measured_files(world: World) -> None:
    commit = world.candidate(world.baseline, "LR = 2\n", records__lab__0001__record="{}\n")
    tip = world.promote(1, commit)
    assert tip == world.forge.head() == world.behind.ref(SHARED_BRANCH)
    assert world.behind.tree(tip) == world.study.tree(commit)
    assert world.behind.is_ancestor(commit, tip)


def test_merging_again_changes_nothing(world: World) -> None:
    request = world.request(1, world.candidate(world.baseline, "LR = 2\n"))
    world.forge.open(world.study.path, request)
    tip = world.forge.merge(world.study.path, request)
    assert [world.forge.merge(world.study.path, request) for _ in range(2)] == [tip, tip]
    page = world.forge.publish({"LEADERBOARD.md": "1\n"}, "Leaderboard")
    assert world.forge.merge(world.study.path, request) == page


def test_merging_what_was_never_opened_is_refused(world: World) -> None:
    with pytest.raises(ForgeError, match="open it first"):
        world.forge.merge(world.study.path, world.request(1, world.candidate(world.baseline, "LR = 2\n")))


def test_publishing_the_same_pages_makes_no_commit(world: World) -> None:
    page = world.forge.publish({"LEADERBOARD.md": "1\n", "results.tsv": "a\tb\n"}, "Leaderboard")
    assert world.forge.publish({"LEADERBOARD.md": "1\n"}, "Leaderboard") == page
    assert world.forge.publish({}, "Nothing") == page
    assert world.behind.log(SHARED_BRANCH, 9)[0].subject == "Leaderboard"
    assert len(world.behind.log(SHARED_BRANCH, 9)) == 2
    assert world.landed() == {**BASELINE, "LEADERBOARD.md": "1\n", "results.tsv": "a\tb\n"}


def test_promotions_and_pages_take_turns(world: World) -> None:
    parent = world.baseline
    for number in (1, 2, 3):
        world.forge.publish({"LEADERBOARD.md": f"before {number}\n"}, "Leaderboard")
        parent = world.candidate(parent, f"LR = {number + 1}\n")  # on the champion, which has no pages
        world.promote(number, parent)
        assert world.landed() == {
            **BASELINE,
            "train.py": f"LR = {number + 1}\n",
            "LEADERBOARD.md": f"before {number}\n",
        }
        assert world.behind.is_ancestor(parent, world.forge.head())


def test_a_request_whose_branch_was_pushed_to_does_not_land(world: World) -> None:
    commit = world.candidate(world.baseline, "LR = 2\n")
    request = world.request(1, commit)
    world.forge.open(world.study.path, request)
    foreign = world.foreign_push(request.branch, train_py="LR = 666\n")
    with pytest.raises(TreeMismatch) as caught:
        world.forge.merge(world.study.path, request)
    assert (caught.value.experiment, caught.value.measured, caught.value.landing) == ("e1", commit, foreign)
    assert world.forge.head() == world.baseline


@pytest.mark.parametrize("path", ["train_py", "prepare_py"])
def test_a_measured_file_that_a_person_changed_on_the_shared_branch_stops_the_landing(world: World, path: str) -> None:
    text = TRAIN.replace("line_19 = 19", "line_19 = 0") if path == "train_py" else "thawed\n"
    request = world.request(1, world.candidate(world.baseline, TRAIN.replace("LR = 1", "LR = 2")))
    world.forge.open(world.study.path, request)
    foreign = world.foreign_push(SHARED_BRANCH, **{path: text})  # git itself would merge this without a conflict
    with pytest.raises(TreeMismatch):
        world.forge.merge(world.study.path, request)
    assert world.forge.head() == foreign


def test_a_page_that_a_person_edited_on_the_shared_branch_is_kept(world: World) -> None:
    request = world.request(1, world.candidate(world.baseline, "LR = 2\n"))
    world.forge.open(world.study.path, request)
    world.foreign_push(SHARED_BRANCH, program_md="Be bolder.\n")
    world.forge.merge(world.study.path, request)
    assert world.landed() == {**BASELINE, "train.py": "LR = 2\n", "program.md": "Be bolder.\n"}


def test_fetch_gives_the_champion_and_its_pages(world: World, tmp_path: Path) -> None:
    world.promote(1, world.candidate(world.baseline, "LR = 2\n"))
    tip = world.forge.publish({"LEADERBOARD.md": "1\n"}, "Leaderboard")
    for _ in range(2):
        assert world.forge.fetch(tmp_path / "champion") == tip
    found = {path.name: path.read_text() for path in (tmp_path / "champion").iterdir()}
    assert found == {**BASELINE, "train.py": "LR = 2\n", "LEADERBOARD.md": "1\n"}


def test_a_killed_open_is_finished_by_the_next(world: World) -> None:
    request = world.request(1, world.candidate(world.baseline, "LR = 2\n"))
    refspec = f"{world.candidate(world.baseline, 'LR = 3')}:refs/heads/{request.branch}"
    world.study.push(str(world.behind.path), [refspec])  # pushed an older attempt, killed before the request existed
    world.forge.open(world.study.path, request)
    world.forge.merge(world.study.path, request)
    assert world.landed()["train.py"] == "LR = 2\n"


def test_a_forge_that_is_gone_is_a_forge_error(world: World) -> None:
    request = world.request(1, world.candidate(world.baseline, "LR = 2\n"))
    forge = world.forge
    world.behind.path.rename(world.behind.path.with_name("gone.git"))
    for verb in (
        forge.head,
        lambda: forge.open(world.study.path, request),
        lambda: forge.merge(world.study.path, request),
        lambda: forge.publish({"LEADERBOARD.md": "1\n"}, "Leaderboard"),
        lambda: forge.fetch(world.study.path.with_name("out")),
    ):
        with pytest.raises(ForgeError):
            verb()


# --- the landing rule, alone -----------------------------------------------------------------------------


def test_what_lands_is_the_measured_tree_and_the_pages_of_others() -> None:
    base = {"train.py": b"1", "old.py": b"x", "program.md": b"a"}
    shared = {**base, "program.md": b"b", "LEADERBOARD.md": b"1"}
    measured = {"train.py": b"2", "program.md": b"a", "new.py": b"n"}
    assert changes_to_land(base, shared, measured) == {"train.py": b"2", "old.py": None, "new.py": b"n"}
    assert disagreements({**measured, "program.md": b"b", "extra.py": b"e"}, measured) == []
    assert disagreements({"train.py": b"1", "program.md": b"a"}, measured) == ["new.py", "train.py"]
    assert is_page("records/lab/0001/record.json") and not is_page("data.json")


# --- the local forge only --------------------------------------------------------------------------------


@pytest.fixture
def local(tmp_path: Path) -> World:
    path = tmp_path / "forge.git"
    return make_world(tmp_path, path, lambda: LocalForge(path, clock=lambda: 5000.0))


def test_local_requests_are_pages_that_plain_git_shows(local: World) -> None:
    commit = local.candidate(local.baseline, "LR = 2\n")
    request = local.request(1, commit)
    opened = local.forge.open(local.study.path, request)
    local.forge.merge(local.study.path, request)
    shown = subprocess.run(opened.url.split(), capture_output=True, text=True, check=True).stdout
    assert shown == (
        "# local#1: [record] idea 1\n\n"
        f"- state: merged, landed as {commit}\n"
        f"- branch: swarm/lab/promotion-1 at {commit}\n"
        f"- changes: `git show {commit}`\n\n"
        "evidence 1\n"
    )
    assert [commit.subject for commit in local.behind.log("swarm/requests", 9)] == ["Merge local#1", "Open local#1"]
    assert local.behind.ref("HEAD") == local.forge.head()  # what `git clone` checks out


def test_a_local_merge_fast_forwards_when_it_can(local: World) -> None:
    commit = local.candidate(local.baseline, "LR = 2\n")
    assert local.promote(1, commit) == commit


def test_a_local_request_killed_before_its_page_said_merged(local: World) -> None:
    commit = local.candidate(local.baseline, "LR = 2\n")
    request = local.request(1, commit)
    local.forge.open(local.study.path, request)
    local.behind.set_ref(SHARED_BRANCH, commit, old=local.baseline)
    assert local.forge.merge(local.study.path, request) == commit
    assert local.forge.open(local.study.path, request).merged


def test_a_person_can_close_a_local_request(local: World) -> None:
    request = local.request(1, local.candidate(local.baseline, "LR = 2\n"))
    local.forge.open(local.study.path, request)
    page = json.loads(local.behind.read("swarm/requests", "0001.json") or "")
    veto = {"0001.json": json.dumps({**page, "state": "closed"})}
    tip = local.behind.ref("swarm/requests") or ""
    closed = local.behind.commit(veto, parents=[tip], message="Veto", author=AUTHOR, at=1.0)
    local.behind.set_ref("swarm/requests", closed)
    with pytest.raises(RequestClosed, match="local#1 was closed by a person"):
        local.forge.merge(local.study.path, request)
    assert local.forge.head() == local.baseline
    other = local.request(1, local.candidate(local.baseline, "LR = 3\n"))
    with pytest.raises(TreeMismatch):  # a veto is of what the person saw
        local.forge.merge(local.study.path, other)


# --- GitHub only -----------------------------------------------------------------------------------------


def github_forge(
    hub: StandIn, token: str = TOKEN, repository: str = REPOSITORY, git_url: str | None = None
) -> GitHubForge:
    return GitHubForge(repository, token, base_url=hub.url, git_url=git_url or str(hub.path))


def has_http_backend() -> bool:
    git = shutil.which("git")
    found = subprocess.run([git, "--exec-path"], capture_output=True, text=True, check=True) if git else None
    return found is not None and Path(found.stdout.strip(), "git-http-backend").exists()


@pytest.mark.parametrize(
    ("turn", "sentence"),
    [
        ({"token": "wrong"}, "refused the token for octo/nano; put a valid one into GITHUB_TOKEN"),
        ({"repository": "octo/nowhere"}, "there is no repository octo/nowhere, or the token may not see it"),
    ],
)
def test_github_says_what_is_wrong_with_token_and_name(
    github: World, hub: StandIn, turn: dict[str, str], sentence: str
) -> None:
    forge = github_forge(hub, **turn)
    with pytest.raises(PrerequisiteError, match=sentence):
        forge.prepare(github.study.path, github.baseline)
    with pytest.raises(ForgeError, match=sentence):  # lost later, while the study runs: it goes on without the forge
        forge.head()
    forge.close()


def test_github_rights_are_checked_before_the_study_begins(github: World, hub: StandIn) -> None:
    hub.can_push = False
    with pytest.raises(PrerequisiteError, match="not push to it; it needs write access to 'Contents'"):
        github.forge.prepare(github.study.path, github.baseline)
    hub.can_push, hub.can_merge_commit = True, False
    with pytest.raises(PrerequisiteError, match="forbids merge commits"):
        github.forge.prepare(github.study.path, github.baseline)


def test_github_needs_a_name_and_a_token() -> None:
    with pytest.raises(PrerequisiteError, match="owner/name"):
        GitHubForge("nano", TOKEN)
    with pytest.raises(PrerequisiteError, match="GITHUB_TOKEN"):
        GitHubForge(REPOSITORY, "")


@pytest.mark.parametrize(
    ("refusal", "sentence"),
    [
        (Refusal(503, "Unavailable"), "GitHub said 503: Unavailable; it is asked again later"),
        (Refusal(403, "API rate limit exceeded for user ID 1."), "rate limit is used up"),
        (Refusal(429, "Slow down"), "rate limit is used up"),
    ],
)
def test_github_troubles_that_pass_are_forge_errors(
    github: World, hub: StandIn, refusal: Refusal, sentence: str
) -> None:
    hub.fail = refusal
    request = github.request(1, github.candidate(github.baseline, "LR = 2\n"))
    with pytest.raises(ForgeError, match=sentence):
        github.forge.prepare(github.study.path, github.baseline)
    with pytest.raises(ForgeError, match=sentence):
        github.forge.open(github.study.path, request)


def test_github_out_of_reach_is_a_forge_error(github: World) -> None:
    forge = GitHubForge(REPOSITORY, TOKEN, base_url="http://127.0.0.1:9", git_url=str(github.behind.path))
    with pytest.raises(ForgeError, match="can not be reached"):
        forge.prepare(github.study.path, github.baseline)
    forge.close()


def test_a_pull_request_closed_by_a_person_stays_closed(github: World, hub: StandIn) -> None:
    request = github.request(1, github.candidate(github.baseline, "LR = 2\n"))
    opened = github.forge.open(github.study.path, request)
    hub.close_pull(1)
    assert github.forge.open(github.study.path, request) == opened
    with pytest.raises(RequestClosed, match=r"/octo/nano/pull/1 was closed by a person"):
        github.forge.merge(github.study.path, request)
    assert len(hub.pulls) == 1 and github.forge.head() == github.baseline


def test_a_pull_request_merged_by_a_person_is_accepted(github: World, hub: StandIn) -> None:
    request = github.request(1, github.candidate(github.baseline, "LR = 2\n"))
    github.forge.open(github.study.path, request)
    tip = hub.merge_pull(1)
    assert github.forge.merge(github.study.path, request) == tip


def test_a_pull_request_squashed_by_a_person_is_accepted_for_its_files(github: World, hub: StandIn) -> None:
    request = github.request(1, github.candidate(github.baseline, "LR = 2\n"))
    github.forge.open(github.study.path, request)
    tip = hub.squash_pull(1)
    assert github.forge.merge(github.study.path, request) == tip


def test_a_pull_request_merged_by_a_person_with_other_files_is_not(github: World, hub: StandIn) -> None:
    request = github.request(1, github.candidate(github.baseline, "LR = 2\n"))
    github.forge.open(github.study.path, request)
    github.foreign_push(request.branch, train_py="LR = 666\n")
    hub.squash_pull(1)
    with pytest.raises(TreeMismatch):
        github.forge.merge(github.study.path, request)


def test_a_push_to_the_request_in_the_second_of_the_merge_is_refused_by_github(github: World, hub: StandIn) -> None:
    request = github.request(1, github.candidate(github.baseline, "LR = 2\n"))
    github.forge.open(github.study.path, request)
    hub.before_merge = lambda: github.foreign_push(request.branch, train_py="LR = 666\n")
    with pytest.raises(TreeMismatch) as caught:
        github.forge.merge(github.study.path, request)
    assert caught.value.landing == github.behind.ref(request.branch)
    assert github.forge.head() == github.baseline


def test_a_push_to_the_shared_branch_in_the_second_of_the_merge_is_found_after_it(github: World, hub: StandIn) -> None:
    request = github.request(1, github.candidate(github.baseline, "LR = 2\n"))
    github.forge.open(github.study.path, request)
    hub.before_merge = lambda: github.foreign_push(SHARED_BRANCH, prepare_py="thawed\n")
    for _ in range(2):  # asking again does not make it right, a person does
        with pytest.raises(TreeMismatch):
            github.forge.merge(github.study.path, request)
    mended = github.foreign_push(SHARED_BRANCH, prepare_py="frozen\n")
    assert github.forge.merge(github.study.path, request) == mended


def test_a_merge_that_github_will_not_do_now_is_a_forge_error(github: World, hub: StandIn) -> None:
    request = github.request(1, github.candidate(github.baseline, "LR = 2\n"))
    github.forge.open(github.study.path, request)
    hub.before_merge = lambda: github.foreign_push(SHARED_BRANCH, train_py="LR = 3\n")
    with pytest.raises(ForgeError, match="does not let it merge yet"):
        github.forge.merge(github.study.path, request)


def test_github_is_asked_few_questions(github: World, hub: StandIn) -> None:
    hub.calls.clear()
    github.promote(1, github.candidate(github.baseline, "LR = 2\n"))
    github.forge.publish({"LEADERBOARD.md": "1\n"}, "Leaderboard")
    assert len(hub.calls) <= 14  # of 5 000 an hour


@pytest.mark.skipif(not has_http_backend(), reason="this git comes without http-backend")
def test_git_carries_the_token_in_a_header(github: World, hub: StandIn, tmp_path: Path) -> None:
    forge = github_forge(hub, git_url=hub.git_url)
    request = github.request(1, github.candidate(github.baseline, "LR = 2\n"))
    forge.open(github.study.path, request)
    tip = forge.merge(github.study.path, request)
    assert forge.fetch(tmp_path / "champion") == tip
    assert (tmp_path / "champion/train.py").read_text() == "LR = 2\n"
    assert hub.git_authorizations and all(given.startswith("Basic ") for given in hub.git_authorizations)
    forge.close()


def test_a_token_that_git_refuses_never_shows_in_the_error(github: World, hub: StandIn) -> None:
    hub.git("update-ref", "-d", f"refs/heads/{SHARED_BRANCH}")
    secret = "ghp_hunter2"
    with pytest.raises(PrerequisiteError, match="git may not push to octo/nano") as caught:
        with github_forge(hub)._asking(PrerequisiteError):
            github.study.push(hub.git_url, [f"{github.baseline}:refs/heads/x"], token=secret)
    assert secret not in str(caught.value) and secret not in str(caught.value.__cause__)
