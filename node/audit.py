"""TRUSTED. Whether answers depend on the past alone: the same windows asked again, with another future.

In each window, all that follows a secret cut is replaced by text that is never scored. A process that has seen nothing
but the artifact answers about them in another order and company. What it says before the cut must be what the scored
answers said there, bit for bit: so peeking, state that is carried from window to window, statistics over a batch,
counters and chance all show. Knows nothing of trials; whose process answers, and that it is a new one, is up to the
caller.

Where a candidate only claimed what each token cost, the new process sends its predictions of the token behind each cut,
which was never sent to it, and we count what it costs: within the Task's tolerance it must be what was claimed.

The cuts are drawn when the score is known, most often where a token cost less than by a measure: a peek at the next
token alone shows at no cut but the one behind it, and pays only where a token is dear. One measure is always there, and
everybody can know it: pairs of tokens, counted. The other, what others needed here, can be known by few.
`benchmarks/audits.py` says which cheats are caught how often.

Bit for bit holds on a CPU: torch gives a row the same logits whatever stands beside or after it as long as the shape of
the question stays (a shortened window instead moves bf16 logits by 0.03 and would hide real leaks). Only the shape of
the last, smaller frame differs, so its windows stay together.

NOT covered: a candidate that knows the text by heart; two processes that share a disk or a network (the sandbox's
part); a peek at a handful of positions, worth less than what is promoted.
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from node.scoring import (
    Bits,
    Logits,
    Questions,
    Tokens,
    ask,
    ask_at,
    claimed_bits,
    frame_rows,
    surprise,
    token_bits,
)
from node.watch import TrialFailed, Watch
from swarm.records import Limits

CUTS = 3  # of each window, in one process, the earlier one first: a later one would tell it what follows the earlier
SPREAD = 0.1  # of the cuts are drawn evenly: where nobody claims a gain, some look, too
# Claims may be lower than what is found by this share of the tolerance on average, and by so many standard errors.
MEAN_SHARE, MEAN_ERRORS = 0.1, 4.0
ROUNDING_BITS = 1e-4  # a hundred times that of float32
COUNTED = 2_000_000  # tokens of training text: 0.1 s, and nearly as good as the shipped model (2.22 bits per byte)
OTHERS = 4  # candidates that are remembered: their mean is less noisy than one

# Scoring may take this many times what it took others, and a start more: torch takes 1.0 to 1.4 CPU-s to load, and as
# many seconds, up to 5 where the machine is busy. What is left open here could be spent on training.
LATE, LATE_CPU_S, LATE_WALL_S = 1.5, 2.0, 10.0
PRIOR = 8.0  # pairs that follow the odds of single tokens, beside those that were counted

Prints = NDArray[np.uint64]  # [rows, window]


class Passed(NamedTuple):
    """What scoring a candidate took: bits for each token, CPU and wall seconds for all of them."""

    bits: Bits
    cpu_s: float
    wall_s: float = math.inf

    def owed_s(self, others: "Passed | None") -> float:
        """CPU seconds beyond what others took: a model that goes on training when it is loaded pays for it."""
        return max(0.0, self.cpu_s - others.cpu_s) if others else 0.0


class Others:
    """The last candidates that passed here: the measure of where a gain is claimed, and of how long scoring takes."""

    def __init__(self) -> None:
        """Nobody yet."""
        self._known: dict[Hashable, dict[str, Passed]] = {}

    def remember(self, of: Hashable, candidate: str, passed: Passed) -> None:
        """A candidate that passed; `of` tells apart what is not to be compared. The oldest is forgotten."""
        known = self._known.setdefault(of, {})
        known.pop(candidate, None)
        known[candidate] = passed
        if len(known) > OTHERS:
            del known[next(iter(known))]

    def besides(self, of: Hashable, candidate: str) -> Passed | None:
        """Their means, this candidate left out; None where there is nobody. The longest would go up and up."""
        rest = [passed for name, passed in self._known.get(of, {}).items() if name != candidate]
        if not rest:
            return None
        cpu_s, wall_s = (fmean(times) for times in zip(*((p.cpu_s, p.wall_s) for p in rest), strict=True))
        return Passed(np.mean([passed.bits for passed in rest], axis=0), cpu_s, wall_s)


@lru_cache(maxsize=2)
def plain_bits(folder: Path, questions: Questions) -> Bits:
    """What each target costs by pairs of tokens, counted in the training text of the prepared data.

    Raises:
        OSError: there is none.
    """
    text = np.fromfile(folder / "train" / "tokens.bin", dtype="<u2", count=COUNTED).astype(np.int64)
    size = len(questions.token_bytes)
    alone = (np.bincount(text, minlength=size) + 1.0) / (len(text) + size)
    pairs, counts = np.unique(text[:-1] * size + text[1:], return_counts=True)
    wanted = questions.inputs.astype(np.int64) * size + questions.targets
    at = np.minimum(pairs.searchsorted(wanted), len(pairs) - 1)
    seen = np.where(pairs[at] == wanted, counts[at], 0)
    before = np.bincount(text[:-1], minlength=size)[questions.inputs]
    bits: Bits = -np.log2((seen + PRIOR * alone[questions.targets]) / (before + PRIOR))
    return bits


def in_time(limits: Limits, others: Passed | None) -> Limits:
    """The limits of scoring, where others have shown how long it takes."""
    if others is None:
        return limits
    cpu_s, wall_s = LATE_CPU_S + LATE * others.cpu_s, LATE_WALL_S + LATE * others.wall_s
    return replace(limits, cpu_s=min(limits.cpu_s, cpu_s), wall_s=min(limits.wall_s, wall_s))


class _Asking:
    """One audit of one artifact. Draws nothing before every scored answer is there; tells nobody."""

    def __init__(self, questions: Questions, random: Generator) -> None:
        """Prepare to hear the scored answers.

        Raises:
            OSError: the split has no text beyond what is scored.
        """
        if not len(questions.spare):
            raise OSError("the audit needs one window of text that is not scored: lower val_tokens in task.toml")
        self._questions, self._random = questions, random
        self._vocabulary = len(questions.token_bytes)
        self._size = frame_rows(questions.inputs.shape[1], self._vocabulary)

    def _asked(self, chance: Bits) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], Tokens]]:
        """All that is to be asked: windows, their cuts, and their tokens with another future."""
        for cuts in draw_cuts(chance, self._random):
            for rows in self._frames(len(cuts)):
                yield rows, cuts[rows], self._with_other_future(rows, cuts[rows])

    def _frames(self, count: int) -> Iterator[NDArray[np.int64]]:
        """All windows once, in an order and company of their own."""
        whole = count - count % self._size
        order = np.concatenate((self._random.permutation(whole), whole + self._random.permutation(count - whole)))
        for start in range(0, count, self._size):
            yield order[start : start + self._size]

    def _with_other_future(self, rows: NDArray[np.int64], cuts: NDArray[np.int64]) -> Tokens:
        inputs, spare = self._questions.inputs[rows], self._questions.spare
        decoys = spare[self._random.integers(0, len(spare), size=len(rows))]
        return np.where(np.arange(inputs.shape[1]) < cuts[:, None], inputs, decoys)


class Audit(_Asking):
    """Of predictions, which must repeat bit for bit."""

    def __init__(self, questions: Questions, random: Generator) -> None:
        """Prepare to hear them."""
        super().__init__(questions, random)
        # Sums of 32-bit words times secret numbers, modulo 2^64: two answers that differ agree once in 2^33.
        self._secret = random.integers(0, 2**64, self._vocabulary, dtype=np.uint64)
        self._prints: list[Prints] = []

    def score(self, watch: Watch) -> Bits:
        """What each token costs by the answers of a process, which are remembered."""
        return token_bits(watch, self._questions, self.keep)

    def keep(self, logits: Logits) -> None:
        """Remember the scored answers to the next windows: 8 bytes for each position."""
        self._prints.append(self._fingerprint(logits))

    def _fingerprint(self, logits: Logits) -> Prints:
        prints: Prints = logits.view(np.uint32) @ self._secret
        return prints

    def ask_again(self, watch: Watch, bits: Bits, measures: Sequence[Bits]) -> None:
        """Ask a new process; returns if it agrees about every window.

        Raises:
            TrialFailed: it does not, or it ended, hung or answered something else than it was asked.
        """
        scored = np.concatenate(self._prints)
        for rows, cuts, inputs in self._asked(chances(bits, measures, self._questions)):
            self._compare(rows, cuts, ask(watch, inputs, self._vocabulary), scored[rows], bits[rows])

    def _compare(
        self, rows: NDArray[np.int64], cuts: NDArray[np.int64], answers: Logits, scored: Prints, bits: Bits
    ) -> None:
        past = np.arange(scored.shape[1]) < cuts[:, None]
        changed = (self._fingerprint(answers) != scored) & past
        if not changed.any():
            return
        at = int(changed.any(axis=1).argmax())
        place = int(changed[at].nonzero()[0][-1])
        target = self._questions.targets[rows[at], place : place + 1]
        again = float(surprise(answers[at, place : place + 1], target)[0])
        raise TrialFailed(
            "candidate",
            "rule",
            f"audit: in window {rows[at]} its predictions from the first {cuts[at]} tokens changed when a new process "
            f"was asked with other text after them: token {place + 1} cost {bits[at, place]:.3g} bits, then "
            f"{again:.3g}; a prediction may use the artifact and the tokens before it, nothing else",
        )


class ClaimAudit(_Asking):
    """Of claims what each token cost, which must be near what we find."""

    def __init__(self, questions: Questions, random: Generator, tolerance_bits: float) -> None:
        """Prepare to hear them."""
        super().__init__(questions, random)
        self._tolerance_bits = tolerance_bits

    def score(self, watch: Watch) -> Bits:
        """What a process claims that each token costs."""
        return claimed_bits(watch, self._questions)

    def ask_again(self, watch: Watch, bits: Bits, measures: Sequence[Bits]) -> None:
        """Ask a new process; returns if its predictions cost what was claimed, each and on average.

        Raises:
            TrialFailed: they do not, or it ended, hung or answered something else than it was asked.
        """
        chance, gaps, weights = chances(bits, measures, self._questions), [], []
        for rows, cuts, inputs in self._asked(chance):
            last = cuts - 1
            found = surprise(ask_at(watch, inputs, last, self._vocabulary), self._questions.targets[rows, last])
            self._compare(rows, cuts, found, bits[rows, last])
            gaps.append(found - bits[rows, last])
            weights.append(1 / chance[rows, last] / chance.shape[1])
        low = too_low(np.concatenate(gaps), np.concatenate(weights), self._tolerance_bits)
        if low:
            raise TrialFailed(
                "candidate",
                "rule",
                f"audit: it claimed about {low:.3g} bits less for each token than its predictions cost when a new "
                "process was asked for some of them",
            )

    def _compare(self, rows: NDArray[np.int64], cuts: NDArray[np.int64], found: Bits, claimed: Bits) -> None:
        at = int(abs(found - claimed).argmax())
        if abs(found - claimed)[at] > self._tolerance_bits:
            raise TrialFailed(
                "candidate",
                "rule",
                f"audit: it claimed that token {cuts[at]} of window {rows[at]} cost {claimed[at]:.3g} bits; it cost "
                f"{found[at]:.3g} when a new process was asked for it that had not been sent it",
            )


def too_low(gaps: Bits, weights: Bits, tolerance_bits: float) -> float:
    """How much less than what was found was claimed for the average token, if that is not chance; else 0.

    Weighted against the odds of the cuts, so that a little taken off where nobody looks counts, too.
    """
    mean, error = (gaps * weights).mean(), (gaps * weights).std() / len(gaps) ** 0.5
    return float(mean) if mean > min(MEAN_SHARE * tolerance_bits, MEAN_ERRORS * error) + ROUNDING_BITS else 0.0


def audit_of(questions: Questions, random: Generator, tolerance_bits: float) -> Audit | ClaimAudit:
    """The audit that a Task asks for."""
    return ClaimAudit(questions, random, tolerance_bits) if tolerance_bits else Audit(questions, random)


def chances(bits: Bits, measures: Sequence[Bits], questions: Questions) -> Bits:
    """How likely each position is the last before a cut, for each window: [rows, window], rows sum to 1.

    Each measure has its share in proportion to what a token cost less than by it. Behind the last position nothing is
    replaced, but the window that begins with its target stands no longer beside it.
    """
    even = np.full(bits.shape, 1 / bits.shape[1])
    scored = questions.token_bytes[questions.targets] > 0
    shares = [_share(np.where(scored, np.maximum(0, measure - bits), 0), even) for measure in measures]
    chance: Bits = SPREAD * even + (1 - SPREAD) * np.mean(shares or [even], axis=0)
    return chance


def _share(gains: Bits, even: Bits) -> Bits:
    sums = gains.sum(axis=1, keepdims=True)
    share: Bits = np.divide(gains, sums, out=even.copy(), where=sums > 0)
    return share


def draw_cuts(chance: Bits, random: Generator) -> NDArray[np.int64]:
    """For each window the cuts that are asked about, the earlier first: [CUTS, rows]."""
    below = chance.cumsum(axis=1)
    drawn = random.random((CUTS, len(chance), 1)) * below[:, -1:]
    return 1 + np.sort((drawn >= below).sum(axis=2), axis=0)
