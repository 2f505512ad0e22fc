"""What training left, taken over by descriptor: copied as it was, or refused at once, and never from elsewhere."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import toy_task as toy

from node.artifact import hash_artifact, take_artifact
from node.scratch import opened, remove
from node.trial import run_trial
from node.watch import TrialFailed
from swarm.records import Failure

SECRET = "planted-secret"  # noqa: S105


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "box" / "out"
    folder.mkdir(parents=True)
    (folder / "model.pt").write_bytes(b"weights")
    return folder


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """A folder of ours, which no candidate may bend our hands to."""
    folder = tmp_path / "secrets"
    folder.mkdir(mode=0o755)
    for name in ("model.pt", "ready"):
        (folder / name).write_text(SECRET)
    return folder


def test_the_hash_covers_names_and_bytes(artifact: Path) -> None:
    first = hash_artifact(artifact)
    assert len(first) == 64
    (artifact / "model.pt").write_bytes(b"weighty")
    second = hash_artifact(artifact)
    (artifact / "model.pt").rename(artifact / "other.pt")
    assert len({first, second, hash_artifact(artifact)}) == 3


def test_bytes_do_not_move_between_files_unnoticed(tmp_path: Path) -> None:
    hashes = set()
    for name, (one, two) in {"x": ("ab", "c"), "y": ("a", "bc")}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "1").write_text(one)
        (tmp_path / name / "2").write_text(two)
        hashes.add(hash_artifact(tmp_path / name))
    assert len(hashes) == 2


def test_an_empty_folder_has_no_hash(tmp_path: Path) -> None:
    assert hash_artifact(tmp_path) == ""


def test_the_copy_is_what_was_hashed_and_others_may_read_it(artifact: Path, tmp_path: Path) -> None:
    (artifact / "model.pt").chmod(0o600)
    with opened(tmp_path / "box") as box:
        identity = take_artifact("out", box, tmp_path / "copy")
    (artifact / "model.pt").write_bytes(b"swapped")
    copy = tmp_path / "copy" / "model.pt"
    assert identity == hash_artifact(tmp_path / "copy")
    assert (copy.read_bytes(), copy.stat().st_mode & 0o777) == (b"weights", 0o644)


def plant_symlink(folder: Path) -> None:
    (folder / "link").symlink_to("/etc/passwd")


def plant_hard_link(folder: Path) -> None:
    (folder.parent / "mine").write_text("x")
    os.link(folder.parent / "mine", folder / "link")


def plant_fifo(folder: Path) -> None:
    os.mkfifo(folder / "fifo")


def plant_folder(folder: Path) -> None:
    (folder / "inner").mkdir()


def plant_many(folder: Path) -> None:
    for i in range(20):
        (folder / str(i)).touch()


def plant_sparse(folder: Path) -> None:
    with open(folder / "big", "wb") as file:
        file.truncate(2**40)


def put_link_in_place(folder: Path) -> None:
    folder.rename(folder.parent / "aside")
    folder.symlink_to(folder.parent / "aside")


def put_fifo_in_place(folder: Path) -> None:
    folder.rename(folder.parent / "aside")
    os.mkfifo(folder)


def put_nothing_in_place(folder: Path) -> None:
    folder.rename(folder.parent / "aside")


Plant = Callable[[Path], None]
PLANTS = [plant_symlink, plant_hard_link, plant_fifo, plant_folder, plant_many, plant_sparse]
SWAPS = [put_link_in_place, put_fifo_in_place, put_nothing_in_place]


@pytest.mark.parametrize("plant", [*PLANTS, *SWAPS])
def test_hostile_artifacts_are_refused_at_once(artifact: Path, tmp_path: Path, plant: Plant) -> None:
    plant(artifact)
    before = time.monotonic()
    with opened(tmp_path / "box") as box, pytest.raises(TrialFailed) as caught:
        take_artifact("out", box, tmp_path / "copy")
    assert (caught.value.blame, caught.value.reason) == ("candidate", "rule")
    with pytest.raises(TrialFailed):
        hash_artifact(artifact)
    assert time.monotonic() - before < 1


def test_a_folder_in_its_parents_place_is_not_looked_into(artifact: Path, secrets: Path, tmp_path: Path) -> None:
    expected = hash_artifact(artifact)
    with opened(tmp_path / "box") as box:
        (tmp_path / "box").rename(tmp_path / "aside")
        (tmp_path / "box").mkdir()
        secrets.rename(tmp_path / "box" / "out")
        assert take_artifact("out", box, tmp_path / "copy") == expected
    with pytest.raises(OSError, match="directory"), opened(link_to(tmp_path / "aside")):
        pass


def link_to(folder: Path) -> Path:
    link = folder.with_name("link")
    link.symlink_to(folder)
    return link


def test_what_a_scratch_links_to_is_not_removed_with_it(secrets: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "deep").mkdir(parents=True)
    for place in (home, home / "deep"):
        (place / "link").symlink_to(secrets)
        os.link(secrets / "ready", place / "hard")
    (home / "deep").chmod(0)
    remove(home)
    assert not home.exists()
    assert (secrets / "model.pt").read_text() == (secrets / "ready").read_text() == SECRET
    assert secrets.stat().st_mode & 0o777 == 0o755


def test_a_sign_that_is_somebody_elses_file_is_neither_seen_nor_removed(secrets: Path, tmp_path: Path) -> None:
    task = toy.answers_task(tmp_path / "task")
    text = (task / "task.toml").read_text()
    (task / "task.toml").write_text(text.replace("[budget]", "[budget]\nseconds = 1.0\ncompile_seconds = 20.0", 1))
    workshop = toy.workshop_at(tmp_path, task)
    assert workshop.data is not None
    np.save(workshop.data.folder / "train" / "documents.npy", np.array([0, 1000], dtype="<u8"))
    train = "import os, sys, time\nout = dict(zip(sys.argv[1::2], sys.argv[2::2]))['--out']\n"
    train += f"os.rename(out, 'aside')\nos.symlink({str(secrets)!r}, out)\ntime.sleep(0.3)\n"
    outcome = run_trial(toy.spec_of(train), workshop=workshop).outcome
    assert isinstance(outcome, Failure) and (outcome.blame, outcome.reason) == ("candidate", "rule")
    assert (secrets / "ready").read_text() == SECRET
