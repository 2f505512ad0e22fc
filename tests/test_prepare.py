"""The sources of the shipped task's data: folders, downloads, kills, damage; every one through the command line.

The server is a stand-in of the public ones: byte ranges, and a redirect that tells the sha256, as the hub does.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PREPARE = Path(__file__).parents[1] / "baseline" / "prepare.py"
STORIES = "/roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4-train.txt"
BOS = 1024


class Shelf(ThreadingHTTPServer):
    """Files by path, and what goes wrong with the next reply."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Shelved)
        self.files: dict[str, bytes] = {}
        self.digests: dict[str, str] = {}
        self.asked: list[str] = []  # the Range of every request for bytes
        self.cut_at = 0  # the next reply ends here
        self.hold_at = 0  # the next reply stops here until released
        self.held, self.released = threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def put(self, path: str, data: bytes) -> None:
        self.files[path], self.digests[path] = data, hashlib.sha256(data).hexdigest()


class Shelved(BaseHTTPRequestHandler):
    server: Shelf

    def do_GET(self) -> None:  # noqa: N802  # the name that http.server calls
        path = self.path.removeprefix("/storage")
        if path not in self.server.files:
            self.send_error(404)
        elif path == self.path:
            self.send_response(302)
            self.send_header("Location", "/storage" + path)
            self.send_header("X-Linked-ETag", f'"{self.server.digests[path]}"')
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._send(self.server.files[path])

    def _send(self, data: bytes) -> None:
        wanted = self.headers.get("Range", "")
        self.server.asked.append(wanted)
        found = re.fullmatch(r"bytes=(\d+)-", wanted)
        start = int(found[1]) if found else 0
        self.send_response(416 if start >= len(data) else 206 if found else 200)
        if start >= len(data):
            self.send_header("Content-Range", f"bytes */{len(data)}")
        self.send_header("Content-Length", str(len(data[start:])))
        self.end_headers()
        end, self.server.cut_at = self.server.cut_at or len(data), 0
        if self.server.hold_at:
            self.wfile.write(data[start : self.server.hold_at])
            start, self.server.hold_at = self.server.hold_at, 0
            self.server.held.set()
            self.server.released.wait(60)
        try:
            self.wfile.write(data[start:end])
        except ConnectionError:
            pass  # the client was killed, which is what the test is about
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    server = Shelf()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def environment(url: str = "http://127.0.0.1:9", **more: str) -> dict[str, str]:
    return {**os.environ, "SWARM_DATA_URL": url, "no_proxy": "127.0.0.1", **more}


def run(*arguments: object, url: str = "http://127.0.0.1:9", **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PREPARE), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=environment(url, **more), check=False
    )


def start(*arguments: object, url: str = "http://127.0.0.1:9") -> subprocess.Popen[str]:
    command = [sys.executable, str(PREPARE), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(url))


def refused(done: subprocess.CompletedProcess[str], *told: str) -> None:
    """One sentence, exit status 2, no traceback."""
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    for words in told:
        assert words in done.stderr


