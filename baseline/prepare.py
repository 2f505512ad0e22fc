"""Make the corpus: the Python standard library's own sources, split, tokenised and fingerprinted.

    python prepare.py --out data        # about 1 CPU-second and 6.5 MB; a second run finds it done

Real text that every machine with Python has, so nothing is downloaded. The layout of the folder that it leaves:

    train/tokens.bin      uint16 little-endian; every document is preceded by BOS     } all that a training
    train/meta.json       {"vocab_size": 1025, "bos": 1024}                           } trial ever sees
    val/tokens.bin        what scores are computed on
    holdout/tokens.bin    looked at once, for a tree that is about to be shared
    token_bytes.npy       int32[vocab]: raw bytes that each token stands for, BOS = 0 (bits per BYTE need it)
    manifest.json         counts, hashes and the fingerprint: scores compare only under one fingerprint

Documents go to a split by their TOP-LEVEL name (`json/decoder.py` by `json`): files of one package repeat each other,
and splitting by file would leak 4.3 % of the validation text's 8-word shingles into training, against 1.6 %.

The folder appears whole or not at all (written aside, then renamed). The standard library differs between Python
versions, hence so does the fingerprint. This file is frozen: no experiment may edit it.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

FORMAT = 1
MERGES_FILE = Path(__file__).with_name("bpe1024.txt")
BOS = 1024  # after 256 bytes and 768 merges
VOCAB_SIZE = BOS + 1
SPLITS = ("train", "val", "holdout")
SPLIT_PERCENT = (84, 8, 8)
SPLIT_SALT = "split 340:"  # of 1000 salts the one whose splits are 84/8/8 by BYTES too, on Python 3.11 to 3.13
MIN_CORPUS_BYTES = 4_000_000  # CPython 3.11 has 8.8 MB; far less means a stripped installation
STALE_SECONDS = 600  # an unfinished preparation this old was killed: a whole one takes a second or two

# Not prose, not ours to learn from, or (the code pages) tables of numbers.
EXCLUDED_DIRS = frozenset(
    "__phello__ __pycache__ dist-packages encodings ensurepip idlelib lib-dynload lib2to3 pydoc_data site-packages "
    "test tests turtledemo".split()
)
EXCLUDED_PREFIXES = ("_sysconfigdata", "config-")  # build records of one machine

# Words that merges never cross. Bytes, not str: ids then do not depend on a Python version's Unicode tables.
WORD = re.compile(rb"\r?\n *| ?[A-Za-z]+| ?[0-9]{1,3}| ?[^\sA-Za-z0-9]+|[^\S\n]+(?=\S)|\s")


class PrepareError(Exception):
    """Something the user can fix; the message is one sentence that says how."""


class Document(NamedTuple):
    """One source file: its path inside the standard library and its bytes, untouched."""

    name: str
    data: bytes


class Tokenizer:
    """Byte-level BPE. Line i of the merges file names the two tokens that token 256 + i joins."""

    def __init__(self, merges_file: Path = MERGES_FILE) -> None:
        """Read the merges; every token's bytes follow from them."""
        merges = [tuple(map(int, line.split())) for line in merges_file.read_text("ascii").splitlines()]
        self._merged = {(left, right): 256 + i for i, (left, right) in enumerate(merges)}
        self.token_bytes = [bytes([i]) for i in range(256)]
        for left, right in merges:
            self.token_bytes.append(self.token_bytes[left] + self.token_bytes[right])
        self.token_bytes.append(b"")  # BOS stands for no text
        self._cache: dict[bytes, list[int]] = {}

    def encode(self, data: bytes) -> list[int]:
        """Token ids of any bytes, BOS not included; `decode` gives the same bytes back."""
        ids: list[int] = []
        cache = self._cache
        for word in WORD.findall(data):
            known = cache.get(word)
            if known is None:
                known = cache[word] = self._encode_word(word)
            ids += known
        return ids

    def decode(self, ids: Iterable[int]) -> bytes:
        """The bytes that these tokens stand for."""
        return b"".join(self.token_bytes[i] for i in ids)

    def _encode_word(self, word: bytes) -> list[int]:
        """Apply the earliest-learned merge first, until none applies."""
        ids = list(word)
        while len(ids) > 1:
            best = min(self._merged.get(pair, VOCAB_SIZE) for pair in zip(ids, ids[1:], strict=False))
            if best == VOCAB_SIZE:
                break
            ids = self._join(ids, best)
        return ids

    def _join(self, ids: list[int], token: int) -> list[int]:
        """`ids` with every pair that `token` stands for replaced by it, left to right."""
        joined, i = [], 0
        while i < len(ids):
            fits = i + 1 < len(ids) and self._merged.get((ids[i], ids[i + 1])) == token
            joined.append(token if fits else ids[i])
            i += 2 if fits else 1
        return joined


def split_of(name: str) -> str:
    """The split of a document, by the hash of its top-level name."""
    top_level = name.split("/")[0].removesuffix(".py")
    percentile = int(_hash(SPLIT_SALT + top_level)[:16], 16) % 100
    if percentile < SPLIT_PERCENT[0]:
        return SPLITS[0]
    return SPLITS[1] if percentile < SPLIT_PERCENT[0] + SPLIT_PERCENT[1] else SPLITS[2]


