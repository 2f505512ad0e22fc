"""Turn documents into tokens: the byte-level BPE, how larger vocabularies are learned, and one part's work.

Owns token ids and 8-word shingles. Knows nothing of where documents come from, nor of the finished folder's layout.
This file is frozen: no experiment may edit it.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sources import SPLITS, Document, Part, PrepareError, read_part

MERGES_FILE = Path(__file__).with_name("bpe1024.txt")
SHIPPED_VOCAB = 1025  # 256 bytes, 768 merges, BOS
MAX_VOCAB = 65_536  # tokens are uint16
BPE_SAMPLE_BYTES = 100_000_000  # of training text that merges are learned from; more moves bits per byte by < 0.1 %
CACHED_WORDS = 500_000  # about 150 MB; web text has millions of words that occur once
SHINGLE_WORDS = 8
SHINGLE_PRIMES = np.array([pow(0x9E3779B97F4A7C15, k, 2**64) for k in range(SHINGLE_WORDS)], dtype=np.uint64)

# Words that merges never cross. Bytes, not str: ids then do not depend on a Python version's Unicode tables.
WORD = re.compile(rb"\r?\n *| ?[A-Za-z]+| ?[0-9]{1,3}| ?[^\sA-Za-z0-9]+|[^\S\n]+(?=\S)|\s")


class Tokenizer:
    """Byte-level BPE. Line i of the merges file names the two tokens that token 256 + i joins; BOS is the last id."""

    def __init__(self, merges_file: Path = MERGES_FILE) -> None:
        """Read the merges; every token's bytes follow from them."""
        merges = [tuple(map(int, line.split())) for line in merges_file.read_text("ascii").splitlines()]
        self._merged = {(left, right): 256 + i for i, (left, right) in enumerate(merges)}
        self.token_bytes = [bytes([i]) for i in range(256)]
        for left, right in merges:
            self.token_bytes.append(self.token_bytes[left] + self.token_bytes[right])
        self.bos = len(self.token_bytes)
        self.token_bytes.append(b"")  # BOS stands for no text
        self._cache: dict[bytes, list[int]] = {}

    def encode(self, data: bytes) -> list[int]:
        """Token ids of any bytes, BOS not included; `decode` gives the same bytes back."""
        ids: list[int] = []
        cache = self._cache
        if len(cache) > CACHED_WORDS:
            cache.clear()
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
        ids, none = list(word), len(self.token_bytes)
        while len(ids) > 1:
            best = min(self._merged.get(pair, none) for pair in zip(ids, ids[1:], strict=False))
            if best == none:
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


def learn_merges(parts: list[Part], vocab: int, path: Path) -> Path:
    """The merges file of a vocabulary: the shipped one, or learned from the first training text and kept at `path`."""
    if vocab == SHIPPED_VOCAB:
        return MERGES_FILE
    if not 258 <= vocab <= MAX_VOCAB:
        raise PrepareError(f"--vocab {vocab} does not fit: choose 258 to {MAX_VOCAB}, tokens are stored in 16 bits")
    if not path.exists():
        pairs = _learn(_training_words(parts), vocab - 257)
        write_whole(path, "".join(f"{left} {right}\n" for left, right in pairs).encode())
    return path


def _training_words(parts: list[Part]) -> Iterator[str]:
    """Words of the training split, one character a byte: the library then needs no alphabet of its own."""
    left = BPE_SAMPLE_BYTES
    for part in parts:
        for document in read_part(part):
            if document.split == "train" and left > 0:
                left -= len(document.data)
                yield from (word.decode("latin-1") for word in WORD.findall(document.data))
        if left <= 0:
            return


def _learn(words: Iterator[str], count: int) -> list[tuple[int, int]]:
    try:
        from tokenizers import Tokenizer as Learner
        from tokenizers import models, trainers
    except ImportError as error:
        raise PrepareError(
            f"a vocabulary other than {SHIPPED_VOCAB} is learned with tokenizers, which is not installed: "
            "pip install tokenizers, then run again"
        ) from error
    learner = Learner(models.BPE())
    alphabet = [chr(i) for i in range(256)]
    learner.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=256 + count, initial_alphabet=alphabet, show_progress=False)
    )
    ids = {character: i for i, character in enumerate(alphabet)}
    pairs = []
    for left, right in json.loads(learner.to_str())["model"]["merges"]:
        if left + right not in ids:  # two merges may spell one token: the first gives the id
            ids[left + right] = 256 + len(pairs)
            pairs.append((ids[left], ids[right]))
    if len(pairs) < count:
        raise PrepareError(f"the training text holds only {len(pairs)} merges of {count}: choose a smaller --vocab")
    return pairs


