"""TRUSTED. Turns what a candidate left into a score that is ours.

Owns the targets, the byte table, the frames and the arithmetic. The candidate's code runs elsewhere (`score.py`, in a
box of its own, with the artifact and nothing of the split) and sends predictions: never a loss, never a probability, so
nothing has to be normalised in good faith. Where predictions are too many to be sent, it claims what each token cost,
and nothing may rest on that before predictions of another process were held against it (`audit.py`). Nothing that a
candidate wrote is parsed here beyond a 16-byte header and raw floats.

NOT covered here: predictions that looked at the future. The tokens that are sent are the targets, shifted by one; only
an audit that never sends the future can tell (`audit.py`).
"""

import builtins
import os
import re
import selectors
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from node.processes import has_ended
from node.watch import NOT_A_NUMBER, TrialFailed, Watch, check_exit

ALL, CLAIMS, ONE, ANSWER = 0x53574D51, 0x53574D43, 0x53574D50, 0x53574D41
QUESTION_HEADER, ANSWER_HEADER = struct.Struct("<III"), struct.Struct("<IIII")
ROWS = 16  # windows in a frame: 17 MB of answers at 256 tokens and 1025 logits each
FRAME_BYTES = 2**26  # fewer rows when the vocabulary is large
BLOCK = 128  # rows of logits per step of arithmetic: 0.5 MB stays in the cache

# The names that a process may leave behind when it fails: a class of its own could be named after what it read.
ERRORS = {name for name, it in vars(builtins).items() if isinstance(it, type) and issubclass(it, BaseException)}
ERRORS |= {"CandidateError", "OutOfMemoryError"}
SHAPE = "logits are [windows, tokens, vocabulary] for tokens [windows, tokens], and these were not"

Split = Literal["val", "holdout"]
Logits = NDArray[np.float32]
Bits = NDArray[np.float64]
Tokens = NDArray[np.uint16]


@dataclass(frozen=True, eq=False)
class Questions:
    """Windows of one split: what is sent, and what stays here."""

    inputs: Tokens  # [rows, window]
    targets: Tokens  # [rows, window]; inputs, one token later
    spare: Tokens  # [at most as many, window]; what follows the scored text in the split, itself never scored
    token_bytes: NDArray[np.int64]  # [vocabulary]; 0 for tokens that stand for no text, and are not scored


