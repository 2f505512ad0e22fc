"""Where text comes from: the standard library, a folder, or a public data set; and which split each document is in.

Owns documents, their splits, and downloads. Knows nothing of tokens. This file is frozen: no experiment may edit it.

Files with names (`stdlib`, `text:PATH`) are split by their TOP-LEVEL name (`json/decoder.py` by `json`): files of one
package repeat each other. Web text is split by the hash of its own bytes, so that exact copies stay in one split; plays
by their place, since neighbouring speeches belong together.
"""

import hashlib
import http.client
import os
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

SPLITS = ("train", "val", "holdout")
SPLIT_PERCENT = (84, 8, 8)
WEB_PERCENT = (98, 1, 1)  # of gigabytes, 1 % is enough to score
SPLIT_SALT = "split 340:"  # of 1000 salts the one whose splits are 84/8/8 by BYTES too, on Python 3.11 to 3.13
MIN_CORPUS_BYTES = 4_000_000  # CPython 3.11 has 8.8 MB; far less means a stripped installation
PART_BYTES = 64_000_000  # tokenised by one process in about 10 s: what a killed preparation loses at most
URL_VARIABLE = "SWARM_DATA_URL"
STORY_END = b"<|endoftext|>"
PIECES = 100  # that plays are cut into, at blank lines
ATTEMPTS = 5  # without one new byte, before a download gives up
TIMEOUT_S = 60.0

# Not prose, not ours to learn from, or (the code pages) tables of numbers.
EXCLUDED_DIRS = frozenset(
    "__phello__ __pycache__ dist-packages encodings ensurepip idlelib lib-dynload lib2to3 pydoc_data site-packages "
    "test tests turtledemo".split()
)
EXCLUDED_PREFIXES = ("_sysconfigdata", "config-")  # build records of one machine


class PrepareError(Exception):
    """Something the user can fix; the message is one sentence that says how."""


class Document(NamedTuple):
    """One text: its name, its bytes, untouched, and the split it belongs to."""

    name: str
    data: bytes
    split: str


class Part(NamedTuple):
    """What one process tokenises at a time: some files of a folder, or a range of bytes of one file."""

    kind: str  # a key of READERS
    path: Path
    names: tuple[str, ...] = ()
    start: int = 0
    end: int = 0
    key: str = ""  # changes when the text does

    @property
    def size(self) -> int:
        """Bytes of the files, compressed or not: for choosing, not for counting."""
        return sum((self.path / name).stat().st_size for name in self.names) or self.end - self.start


class Download(NamedTuple):
    """A public data set: one URL for each file, the sha256 where the file never changes."""

    kind: str
    base: str
    path: str  # {shard} is filled in
    files: int
    default_files: int
    sha256: str = ""  # else the server's own X-Linked-ETag


HUB = "https://huggingface.co/datasets"
RAW = "https://raw.githubusercontent.com"
PLAYS = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
DOWNLOADS = {
    "tinyshakespeare": Download("plays", RAW, "karpathy/char-rnn/master/data/tinyshakespeare/input.txt", 1, 1, PLAYS),
    "tinystories": Download("stories", HUB, "roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4-train.txt", 1, 1),
    "fineweb-edu": Download(
        "parquet", HUB, "HuggingFaceFW/fineweb-edu/resolve/main/sample/10BT/{shard:03}_00000.parquet", 14, 1
    ),
    "climbmix": Download(
        "parquet", HUB, "karpathy/climbmix-400b-shuffle/resolve/main/shard_{shard:05}.parquet", 6543, 8
    ),
}


def find_parts(source: str, cache: Path, shards: int, part_bytes: int, offline: bool) -> list[Part]:
    """The parts of a source, downloaded where needed."""
    folder = source.removeprefix("text:") if source.startswith("text:") else ""
    if shards and (source == "stdlib" or folder):
        raise PrepareError(f"--shards {shards}: {source} has no shards, public data sets have: leave it away")
    if source == "stdlib":
        return [_stdlib_part()]
    if folder:
        return _folder_parts(Path(folder), part_bytes)
    if source not in DOWNLOADS:
        valid = ", ".join(["stdlib", "text:PATH", *DOWNLOADS])
        raise PrepareError(f"--source {source!r} is not known: choose one of {valid}")
    chosen = DOWNLOADS[source]
    count = shards or chosen.default_files
    if not 1 <= count <= chosen.files:
        raise PrepareError(f"--shards {count}: {source} has {chosen.files}; choose 1 to {chosen.files}")
    if chosen.kind == "parquet":
        _parquet()  # say that it is missing before gigabytes are fetched
    parts: list[Part] = []
    for shard in range(count):
        path = chosen.path.format(shard=shard)
        url = f"{os.environ.get(URL_VARIABLE, chosen.base).rstrip('/')}/{path}"
        target = cache / source / path.rsplit("/", 1)[1]
        digest = fetch(url, target, chosen.sha256, offline)
        parts += _cut(chosen.kind, target, digest, part_bytes)
    return parts


