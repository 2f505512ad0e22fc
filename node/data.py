"""Prepared data of a Task on this Node, and the token stream of one Trial.

Owns where prepared data lies and how a seed draws from it. Preparing is the Task's own frozen script, run once; its
folder appears whole or not at all, so two nodes of one machine may start together.
"""

import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from swarm.corpus import MANIFEST, read_manifest
from swarm.errors import TaskError
from swarm.records import digest
from swarm.task import Task, command

PIECE = 256  # consecutive tokens drawn at once: the longest window of the CPU tier; 512 cost 1.3 % of bpb
PREPARE_LIMIT_S = 1800.0  # the shipped script takes 5 s; others may download


class Data(NamedTuple):
    """Prepared data: where, and which. Scores compare only under one fingerprint."""

    folder: Path
    fingerprint: str


def prepare_data(task: Task, folder: Path, given: str, home: Path, *, shown: bool = False) -> Data | None:
    """The data of a Task: the `given` folder where it exists, else made below `home`. None when the Task has none.

    `shown`: what the Task's script prints goes to our own output, as somebody may be waiting for a download.

    Raises:
        TaskError: the Task's script failed, or left no manifest with a fingerprint.
    """
    if not task.has_data:
        return None
    if given and (Path(given) / MANIFEST).is_file():
        return read_data(Path(given))
    out = home / f"{task.name}-{digest(task.commands.prepare, *sorted(task.frozen.values()))[:12]}"
    home.mkdir(parents=True, exist_ok=True)
    argv = command(task.commands.prepare, folder.resolve(), {"data": out.resolve()})
    try:
        done = subprocess.run(
            argv,
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=None if shown else subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=PREPARE_LIMIT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise TaskError(f"{task.commands.prepare} took longer than {PREPARE_LIMIT_S:.0f} s; run it by hand") from error
    if done.returncode:
        said = (done.stderr or done.stdout or b"").decode("utf-8", "replace").strip().splitlines()
        raise TaskError(f"preparing the data of {task.name} failed: {said[-1] if said else f'exit {done.returncode}'}")
    return read_data(out)


def read_data(folder: Path) -> Data:
    """Prepared data as its manifest describes it. Sizes only: to hash gigabytes at every start takes minutes.

    Raises:
        TaskError: there is no manifest, or a file is not as long as it says.
    """
    manifest = read_manifest(folder)
    for name, listed in manifest.files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != listed.bytes:
            raise TaskError(f"{path} is missing, cut short or grown; remove {folder} and prepare again")
    return Data(folder.resolve(), manifest.fingerprint)


def write_documents(path: Path, folder: Path, seed: int, count: int) -> None:
    """Write the token stream of a Trial as whole documents in an order that the seed draws.

    Each comes once before any comes again; the last is cut where `count` tokens are full. Written as it is drawn: half
    a billion tokens would not be welcome in memory.

    Raises:
        OSError: no documents there, or no room here.
    """
    tokens, starts = _tokens(folder / "tokens.bin"), _documents(folder / "documents.npy")
    if not len(starts) or starts[0] >= len(tokens):
        raise OSError(f"{folder} holds no documents; prepare the data again")
    ends = np.append(starts[1:], len(tokens))
    random = np.random.Generator(np.random.PCG64(seed))
    left = count
    with path.open("wb") as stream:
        while left:
            for document in random.permutation(len(starts)):
                piece = tokens[starts[document] : ends[document]][:left]
                stream.write(piece.tobytes())
                left -= len(piece)


def _documents(path: Path) -> NDArray[np.int64]:
    """Where each document starts."""
    try:
        starts: NDArray[np.int64] = np.load(path, allow_pickle=False).astype(np.int64)
    except ValueError as error:
        raise OSError(f"{path} is damaged: {error}; prepare the data again") from error
    return starts


def _tokens(path: Path) -> NDArray[np.uint16]:
    try:
        return np.memmap(path, dtype="<u2", mode="r")
    except ValueError as error:  # an empty file cannot be mapped
        raise OSError(f"{path} is damaged: {error}; prepare the data again") from error


def write_stream(path: Path, tokens_file: Path, seed: int, count: int) -> None:
    """Write the token stream of a Trial: exactly `count` training tokens, in pieces that the seed draws.

    The order is ours, not the candidate's: a seed written into its code gains nothing.

    Raises:
        OSError: no tokens there, or no room here.
    """
    tokens = _tokens(tokens_file)
    random = np.random.Generator(np.random.PCG64(seed))
    starts = random.integers(0, max(1, len(tokens) - PIECE), size=-(-count // PIECE))
    stream = np.concatenate([tokens[start : start + PIECE] for start in starts])[:count]
    if len(stream) != count:
        raise OSError(f"{tokens_file} holds fewer than {PIECE} tokens; prepare the data again")
    path.write_bytes(stream.tobytes())