@lru_cache(maxsize=2)
def read_questions(folder: Path, split: Split, window: int, tokens: int) -> Questions:
    """The first `tokens` targets of a split, in rows of `window`, each target once.

    Raises:
        OSError: the prepared data is missing, damaged, or has fewer tokens than one row.
    """
    whole = np.fromfile(folder / split / "tokens.bin", dtype="<u2", count=2 * tokens + 1)
    stream = whole[: tokens + 1]
    try:
        token_bytes = np.load(folder / "token_bytes.npy", allow_pickle=False).astype(np.int64)
    except ValueError as error:
        raise OSError(f"{folder / 'token_bytes.npy'} is damaged; prepare the data again") from error
    rows = (len(stream) - 1) // window
    if rows < 1 or whole.max() >= len(token_bytes):
        raise OSError(f"{folder}: the {split} split is damaged or too small; remove the folder and prepare it again")
    used = rows * window
    rest = whole[used + 1 :]  # the token before it is a target
    spare = rest[: len(rest) // window * window].reshape(-1, window)
    return Questions(
        stream[:used].reshape(rows, window), stream[1 : used + 1].reshape(rows, window), spare, token_bytes
    )


# --- answers ---------------------------------------------------------------------------------------------


def token_bits(watch: Watch, questions: Questions, keep: Callable[[Logits], None] = lambda logits: None) -> Bits:
    """Ask a running `score.py` about every window: the bits that it needs for each target, [rows, window].

    `keep` sees the answers before the arithmetic overwrites them, in their order.

    Raises:
        TrialFailed: it ended, hung, answered something else than it was asked, or its predictions are not finite.
    """
    found = []
    for inputs, targets in _frames(questions):
        logits = ask(watch, inputs, len(questions.token_bytes))
        keep(logits)
        found.append(surprise(logits.reshape(targets.size, -1), targets.ravel()).reshape(targets.shape))
    finish(watch)
    return np.concatenate(found)


def claimed_bits(watch: Watch, questions: Questions) -> Bits:
    """Ask a running `score.py` what each target cost: its own word, [rows, window].

    Raises:
        TrialFailed: it ended, hung, answered something else than it was asked, or no number of bits.
    """
    found = []
    for inputs, targets in _frames(questions):
        whole = np.concatenate((inputs, targets[:, -1:]), axis=1)
        found.append(_exchange(watch, CLAIMS, whole, b"", [*inputs.shape, 1])[..., 0])
        if not (np.isfinite(found[-1]) & (found[-1] >= 0)).all():
            raise TrialFailed("candidate", "nan", "it claimed that a token cost what is no number of bits")
    finish(watch)
    return np.concatenate(found).astype(np.float64)


def bits_per_byte(bits: Bits, questions: Questions) -> float:
    """The score: bits for the targets that stand for text, over the bytes of that text.

    Raises:
        TrialFailed: a token that came had no probability.
        OSError: the split has no text.
    """
    lengths = questions.token_bytes[questions.targets]
    if not lengths.any():
        raise OSError("the scored tokens stand for no text; prepare the data again")
    needed = float(bits[lengths > 0].sum())
    if not np.isfinite(needed):
        raise TrialFailed("candidate", "nan", "it gave a token that came a probability of 0")
    return needed / int(lengths.sum())


def surprise(logits: Logits, targets: Tokens) -> Bits:
    """Bits for each target, infinite where it had no probability. `logits` is [n, vocabulary] and is overwritten.

    exp in float32, relative to the row's maximum, is good to 1e-7 of a probability; everything after it is float64.

    Raises:
        TrialFailed: the logits are not finite.
    """
    bits = np.empty(len(targets))
    for start in range(0, len(targets), BLOCK):
        block, wanted = logits[start : start + BLOCK], targets[start : start + BLOCK]
        peak = block.max(axis=1, keepdims=True)  # NaN if there is one
        if not (np.isfinite(peak).all() and np.isfinite(block.min())):
            raise TrialFailed("candidate", "nan", "its predictions are not finite")
        with np.errstate(over="ignore"):  # -3e38 - 3e38: a probability of 0, which it is
            block -= peak
        chosen = block[np.arange(len(block)), wanted].astype(np.float64)
        np.exp(block, out=block)
        bits[start : start + BLOCK] = (np.log(block.sum(axis=1, dtype=np.float64)) - chosen) / np.log(2)
    return bits


def _frames(questions: Questions) -> Iterator[tuple[Tokens, Tokens]]:
    window, vocabulary = questions.inputs.shape[1], len(questions.token_bytes)
    rows = frame_rows(window, vocabulary)
    for start in range(0, len(questions.inputs), rows):
        yield questions.inputs[start : start + rows], questions.targets[start : start + rows]


def frame_rows(window: int, vocabulary: int) -> int:
    """How many windows are asked about at once."""
    return max(1, min(ROWS, FRAME_BYTES // (4 * window * vocabulary)))


def ask(watch: Watch, inputs: Tokens, vocabulary: int) -> Logits:
    """One frame: logits [rows, window, vocabulary] for windows of tokens.

    Raises:
        TrialFailed: it ended, hung, or answered something else than it was asked.
    """
    return _exchange(watch, ALL, inputs, b"", [*inputs.shape, vocabulary])


def ask_at(watch: Watch, inputs: Tokens, places: NDArray[np.int64], vocabulary: int) -> Logits:
    """One frame: logits [rows, vocabulary], for one place in each window.

    Raises:
        TrialFailed: it ended, hung, or answered something else than it was asked.
    """
    return _exchange(watch, ONE, inputs, places.astype("<u2").tobytes(), [len(inputs), 1, vocabulary])[:, 0]


def _exchange(watch: Watch, what: int, tokens: Tokens, more: bytes, shape: list[int]) -> Logits:
    _send(watch, QUESTION_HEADER.pack(what, *tokens.shape) + tokens.astype("<u2").tobytes() + more)
    header = bytearray(ANSWER_HEADER.size)
    _receive(watch, memoryview(header))
    magic, *told = ANSWER_HEADER.unpack(header)
    if magic != ANSWER:
        raise TrialFailed("candidate", "scoring", "sent something else than an answer")
    if told != shape:
        words = ", ".join(str(ours) if ours == theirs else "?" for ours, theirs in zip(shape, told, strict=True))
        raise TrialFailed("candidate", "scoring", f"answered in shape [{words}], not {shape}")
    answers: Logits = np.empty(shape, dtype=np.dtype("<f4"))
    _receive(watch, answers.data.cast("B"))
    return answers


def finish(watch: Watch) -> None:
    """Tell it that no question follows."""
    _send(watch, QUESTION_HEADER.pack(ALL, 0, 0))


def _send(watch: Watch, data: bytes) -> None:
    port = watch.process.stdin
    assert port is not None, "a box that answers has a stdin"
    os.set_blocking(port.fileno(), False)  # its reader says how much fits, and may say less than it seemed
    rest = memoryview(data)
    while rest:
        if watch.step(port.fileno(), selectors.EVENT_WRITE):
            try:
                rest = rest[os.write(port.fileno(), rest) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                _ended_early(watch)


def _receive(watch: Watch, into: memoryview) -> None:
    port = watch.process.stdout
    assert port is not None, "a box that answers has a stdout"
    os.set_blocking(port.fileno(), False)  # its writer may take back what was there to be read
    while into:
        if watch.step(port.fileno(), selectors.EVENT_READ):
            try:
                count = os.readv(port.fileno(), [into])
            except BlockingIOError:
                continue
            if not count:
                _ended_early(watch)
            into = into[count:]
        elif has_ended(watch.process.pid):
            _ended_early(watch)  # somebody else holds its pipe open


def _ended_early(watch: Watch) -> None:
    """It closed its pipes with questions left: find out how it ended."""
    watch.until_end()
    try:
        check_exit(watch, "scoring")
    except TrialFailed as failed:
        if failed.blame != "candidate":
            raise
        raise TrialFailed("candidate", failed.reason, f"score: {_in_our_words(str(failed))}") from None
    raise TrialFailed("candidate", "scoring", "stopped answering before the last question")


def _in_our_words(message: str) -> str:
    """How a process ended that has seen the scored text, in none of its words: proposers read of every failure."""
    how, _, said = message.partition(": ")
    name = (re.findall(r"\A(?:score: )?(\w+)\b", said) or [""])[0]
    if name not in ERRORS:
        return how
    return f"{how}: {name}: {SHAPE}" if name == "CandidateError" and "logits of shape" in said else f"{how}: {name}"


# --- printed ---------------------------------------------------------------------------------------------


def printed_score(log: str, pattern: str) -> float:
    """The candidate's own word: the last line of the log that matches.

    Raises:
        TrialFailed: there is none, or it is not a finite number.
    """
    matches = list(re.finditer(pattern, log, re.MULTILINE))
    if not matches:
        reason: Literal["nan", "rule"] = "nan" if NOT_A_NUMBER.search(log) else "rule"
        raise TrialFailed("candidate", reason, f"printed no score: no line matches {pattern!r}")
    word = matches[-1].group(1)
    try:
        score = float(word)
    except (TypeError, ValueError) as error:
        raise TrialFailed("candidate", "rule", f"printed {word!r} as its score, which is not a number") from error
    if not np.isfinite(score):
        raise TrialFailed("candidate", "nan", f"printed {word!r} as its score")
    return score