def read_part(part: Part) -> Iterator[Document]:
    """The documents of a part, always in the same order."""
    return READERS[part.kind](part)


# ---- splits


def split_of(name: str) -> str:
    """The split of a document, by the hash of its top-level name."""
    return _drawn(SPLIT_SALT + name.split("/")[0].removesuffix(".py"), SPLIT_PERCENT)


def _drawn(text: str, percent: tuple[int, int, int]) -> str:
    return _at(int(_hash(text)[:16], 16) % 100, percent)


def _at(percentile: int, percent: tuple[int, int, int]) -> str:
    if percentile < percent[0]:
        return SPLITS[0]
    return SPLITS[1] if percentile < percent[0] + percent[1] else SPLITS[2]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _web_document(data: bytes) -> Document:
    name = hashlib.sha256(data).hexdigest()
    return Document(name, data, _drawn(SPLIT_SALT + name, WEB_PERCENT))


# ---- folders


def standard_library() -> list[Document]:
    """Every source file of the running interpreter's standard library that is text worth learning."""
    return list(_read_files(_stdlib_part()))


def _stdlib_part() -> Part:
    root = Path(sysconfig.get_paths()["stdlib"])
    part = _files_part(root, [path for path in root.rglob("*.py") if _wanted(path.relative_to(root))])
    if part.size < MIN_CORPUS_BYTES:
        raise PrepareError(
            f"{root} holds only {part.size / 1e6:.1f} MB of .py sources, too few to train on: "
            "use a Python that ships its standard library as sources (python.org, pyenv, uv, or your distribution's)"
        )
    return part


def _wanted(path: Path) -> bool:
    return EXCLUDED_DIRS.isdisjoint(path.parts) and not path.parts[0].startswith(EXCLUDED_PREFIXES)


def _folder_parts(root: Path, part_bytes: int) -> list[Part]:
    if not root.is_dir():
        raise PrepareError(f"text:{root} is not a folder: splits are drawn by file or folder name, so name a folder")
    files = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    found = [p for p in files if not any(n.startswith(".") for n in p.relative_to(root).parts) and p.stat().st_size]
    paths = [path for path in found if _is_text(path)]
    if others := sorted(set(found) - set(paths)):
        print(f"left out: {len(others)} files that are not UTF-8 text, {others[0]} for one", flush=True)
    if not paths:
        raise PrepareError(f"{root} holds no text: put files with text there, 30 or more, or name another folder")
    names = {path.relative_to(root).parts[0].removesuffix(".py") for path in paths}
    missing = sorted(set(SPLITS) - {split_of(name) for name in names})
    if missing:
        raise PrepareError(
            f"{root} has {len(names)} top-level names with text, and none falls to {' or '.join(missing)}: "
            "splits go by top-level name, so cut the text into more files (30 are usually enough)"
        )
    parts: list[Part] = []
    batch: list[Path] = []
    size = 0
    for path in sorted(paths, key=lambda path: _hash(path.relative_to(root).as_posix())):
        batch.append(path)
        size += path.stat().st_size
        if size >= part_bytes:
            parts.append(_files_part(root, batch))
            batch, size = [], 0
    return [*parts, _files_part(root, batch)] if batch else parts


def _is_text(path: Path) -> bool:
    """UTF-8 without a zero byte: pictures, archives and UTF-16 are not."""
    data = path.read_bytes()
    return b"\0" not in data and data.decode(errors="ignore").encode() == data


def _files_part(root: Path, paths: list[Path]) -> Part:
    """Ordered by the hash of their names, so that the first tokens of a split speak for all of it."""
    names = sorted((path.relative_to(root).as_posix() for path in paths), key=_hash)
    facts = [(name, (root / name).stat().st_size, (root / name).stat().st_mtime_ns) for name in names]
    return Part("files", root, tuple(names), key=_hash(repr(facts)))


def _read_files(part: Part) -> Iterator[Document]:
    for name in part.names:
        yield Document(name, (part.path / name).read_bytes(), split_of(name))


# ---- downloaded files


def _cut(kind: str, path: Path, digest: str, part_bytes: int) -> list[Part]:
    """A file as parts that end where a story does; other files are one part."""
    size = path.stat().st_size
    if kind != "stories":
        return [Part(kind, path, start=0, end=size, key=digest)]
    borders = [0]
    with path.open("rb") as file:
        while borders[-1] < size:
            borders.append(_next_story(file, borders[-1] + part_bytes, size))
    return [Part(kind, path, (), a, b, f"{digest} {a} {b}") for a, b in zip(borders, borders[1:], strict=False)]


def _next_story(file: Any, start: int, size: int) -> int:
    """The first byte after a story's end at or past `start`."""
    window = b""
    file.seek(start)
    while start < size and STORY_END not in window:
        block = file.read(1 << 16)
        if not block:
            return size
        window += block
    return min(size, start + window.index(STORY_END) + len(STORY_END)) if start < size else size


