"""TRUSTED. Whether answers depend on the past alone: the same windows asked again, with another future.

In each window, all that follows a secret cut is replaced by text that is never scored. A process that has seen nothing
but the artifact answers about them in another order and company. What it says before the cut must be what the scored
answers said there, bit for bit: so peeking, state that is carried from window to window, statistics over a batch,
counters and chance all show. Knows nothing of trials; whose process answers, and that it is a new one, is up to the
caller.

Bit for bit holds on a CPU: torch gives a row the same logits whatever stands beside or after it as long as the shape of
the question stays (a shortened window instead moves bf16 logits by 0.03 and would hide real leaks). Only the shape of
the last, smaller frame differs, so its windows stay together.

NOT covered: a candidate that knows the text by heart; two processes that share a disk or a network (the sandbox's
part); a peek at so few positions that no cut falls behind one. A window has one cut, so a peek at the next token alone,
at one position in a hundred, escapes with 8 % in 256 windows.
"""

from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from node.scoring import Logits, Questions, Tokens, ask, finish, frame_rows
from node.watch import TrialFailed, Watch


class _Kept(NamedTuple):
    """Of the scored answer to one window: enough to compare, 4 kB instead of 1 MB."""

    digest: bytes  # of all logits before the cut
    last: Logits  # the ones just before it, to tell how far apart


class Audit:
    """One audit of one artifact. Draws everything at once, before the first question; tells nobody."""

    def __init__(self, questions: Questions, random: Generator) -> None:
        """Draw the cuts, what stands behind them, and the order.

        Raises:
            OSError: the split has no text beyond what is scored.
        """
        rows, window = questions.inputs.shape
        if not len(questions.spare):
            raise OSError("the audit needs one window of text that is not scored: lower val_tokens in task.toml")
        self._vocabulary = len(questions.token_bytes)
        self._size = frame_rows(window, self._vocabulary)
        self._cuts: NDArray[np.int64] = random.integers(1, window, size=(rows,))
        decoys = questions.spare[random.integers(0, len(questions.spare), size=(rows,))]
        self._inputs: Tokens = np.where(np.arange(window) < self._cuts.reshape(rows, 1), questions.inputs, decoys)
        whole = rows - rows % self._size
        self._order = np.concatenate((random.permutation(whole), whole + random.permutation(rows - whole)))
        self._kept: list[_Kept] = []

    def keep(self, logits: Logits) -> None:
        """Remember the scored answers to the next windows, in the order in which they are scored."""
        for answer in logits:
            cut = int(self._cuts[len(self._kept)])
            self._kept.append(_Kept(_digest(answer[:cut]), answer[cut - 1].copy()))

    def ask_again(self, watch: Watch) -> None:
        """Ask a new process; returns if it agrees about every window.

        Raises:
            TrialFailed: it does not, or it ended, hung or answered something else than it was asked.
        """
        for start in range(0, len(self._order), self._size):
            rows = self._order[start : start + self._size]
            answers = ask(watch, self._inputs[rows], self._vocabulary)
            for row, answer in zip(rows.tolist(), answers, strict=True):
                self._compare(row, answer)
        finish(watch)

    def _compare(self, row: int, answer: Logits) -> None:
        cut, kept = int(self._cuts[row]), self._kept[row]
        if _digest(answer[:cut]) == kept.digest:
            return
        with np.errstate(over="ignore"):
            apart = float(np.abs(answer[cut - 1] - kept.last).max())
        where = f"by {apart:.1e} at the last of them" if apart else "not at the last of them, but earlier"
        raise TrialFailed(
            "candidate",
            "rule",
            f"audit: in window {row} its predictions from the first {cut} tokens changed, {where}, when a new process "
            "was asked with other text after them; a prediction may use the artifact and the tokens before it, nothing "
            "else",
        )


def _digest(logits: Logits) -> bytes:
    return blake2b(logits.data.cast("B"), digest_size=32).digest()
