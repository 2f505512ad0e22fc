"""Make the corpus: text from a source, split, tokenised once and fingerprinted.

    python prepare.py --out data                          # the Python standard library: 4 CPU-seconds, 6.5 MB
    python prepare.py --out data --source text:my-notes   # any folder of text files
    python prepare.py --out data --source climbmix --vocab 8192 --shards 8

By default the text is what every machine with Python has, so nothing is downloaded. The folder that this leaves:

    train/tokens.bin      uint16 little-endian; every document is preceded by BOS     } all that a training
    train/documents.npy   uint64: where each document starts in tokens.bin            } trial ever sees
    train/meta.json       {"vocab_size": 1025, "bos": 1024}                           }
    val/...               what scores are computed on
    holdout/...           looked at once, for a tree that is about to be shared
    merges.txt            the BPE's merges
    token_bytes.npy       int32[vocab]: raw bytes that each token stands for, BOS = 0 (bits per BYTE need it)
    manifest.json         counts, hashes and the fingerprint: scores compare only under one fingerprint

Near-duplicates across the splits are measured: the share of the 8-word shingles of val and holdout that also occur in
train. Of the standard library (Python 3.11) that is 1.2 % and 0.9 %; splitting it by file would leak 2.2 % and 5.5 %.

The folder appears whole or not at all: it is made aside, part by part over `--workers` processes, then renamed. A
killed preparation that is started again checks the finished parts and does only the others. The standard library
differs between Python versions, hence so does the fingerprint. This file is frozen: no experiment may edit it.
"""

import argparse
import fcntl
import hashlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sources import DOWNLOADS, PART_BYTES, SPLITS, Part, PrepareError, find_parts
from tokenise import SHINGLE_WORDS, SHIPPED_VOCAB, Tokenizer, hash_file, learn_merges, tokenise_part, write_whole

FORMAT = 1
STALE_SECONDS = 86_400  # an unfinished preparation of something else, untouched this long, is not coming back
EXACT_BYTES = 64_000_000  # of sources; above, one shingle in SAMPLE is compared, and a share is good to 1 % of itself
SAMPLE = 16
BLOCK = 1 << 24  # bytes copied at a time


class Asked(NamedTuple):
    """What is to be prepared, and how."""

    source: str
    vocab: int
    shards: int
    cache: Path
    offline: bool
    workers: int
    part_bytes: int
    merges: Path | None = None  # None: shipped, or learned

    def what(self) -> dict[str, object]:
        """The part of it that decides the tokens."""
        return {"source": self.source, "vocab": self.vocab, "shards": self.shards}


def default_request(out: Path) -> Asked:
    """What the shipped task is trained on."""
    return Asked("stdlib", SHIPPED_VOCAB, 0, out.parent / "downloads", False, 1, PART_BYTES)


# ---- making it


def prepare(out: Path, asked: Asked | None = None) -> dict[str, Any]:
    """Leave a finished corpus in `out`, whatever an earlier, killed run left behind; return its manifest."""
    asked = asked or default_request(out)
    manifest = already(out, asked)
    if manifest is not None:
        return manifest
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.parent / f"{_aside_prefix(out)}{_digest(asked.what())[:12]}"
    _remove_stale(out, aside)
    with _alone(aside):
        manifest = already(out, asked)  # another preparation was faster: theirs will do
        if manifest is None:
            try:
                manifest = _make(asked, aside)
            except PrepareError:
                if [path.name for path in aside.iterdir()] == ["lock"]:  # refused: nothing to go on with
                    shutil.rmtree(aside)
                raise
            _sync(aside / "made")
            (aside / "made").rename(out)
        shutil.rmtree(aside, ignore_errors=True)
    return manifest