def _read_stories(part: Part) -> Iterator[Document]:
    with part.path.open("rb") as file:
        file.seek(part.start)
        text = file.read(part.end - part.start)
    yield from (_web_document(story.strip()) for story in text.split(STORY_END) if story.strip())


def _read_plays(part: Part) -> Iterator[Document]:
    text = part.path.read_bytes()
    borders = [0]
    for i in range(1, PIECES):
        found = text.find(b"\n\n", i * len(text) // PIECES)
        borders.append(max(borders[-1], found + 2 if found >= 0 else len(text)))
    for i, (start, end) in enumerate(zip(borders, [*borders[1:], len(text)], strict=True)):
        if end > start:
            yield Document(f"piece {i}", text[start:end], _at(i, SPLIT_PERCENT))


def _read_parquet(part: Part) -> Iterator[Document]:
    with part.path.open("rb") as raw:
        for batch in _parquet().ParquetFile(raw).iter_batches(1000, columns=["text"]):
            yield from (_web_document(text.encode()) for text in batch.column("text").to_pylist() if text)


def _parquet() -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise PrepareError(
            "this source is stored as parquet, and pyarrow is not installed: pip install pyarrow, then run again"
        ) from error
    return parquet


READERS: dict[str, Callable[[Part], Iterator[Document]]] = {
    "files": _read_files,
    "stories": _read_stories,
    "plays": _read_plays,
    "parquet": _read_parquet,
}


# ---- downloads


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Keeps the sha256 that the hub tells on its way to the storage."""

    digest = ""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> Any:
        self.digest = self.digest or linked_digest(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def linked_digest(headers: Any) -> str:
    """The sha256 in a reply of the hub; empty when it tells none."""
    told = (headers.get("X-Linked-ETag") or "").strip('W/"')
    return told if len(told) == 64 else ""


def fetch(url: str, target: Path, sha256: str, offline: bool) -> str:
    """Leave a checked file at `target`, going on where an earlier download stopped; return its sha256."""
    record = target.with_name(target.name + ".sha256")
    if target.exists() and record.exists():
        digest = _sha256(target)
        if digest == record.read_text().strip():
            return digest
        target.unlink()
        print(f"{target} was damaged since it was fetched: fetching it again", flush=True)
    if offline:
        raise PrepareError(f"--offline, and {target} is not there: fetch {url} by running once without --offline")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    told = _download(url, partial)
    expected = sha256 or told
    digest = _sha256(partial)
    if expected and digest != expected:
        partial.unlink()
        raise PrepareError(
            f"{url} came with sha256 {digest[:12]}, not {expected[:12]}: it was damaged or has changed; "
            "the copy was removed, run again"
        )
    partial.rename(target)
    record.write_text(digest + "\n")
    return digest


def _download(url: str, partial: Path) -> str:
    """Fetch `url` until `partial` is complete; return the sha256 that the server told, if it did."""
    attempts, before = 0, -1
    while True:
        have = partial.stat().st_size if partial.exists() else 0
        attempts, before = (0, have) if have > before else (attempts + 1, before)
        try:
            return _read_on(url, partial, have)
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ValueError) as error:
            code = getattr(error, "code", 500)
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            if isinstance(error, ValueError) or (code < 500 and code != 429):  # 429: too many requests, for now
                raise PrepareError(f"{url} cannot be fetched: {error}; check ${URL_VARIABLE}") from error
            if attempts >= ATTEMPTS:
                raise PrepareError(
                    f"{url} cannot be fetched: {error}; check the network and run again, it goes on at {have} bytes"
                ) from error
            time.sleep(attempts)


def _read_on(url: str, partial: Path, have: int) -> str:
    redirects = _Redirects()
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        reply = urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        error.close()
        if error.headers.get("Content-Range") not in (None, f"bytes */{have}"):
            partial.unlink()
            raise ConnectionError(f"{have} bytes are here, more than there are") from error
        # nothing is left to send: the hash says whether what is here is right
        return linked_digest(error.headers) or redirects.digest
    with reply, partial.open("ab" if reply.status == 206 else "wb", buffering=0) as file:
        have = have if reply.status == 206 else 0
        length = reply.headers.get("Content-Length")
        total = have + int(length) if length else 0
        while block := reply.read1(1 << 20):
            file.write(block)
            have += len(block)
            _show(partial, have, total)
    if have < total:
        raise ConnectionError(f"the connection ended at {have} of {total} bytes")
    return linked_digest(reply.headers) or redirects.digest


def _show(path: Path, have: int, total: int) -> None:
    if sys.stdout.isatty() or have == total:
        share = f" of {total / 1e6:.1f} MB ({100 * have / total:.0f} %)" if total else " MB"
        print(f"\r{path.stem}: {have / 1e6:.1f}{share}", end="\n" if have == total else "", flush=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