def manifest_of(out: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return manifest


def texts(out: Path, split: str) -> list[bytes]:
    """The documents of a split, read back through the index and the merges."""
    pieces = [bytes([i]) for i in range(256)]
    for line in (out / "merges.txt").read_text().splitlines():
        left, right = map(int, line.split())
        pieces.append(pieces[left] + pieces[right])
    pieces.append(b"")
    tokens = np.fromfile(out / split / "tokens.bin", dtype="<u2")
    starts = np.load(out / split / "documents.npy")
    assert starts.dtype == np.uint64
    return [b"".join(pieces[i] for i in document) for document in np.split(tokens, starts[1:].astype(int))]


def stories(count: int) -> list[bytes]:
    return [f"Once upon a time fox {i} met owl {i * i} and they shared {i + 3} plums.".encode() for i in range(count)]


def write_folder(root: Path, files: int = 60, words: int = 1000) -> Path:
    for i in range(files):
        text = " ".join(str(int(n)) for n in np.random.default_rng(i).integers(0, 10_000, words))
        (root / f"topic{i}").mkdir(parents=True)
        (root / f"topic{i}" / "notes.txt").write_text(text)
    return root


# ---- folders


def test_folder_of_text_is_split_by_top_level_name_and_kept_byte_for_byte(tmp_path: Path) -> None:
    root, out = write_folder(tmp_path / "text"), tmp_path / "data"
    (root / "topic0" / "more.txt").write_bytes("caf\u00e9 \U0001f642, no newline at the end\r".encode())
    assert run("--out", out, "--source", f"text:{root}").returncode == 0
    found = {split: texts(out, split) for split in ("train", "val", "holdout")}
    files = {path: path.read_bytes() for path in root.rglob("*.txt")}
    assert sorted(sum(found.values(), [])) == sorted(files.values())
    homes: dict[str, set[str]] = {}
    for path, data in files.items():
        homes.setdefault(path.parent.name, set()).update(s for s, documents in found.items() if data in documents)
    assert all(len(splits) == 1 for splits in homes.values())
    for split, facts in manifest_of(out)["splits"].items():
        assert facts["documents"] == len(found[split])
        assert facts["bytes"] == sum(map(len, found[split]))


def test_what_is_no_text_is_left_out_aloud(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "text", files=40, words=20)
    (root / "topic1" / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (root / "topic2" / "wide.txt").write_bytes("as Windows writes it".encode("utf-16"))
    (root / "topic3" / "zeros.txt").write_bytes(b"text, and then \x00")
    done = run("--out", tmp_path / "data", "--source", f"text:{root}")
    assert done.returncode == 0, done.stderr
    assert "left out: 3 files that are not UTF-8 text" in done.stdout and "picture.png" in done.stdout
    splits = manifest_of(tmp_path / "data")["splits"]
    assert sum(facts["documents"] for facts in splits.values()) == 40


def test_parts_and_workers_change_no_token(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "text", files=40, words=200)
    fingerprints = set()
    for workers, part_bytes in ((1, 10**9), (1, 1), (2, 5000)):
        out = tmp_path / f"{workers}-{part_bytes}"
        done = run("--out", out, "--source", f"text:{root}", "--workers", workers, "--part-bytes", part_bytes)
        assert done.returncode == 0, done.stderr
        fingerprints.add(manifest_of(out)["fingerprint"])
    assert len(fingerprints) == 1


def test_text_that_is_in_train_too_is_reported(tmp_path: Path) -> None:
    root, out = write_folder(tmp_path / "text", words=200), tmp_path / "data"
    assert run("--out", out, "--source", f"text:{root}").returncode == 0
    assert manifest_of(out)["near_duplicates"]["val"] == 0.0
    seen = texts(out, "train")[0]
    copied = next(path for path in root.rglob("*.txt") if path.read_bytes() == texts(out, "val")[0])
    copied.write_bytes(seen)
    again = tmp_path / "again"
    assert run("--out", again, "--source", f"text:{root}").returncode == 0
    shares = manifest_of(again)["near_duplicates"]
    documents = manifest_of(again)["splits"]["val"]["documents"]
    assert shares["val"] == pytest.approx(1 / documents, abs=1e-6)  # all have 200 words
    assert shares["holdout"] == 0.0


@pytest.mark.parametrize(
    ("make", "told"),
    [
        ("nothing", "is not a folder"),
        ("a file", "is not a folder"),
        ("an empty folder", "holds no text"),
        ("one file in a folder", "cut the text into more files"),
        ("pictures only", "holds no text"),
    ],
)
def test_folder_that_cannot_be_split_is_refused(tmp_path: Path, make: str, told: str) -> None:
    root = tmp_path / "text"
    if make == "a file":
        root.write_text("words")
    elif make != "nothing":
        root.mkdir()
    if make == "pictures only":
        (root / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    if make == "one file in a folder":
        (root / "book.txt").write_text("words " * 1000)
    refused(run("--out", tmp_path / "data", "--source", f"text:{root}"), told)
    assert not (tmp_path / "data").exists()


# ---- kills


def test_killed_preparation_goes_on_where_it_was(tmp_path: Path) -> None:
    root, out = write_folder(tmp_path / "text"), tmp_path / "data"
    asked = ("--source", f"text:{root}", "--workers", 1, "--part-bytes", 1)
    process = start("--out", out, *asked)
    with process:
        assert process.stdout is not None
        for _ in range(5):
            assert process.stdout.readline().endswith("tokenised\n")
        process.send_signal(signal.SIGKILL)
    assert not out.exists()
    (aside,) = tmp_path.glob(".data.partial-*")
    damaged = aside / "00002.train.bin"
    damaged.write_bytes(damaged.read_bytes()[:-2] + b"xy")
    done = run("--out", out, *asked)
    assert done.returncode == 0, done.stderr
    said = [line.rsplit(" ", 1)[1] for line in done.stdout.splitlines() if line.startswith("part ")]
    assert said[:5] == ["kept", "kept", "tokenised", "kept", "kept"] and said[-1] == "tokenised"
    assert run("--out", tmp_path / "calm", *asked).returncode == 0
    assert manifest_of(out) == manifest_of(tmp_path / "calm")
    assert not list(tmp_path.glob(".data.partial-*"))


def test_two_preparations_of_one_folder_agree(tmp_path: Path) -> None:
    root, out = write_folder(tmp_path / "text"), tmp_path / "data"
    both = [start("--out", out, "--source", f"text:{root}", "--workers", 1) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert len({text.splitlines()[-1] for text in said}) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "text"]


def test_killed_download_goes_on_where_it_was(tmp_path: Path, shelf: Shelf) -> None:
    data = b"<|endoftext|>".join(stories(1000))
    shelf.put(STORIES, data)
    shelf.hold_at = 20_000
    process = start("--out", tmp_path / "data", "--source", "tinystories", url=shelf.url)
    assert shelf.held.wait(60)
    partial = tmp_path / "downloads" / "tinystories" / "TinyStoriesV2-GPT4-train.txt.part"
    deadline = time.monotonic() + 60
    while not partial.exists() or partial.stat().st_size < 20_000:
        assert process.poll() is None and time.monotonic() < deadline
    process.kill()
    process.communicate()
    shelf.released.set()
    assert run("--out", tmp_path / "data", "--source", "tinystories", url=shelf.url).returncode == 0
    assert shelf.asked == ["", "bytes=20000-"]
    assert partial.with_suffix("").read_bytes() == data


# ---- downloads


def test_download_that_breaks_off_is_resumed(tmp_path: Path, shelf: Shelf) -> None:
    told = stories(1000)
    shelf.put(STORIES, b"\n<|endoftext|>\n".join(told))
    shelf.cut_at = 30_000
    out = tmp_path / "data"
    done = run("--out", out, "--source", "tinystories", "--part-bytes", 10_000, url=shelf.url)
    assert done.returncode == 0, done.stderr
    assert shelf.asked == ["", "bytes=30000-"]
    assert sorted(sum((texts(out, split) for split in ("train", "val", "holdout")), [])) == sorted(told)
    # The copy that is kept is enough, and is looked at before it is believed.
    again = run("--out", tmp_path / "again", "--source", "tinystories", "--offline")
    assert again.returncode == 0, again.stderr
    assert manifest_of(tmp_path / "again")["fingerprint"] == manifest_of(out)["fingerprint"]


def test_download_finished_by_a_killed_run_is_believed_by_its_hash(tmp_path: Path, shelf: Shelf) -> None:
    data = b"<|endoftext|>".join(stories(1000))
    shelf.put(STORIES, data)
    partial = tmp_path / "downloads" / "tinystories" / "TinyStoriesV2-GPT4-train.txt.part"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(data)
    assert run("--out", tmp_path / "data", "--source", "tinystories", url=shelf.url).returncode == 0
    assert shelf.asked == [f"bytes={len(data)}-"]


@pytest.mark.parametrize("source", ["tinystories", "tinyshakespeare"])
def test_damaged_download_is_refused_and_removed(tmp_path: Path, shelf: Shelf, source: str) -> None:
    """One hash is told by the server, the other is known beforehand."""
    good = b"<|endoftext|>".join(stories(1000))
    shelf.put(STORIES, good)
    shelf.files[STORIES] = good[:-5] + b"spoil"
    shelf.put("/karpathy/char-rnn/master/data/tinyshakespeare/input.txt", b"To be, or not to be.\n\n" * 100)
    refused(run("--out", tmp_path / "data", "--source", source, url=shelf.url), "sha256", "run again")
    assert not (tmp_path / "data").exists()
    assert not [path for path in (tmp_path / "downloads").rglob("*") if path.is_file()]
    if source == "tinystories":
        shelf.put(STORIES, good)
        assert run("--out", tmp_path / "data", "--source", source, url=shelf.url).returncode == 0


def test_kept_download_that_was_damaged_is_fetched_again(tmp_path: Path, shelf: Shelf) -> None:
    shelf.put(STORIES, b"<|endoftext|>".join(stories(1000)))
    assert run("--out", tmp_path / "data", "--source", "tinystories", url=shelf.url).returncode == 0
    kept = tmp_path / "downloads" / "tinystories" / "TinyStoriesV2-GPT4-train.txt"
    kept.write_bytes(kept.read_bytes()[:-1])
    assert run("--out", tmp_path / "again", "--source", "tinystories", url=shelf.url).returncode == 0
    assert len(shelf.asked) == 2
    assert manifest_of(tmp_path / "again") == manifest_of(tmp_path / "data")


def test_offline_says_what_to_fetch(tmp_path: Path) -> None:
    done = run("--out", tmp_path / "data", "--source", "tinyshakespeare", "--offline")
    refused(done, "/karpathy/char-rnn/master/data/tinyshakespeare/input.txt", str(tmp_path / "downloads"))


def test_file_that_is_not_there_is_named(tmp_path: Path, shelf: Shelf) -> None:
    refused(run("--out", tmp_path / "data", "--source", "tinystories", url=shelf.url), STORIES, "404")
    refused(run("--out", tmp_path / "data", "--source", "tinystories", url="nowhere"), "SWARM_DATA_URL")


def test_cache_that_cannot_be_written_is_told(tmp_path: Path, shelf: Shelf) -> None:
    (tmp_path / "file").write_text("in the way")
    done = run("--out", tmp_path / "data", "--source", "tinystories", "--cache", tmp_path / "file", url=shelf.url)
    refused(done, "writable --out and --cache")


def test_merges_of_another_folder_take_the_place_of_a_vocabulary(tmp_path: Path) -> None:
    """What they were learned with is then not needed."""
    root = write_folder(tmp_path / "text", files=40, words=20)
    (tmp_path / "merges.txt").write_text("49 50\n256 51\n")  # 1 and 2; 12 and 3
    asked = ("--source", f"text:{root}", "--merges")
    done = run("--out", tmp_path / "data", *asked, tmp_path / "merges.txt")
    assert done.returncode == 0, done.stderr
    assert manifest_of(tmp_path / "data")["vocab_size"] == 259
    assert sorted(sum((texts(tmp_path / "data", s) for s in ("train", "val", "holdout")), [])) == sorted(
        path.read_bytes() for path in root.rglob("*.txt")
    )
    refused(run("--out", tmp_path / "other", *asked, root / "topic0" / "notes.txt"), "name the merges.txt")
    refused(run("--out", tmp_path / "other", *asked, tmp_path / "none"), "name the merges.txt")


@pytest.mark.parametrize(
    ("library", "asked"),
    [("tokenizers", ("--vocab", 512)), ("pyarrow", ("--source", "climbmix")), ("pyarrow", ("--source", "fineweb-edu"))],
)
def test_missing_library_is_told_with_its_remedy(tmp_path: Path, library: str, asked: tuple[object, ...]) -> None:
    (tmp_path / f"{library}.py").write_text("raise ImportError('not here')")
    refused(run("--out", tmp_path / "data", *asked, PYTHONPATH=str(tmp_path)), f"pip install {library}")


@pytest.mark.parametrize(
    "asked",
    [
        ("--source", "wikipedia"),
        ("--source", "text:"),
        ("--vocab", 70_000),
        ("--vocab", 3),
        ("--source", "climbmix", "--shards", -1),
    ],
)
def test_request_that_makes_no_sense_is_refused(tmp_path: Path, asked: tuple[object, ...]) -> None:
    refused(run("--out", tmp_path / "data", *asked), str(asked[-1]), "choose")
    assert not list(tmp_path.iterdir()), "nothing is left of it"


def test_shards_of_what_has_none_are_refused(tmp_path: Path) -> None:
    refused(run("--out", tmp_path / "data", "--shards", 3), "--shards 3", "stdlib has no shards", "leave it away")


def test_parquet_is_read_document_by_document(tmp_path: Path, shelf: Shelf) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    told = stories(2000)
    for shard in range(2):
        parquet.write_table(pyarrow.table({"text": [t.decode() for t in told[shard::2]]}), tmp_path / "shard")
        path = f"/karpathy/climbmix-400b-shuffle/resolve/main/shard_{shard:05}.parquet"
        shelf.put(path, (tmp_path / "shard").read_bytes())
    done = run("--out", tmp_path / "data", "--source", "climbmix", "--shards", 2, url=shelf.url)
    assert done.returncode == 0, done.stderr
    assert sorted(sum((texts(tmp_path / "data", s) for s in ("train", "val", "holdout")), [])) == sorted(told)


def test_larger_vocabulary_is_learned_from_the_training_text(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    done = run("--out", tmp_path / "data", "--vocab", 2048)
    assert done.returncode == 0, done.stderr
    assert run("--out", tmp_path / "small").returncode == 0
    facts, small = manifest_of(tmp_path / "data"), manifest_of(tmp_path / "small")
    assert (facts["vocab_size"], facts["bos"]) == (2048, 2047)
    assert len(np.load(tmp_path / "data" / "token_bytes.npy")) == 2048
    assert facts["splits"]["val"]["bytes"] == small["splits"]["val"]["bytes"]
    assert facts["splits"]["val"]["tokens"] < small["splits"]["val"]["tokens"]
    assert texts(tmp_path / "data", "val") == texts(tmp_path / "small", "val")


# ---- what lies there already


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    root = write_folder(tmp_path / "text", files=40, words=50)
    assert run("--out", tmp_path / "data", "--source", f"text:{root}").returncode == 0
    return tmp_path / "data"


def test_whole_data_is_verified(prepared: Path) -> None:
    done = run("--out", prepared, "--verify")
    assert (done.returncode, done.stdout) == (0, f"fingerprint {manifest_of(prepared)['fingerprint']}\n")


@pytest.mark.parametrize("name", ["val/tokens.bin", "train/documents.npy", "token_bytes.npy", "merges.txt"])
@pytest.mark.parametrize("damage", ["cut short", "changed", "gone"])
def test_damaged_data_is_found(prepared: Path, name: str, damage: str) -> None:
    path = prepared / name
    raw = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(raw[:-2] if damage == "cut short" else raw[:-2] + bytes(b ^ 1 for b in raw[-2:]))
    refused(run("--out", prepared, "--verify"), "remove")


def test_changed_manifest_is_found(prepared: Path) -> None:
    text = (prepared / "manifest.json").read_text()
    (prepared / "manifest.json").write_text(text.replace(manifest_of(prepared)["fingerprint"], "0" * 64))
    refused(run("--out", prepared, "--verify"), "manifest.json was changed")
    refused(run("--out", prepared, "--source", manifest_of(prepared)["asked"]["source"]), "another fingerprint")


def test_other_data_in_the_folder_is_not_taken_for_what_is_asked(prepared: Path, tmp_path: Path) -> None:
    source = f"text:{tmp_path / 'text'}"
    refused(run("--out", prepared, "--source", source, "--vocab", 2048), "vocab 1025", "choose another --out")
    refused(run("--out", prepared), "choose another --out")
    refused(run("--out", tmp_path / "empty", "--verify"), "nothing to verify")