def _make(asked: Asked, aside: Path) -> dict[str, Any]:
    parts = find_parts(asked.source, asked.cache, asked.shards, asked.part_bytes, asked.offline)
    sample = 1 if sum(part.size for part in parts) <= EXACT_BYTES else SAMPLE
    merges = asked.merges or learn_merges(parts, asked.vocab, aside / "merges.txt")
    receipts = _tokenise(parts, merges, aside, sample, asked.workers)
    made = aside / "made"
    shutil.rmtree(made, ignore_errors=True)
    return _assemble(asked, aside, made, receipts, merges, sample)


def _tokenise(parts: list[Part], merges: Path, aside: Path, sample: int, workers: int) -> list[dict[str, Any]]:
    count = len(parts)
    work = (parts, [merges] * count, [aside] * count, range(count), [sample] * count)
    if min(workers, count) == 1:
        return list(_told(map(tokenise_part, *work), count))
    try:
        with ProcessPoolExecutor(min(workers, count), mp_context=get_context("spawn")) as pool:
            return list(_told(pool.map(tokenise_part, *work), count))
    except BrokenProcessPool as error:
        raise PrepareError(
            "a worker was killed, most likely for its memory: run again with fewer --workers, finished parts are kept"
        ) from error


def _told(receipts: Iterator[dict[str, Any]], count: int) -> Iterator[dict[str, Any]]:
    for done, receipt in enumerate(receipts, 1):
        if count > 1:
            print(f"part {done} of {count}: {'kept' if receipt['kept'] else 'tokenised'}", flush=True)
        yield receipt


def _assemble(
    asked: Asked, aside: Path, made: Path, receipts: list[dict[str, Any]], merges: Path, sample: int
) -> dict[str, Any]:
    """Join the parts into the folder that is going to be `out`, and describe it."""
    tokenizer = Tokenizer(merges)
    facts = {"vocab_size": len(tokenizer.token_bytes), "bos": tokenizer.bos}
    splits = {}
    for split in SPLITS:
        (made / split).mkdir(parents=True)
        splits[split] = _join(aside, made / split, split, receipts, tokenizer.bos)
        print("{}: {documents} documents, {bytes} bytes -> {tokens} tokens".format(split, **splits[split]), flush=True)
    (made / "train" / "meta.json").write_text(json.dumps(facts) + "\n")
    shutil.copyfile(merges, made / "merges.txt")
    lengths = [len(raw) for raw in tokenizer.token_bytes]
    np.save(made / "token_bytes.npy", np.array(lengths, dtype=np.int32))
    shares = {split: _share(aside, split, len(receipts)) for split in SPLITS[1:]}
    for split, share in shares.items():
        print(f"{split}: {share:.2%} of its {SHINGLE_WORDS}-word shingles occur in train", flush=True)
    source = asked.source.split(":")[0]
    fingerprinted: dict[str, Any] = {"format": FORMAT, "source": source, **facts, "splits": splits}
    if asked.vocab != SHIPPED_VOCAB:
        fingerprinted["merges"] = hash_file(merges)
    manifest = {
        **fingerprinted,
        "python": platform.python_version(),  # told, not fingerprinted: equal tokens are equal, wherever they came from
        "asked": asked.what(),
        "near_duplicates": {**shares, "words": SHINGLE_WORDS, "one_in": sample},
        "fingerprint": fingerprint_of(fingerprinted, lengths),
        "files": _files(made),
    }
    write_whole(made / "manifest.json", (json.dumps(manifest, indent=2) + "\n").encode())
    return manifest


def fingerprint_of(manifest: dict[str, Any], token_bytes: list[int]) -> str:
    """What scores are compared under: the tokens of every split and what they stand for."""
    names = ("format", "source", "vocab_size", "bos", "splits", "merges")
    return _digest({**{name: manifest[name] for name in names if name in manifest}, "token_bytes": token_bytes})