def standard_library() -> list[Document]:
    """Every source file of the running interpreter's standard library that is text worth learning.

    Ordered by the hash of their names, so that the first tokens of a split speak for all of it.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted((path.relative_to(root) for path in root.rglob("*.py")), key=lambda path: _hash(path.as_posix()))
    documents = [Document(p.as_posix(), (root / p).read_bytes()) for p in paths if _wanted(p)]
    size = sum(len(document.data) for document in documents)
    if size < MIN_CORPUS_BYTES:
        raise PrepareError(
            f"{root} holds only {size / 1e6:.1f} MB of .py sources, too few to train on: "
            "use a Python that ships its standard library as sources (python.org, pyenv, uv, or your distribution's)"
        )
    return documents


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _wanted(path: Path) -> bool:
    return EXCLUDED_DIRS.isdisjoint(path.parts) and not path.parts[0].startswith(EXCLUDED_PREFIXES)


def write_corpus(documents: list[Document], folder: Path) -> dict[str, object]:
    """Tokenise `documents` into `folder` and return the manifest that was written there."""
    tokenizer = Tokenizer()
    splits = {}
    for split in SPLITS:
        chosen = [document for document in documents if split_of(document.name) == split]
        (folder / split).mkdir()
        splits[split] = _write_split(tokenizer, chosen, folder / split / "tokens.bin")
        told = "{documents} documents, {bytes} bytes -> {tokens} tokens".format(**splits[split])
        print(f"{split}: {told}", flush=True)
    facts = {"vocab_size": VOCAB_SIZE, "bos": BOS}
    (folder / "train" / "meta.json").write_text(json.dumps(facts) + "\n")
    lengths = np.array([len(raw) for raw in tokenizer.token_bytes], dtype=np.int32)
    np.save(folder / "token_bytes.npy", lengths)
    # The Python version is told, but not fingerprinted: equal tokens are equal, wherever they came from.
    fingerprinted = {"format": FORMAT, "source": "stdlib", **facts, "splits": splits}
    basis = json.dumps({**fingerprinted, "token_bytes": lengths.tolist()}, sort_keys=True)
    fingerprint = hashlib.sha256(basis.encode()).hexdigest()
    manifest = {**fingerprinted, "python": platform.python_version(), "fingerprint": fingerprint}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def _write_split(tokenizer: Tokenizer, documents: list[Document], path: Path) -> dict[str, int | str]:
    ids: list[int] = []
    for document in documents:
        ids.append(BOS)
        ids += tokenizer.encode(document.data)
    raw = np.array(ids, dtype="<u2").tobytes()
    path.write_bytes(raw)
    return {
        "tokens": len(ids),
        "bytes": sum(len(document.data) for document in documents),
        "documents": len(documents),
        "sha256": hashlib.sha256(raw).hexdigest(),
    }


def read_prepared(folder: Path) -> dict[str, object] | None:
    """The manifest of a finished preparation in `folder`; None when there is nothing yet.

    Raises:
        PrepareError: something else lies there, or a file of the preparation is missing or cut short.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        sizes = {split: (folder / split / "tokens.bin").stat().st_size for split in SPLITS}
        whole = manifest["format"] == FORMAT and all(
            sizes[split] == 2 * manifest["splits"][split]["tokens"] for split in SPLITS
        )
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise PrepareError(f"{folder} exists and is not a corpus of this version: remove it or choose another --out")
    return manifest


def prepare(out: Path) -> dict[str, object]:
    """Leave a finished corpus in `out`, whatever an earlier, killed run left behind; return its manifest."""
    _remove_stale(out)
    manifest = read_prepared(out)
    if manifest is not None:
        print(f"{out}: already prepared by Python {manifest['python']}")
        return manifest
    out.parent.mkdir(parents=True, exist_ok=True)
    documents = standard_library()
    print(f"standard library of Python {platform.python_version()}: {len(documents)} files", flush=True)
    aside = Path(tempfile.mkdtemp(prefix=_aside_prefix(out), dir=out.parent))
    try:
        manifest = write_corpus(documents, aside)
        aside.chmod(0o755)  # mkdtemp keeps others out
        _sync(aside)
        aside.rename(out)
    except OSError:
        manifest = read_prepared(out)  # another preparation was faster: theirs will do
        if manifest is None:
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return manifest


def _aside_prefix(out: Path) -> str:
    return f".{out.name}.partial-"


def _remove_stale(out: Path) -> None:
    for folder in out.parent.glob(_aside_prefix(out) + "*"):
        if time.time() - folder.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Bytes on the disk before the name: after a power cut the folder is absent, never half there."""
    for path in folder.rglob("*"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def main() -> int:
    """Command line: 0 when the corpus is there, 2 with one sentence when the user must do something."""
    parser = argparse.ArgumentParser(description="Prepare the training, validation and holdout tokens.")
    parser.add_argument("--out", type=Path, required=True, help="folder to make, e.g. data")
    parser.add_argument("--source", choices=["stdlib"], default="stdlib", help="where the text comes from")
    arguments = parser.parse_args()
    try:
        manifest = prepare(arguments.out.resolve())
    except PrepareError as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"prepare: {error}: free some space or choose a writable --out, then run again", file=sys.stderr)
        return 2
    print(f"fingerprint {manifest['fingerprint']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