def tokenise_part(part: Part, merges_file: Path, folder: Path, index: int, sample: int) -> dict[str, Any]:
    """Leave a part's tokens and shingles in `folder`; return its receipt. A finished part is checked and kept."""
    receipt_file = folder / f"{index:05}.json"
    key = hashlib.sha256(f"{part.key} {hashlib.sha256(merges_file.read_bytes()).hexdigest()} {sample}".encode())
    kept = _finished(receipt_file, key.hexdigest())
    if kept is not None:
        return {**kept, "kept": True}
    tokenizer, shingles = Tokenizer(merges_file), Shingles(sample)
    ids: dict[str, list[np.ndarray[Any, Any]]] = {split: [] for split in SPLITS}
    marks: dict[str, list[np.ndarray[Any, Any]]] = {split: [] for split in SPLITS}
    counts = {split: {"bytes": 0, "documents": 0} for split in SPLITS}
    for document in read_part(part):
        _add(document, counts[document.split])
        ids[document.split].append(np.array([tokenizer.bos, *tokenizer.encode(document.data)], dtype="<u2"))
        marks[document.split].append(shingles.of(document.data))
    files = {}
    for split in SPLITS:
        tokens = np.concatenate([np.empty(0, dtype="<u2"), *ids[split]])
        unique = np.unique(np.concatenate([np.empty(0, dtype="<u8"), *marks[split]]))
        for suffix, raw in (("bin", tokens.tobytes()), ("shingles", unique.tobytes())):
            name = f"{index:05}.{split}.{suffix}"
            write_whole(folder / name, raw)
            files[name] = hashlib.sha256(raw).hexdigest()
    receipt = {"key": key.hexdigest(), "counts": counts, "files": files}
    write_whole(receipt_file, json.dumps(receipt).encode())
    return {**receipt, "kept": False}


def _add(document: Document, counts: dict[str, int]) -> None:
    counts["bytes"] += len(document.data)
    counts["documents"] += 1


def _finished(receipt_file: Path, key: str) -> dict[str, Any] | None:
    try:
        receipt: dict[str, Any] = json.loads(receipt_file.read_text())
        whole = receipt["key"] == key and all(
            hash_file(receipt_file.with_name(name)) == digest for name, digest in receipt["files"].items()
        )
    except (FileNotFoundError, ValueError, KeyError):
        return None  # not begun, or killed before it was finished: done again
    return receipt if whole else None


class Shingles:
    """Hashes of every run of eight words; of a large corpus one in `sample`, chosen by the hash: an unbiased share."""

    def __init__(self, sample: int) -> None:
        """Start with no words known."""
        self._sample = np.uint64(sample)
        self._words: dict[bytes, int] = {}

    def of(self, data: bytes) -> np.ndarray[Any, Any]:
        """The document's shingles as uint64, unsorted; none for fewer than eight words."""
        words = np.array([self._number(word) for word in data.split()], dtype=np.uint64)
        if len(words) < SHINGLE_WORDS:
            return np.empty(0, dtype=np.uint64)
        windows = np.lib.stride_tricks.sliding_window_view(words, SHINGLE_WORDS)
        hashes = (windows * SHINGLE_PRIMES).sum(axis=1, dtype=np.uint64)  # wraps, as a hash should
        hashes ^= hashes >> np.uint64(29)
        return hashes[hashes % self._sample == 0]

    def _number(self, word: bytes) -> int:
        if len(self._words) > CACHED_WORDS:
            self._words.clear()
        known = self._words.get(word)
        if known is None:
            known = self._words[word] = int.from_bytes(hashlib.blake2b(word, digest_size=8).digest(), "little")
        return known


def hash_file(path: Path) -> str:
    """The sha256 of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, raw: bytes) -> None:
    """Write a file that is there whole or not at all, whenever the process is killed."""
    aside = path.with_name(path.name + ".tmp")
    with aside.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)