def _digest(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _join(aside: Path, folder: Path, split: str, receipts: list[dict[str, Any]], bos: int) -> dict[str, int | str]:
    digest, count = hashlib.sha256(), 0
    starts = [np.empty(0, dtype="<u8")]
    with (folder / "tokens.bin").open("wb") as out:
        for index in range(len(receipts)):
            with (aside / f"{index:05}.{split}.bin").open("rb") as part:
                while raw := part.read(BLOCK):
                    out.write(raw)
                    digest.update(raw)
                    found = np.flatnonzero(np.frombuffer(raw, dtype="<u2") == bos)
                    starts.append(found.astype("<u8") + np.uint64(count))
                    count += len(raw) // 2
    if not count:
        raise PrepareError(f"no token falls to the {split} split: give the source more text")
    np.save(folder / "documents.npy", np.concatenate(starts))
    texts = [receipt["counts"][split] for receipt in receipts]
    return {
        "tokens": count,
        "bytes": sum(text["bytes"] for text in texts),
        "documents": sum(text["documents"] for text in texts),
        "sha256": digest.hexdigest(),
    }


def _share(aside: Path, split: str, parts: int) -> float:
    """How much of a split's shingles also occurs in train; 0 when its documents are too short to have any."""
    wanted = np.unique(np.concatenate([_shingles(aside, split, index) for index in range(parts)]))
    seen = np.zeros(len(wanted), dtype=bool)
    for index in range(parts):
        seen |= np.isin(wanted, _shingles(aside, "train", index))
    return round(float(seen.mean()), 6) if len(wanted) else 0.0


def _shingles(aside: Path, split: str, index: int) -> np.ndarray[Any, Any]:
    return np.fromfile(aside / f"{index:05}.{split}.shingles", dtype="<u8")


def _files(made: Path) -> dict[str, dict[str, int | str]]:
    paths = sorted(path for path in made.rglob("*") if path.is_file())
    return {p.relative_to(made).as_posix(): {"bytes": p.stat().st_size, "sha256": hash_file(p)} for p in paths}


# ---- what lies there already


def already(out: Path, asked: Asked) -> dict[str, Any] | None:
    """The manifest in `out` if it holds what is asked for; None when there is nothing yet."""
    manifest = read_prepared(out)
    if manifest is None:
        return None
    if manifest["asked"] != asked.what():
        there = ", ".join(f"{k} {v}" for k, v in manifest["asked"].items() if v != asked.what().get(k))
        raise PrepareError(f"{out} holds other data ({there}): choose another --out, or ask for what is there")
    if not _has_its_fingerprint(out, manifest):
        raise PrepareError(f"{out} has another fingerprint than its manifest says: remove it and prepare it again")
    print(f"{out}: already prepared by Python {manifest['python']}")
    return manifest


def read_prepared(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished preparation in `folder`; None when there is nothing yet.

    Raises:
        PrepareError: something else lies there, or a file of the preparation is missing or cut short.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        whole = manifest["format"] == FORMAT and {"asked", "python", "fingerprint"} <= manifest.keys()
        cut = [name for name, facts in manifest["files"].items() if (folder / name).stat().st_size != facts["bytes"]]
    except (OSError, ValueError, KeyError, TypeError):
        whole, cut = False, []
    if cut:
        raise PrepareError(f"{folder / cut[0]} is cut short or grown: remove {folder} or choose another --out")
    if not whole:
        raise PrepareError(f"{folder} exists and is not a corpus of this version: remove it or choose another --out")
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """Read every byte of a finished preparation and compare it with the manifest."""
    manifest = read_prepared(folder)
    if manifest is None:
        raise PrepareError(f"{folder} holds nothing to verify: prepare it first, without --verify")
    for name, facts in manifest["files"].items():
        if hash_file(folder / name) != facts["sha256"]:
            raise PrepareError(f"{folder / name} is damaged: remove {folder} and prepare it again")
    tokens = {split: facts["sha256"] for split, facts in manifest["splits"].items()}
    listed = {split: manifest["files"].get(f"{split}/tokens.bin", {}).get("sha256") for split in SPLITS}
    if not _has_its_fingerprint(folder, manifest) or tokens != listed:
        raise PrepareError(f"{folder / 'manifest.json'} was changed: remove {folder} and prepare it again")
    return manifest


def _has_its_fingerprint(folder: Path, manifest: dict[str, Any]) -> bool:
    try:
        lengths = np.load(folder / "token_bytes.npy", allow_pickle=False).tolist()
        return fingerprint_of(manifest, lengths) == manifest["fingerprint"]
    except (OSError, ValueError, EOFError):
        return False


# ---- the folder aside


def _aside_prefix(out: Path) -> str:
    return f".{out.name}.partial-"


@contextmanager
def _alone(aside: Path) -> Iterator[None]:
    """One preparation at a time in `aside`; the kernel lets go of the lock of a killed one."""
    while True:
        aside.mkdir(exist_ok=True)
        try:
            descriptor = os.open(aside / "lock", os.O_CREAT | os.O_RDWR, 0o644)
        except FileNotFoundError:
            continue  # the one before us finished, and removed the folder, just now
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            here = aside / "lock"
            if here.exists() and here.stat().st_ino == os.fstat(descriptor).st_ino:
                yield
                return
        finally:
            os.close(descriptor)


def _remove_stale(out: Path, ours: Path) -> None:
    for folder in out.parent.glob(_aside_prefix(out) + "*"):
        if folder != ours and time.time() - folder.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Bytes on the disk before the name: after a power cut the folder is absent, never half there."""
    for path in folder.rglob("*"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


# ---- command line


def main() -> int:
    """Command line: 0 when the corpus is there, 2 with one sentence when the user must do something."""
    arguments = _parser().parse_args()
    out: Path = arguments.out.resolve()
    source = arguments.source
    if source.startswith("text:") and source != "text:":
        source = f"text:{Path(source.removeprefix('text:')).expanduser().resolve()}"
    cache = (arguments.cache or out.parent / "downloads").resolve()
    workers, part_bytes = max(1, arguments.workers), max(1, arguments.part_bytes)
    merges: Path | None = arguments.merges
    try:
        vocab = _vocabulary_of(merges) if merges else arguments.vocab
        asked = Asked(source, vocab, arguments.shards, cache, arguments.offline, workers, part_bytes, merges)
        manifest = verify(out) if arguments.verify else prepare(out, asked)
    except PrepareError as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        advice = "free some space or choose a writable --out and --cache, then run again"
        print(f"prepare: {error}: {advice}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("prepare: interrupted: run the same command again and it goes on where it was", file=sys.stderr)
        return 130
    print(f"fingerprint {manifest['fingerprint']}")
    return 0


def _vocabulary_of(merges: Path) -> int:
    try:
        return len(Tokenizer(merges).token_bytes)
    except (OSError, ValueError, IndexError) as error:
        raise PrepareError(f"--merges {merges}: {error}: name the merges.txt of a prepared folder") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Prepare the training, validation and holdout tokens.")
    parser.add_argument("--out", type=Path, required=True, help="folder to make, e.g. data")
    parser.add_argument("--source", default="stdlib", help=f"stdlib, text:PATH, {', '.join(DOWNLOADS)}")
    parser.add_argument("--vocab", type=int, default=SHIPPED_VOCAB, help="tokens; other than 1025 needs `tokenizers`")
    parser.add_argument("--merges", type=Path, help="merges.txt of another folder, instead of --vocab")
    parser.add_argument("--shards", type=int, default=0, help="files of a public data set to take; 0 = its default")
    parser.add_argument("--cache", type=Path, help="where downloads are kept; downloads/ beside --out")
    parser.add_argument("--offline", action="store_true", help="download nothing")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that tokenise")
    parser.add_argument("--part-bytes", type=int, default=PART_BYTES, help="text tokenised at a time by one process")
    parser.add_argument("--verify", action="store_true", help="compare every byte of --out with its manifest")
    return parser


if __name__ == "__main__":
    sys.exit(main())
