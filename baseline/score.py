"""Answer predictions of a trained candidate, frame by frame, on stdin and stdout.

    python score.py --code train.py --artifact out

Runs beside the candidate's code, inside its box, and is trusted with nothing: no targets, no loss, no score comes near
it. The scorer outside sends tokens, holds what comes next itself, and computes bits per byte from the logits.

One frame, little-endian, any number of times:
    in   <III   magic 0x53574D51, B, T          then B*T uint16 tokens
    out  <IIII  magic 0x53574D41, B, T, V       then B*T*V float32 logits; [b, t] predicts token t + 1 from tokens 0..t
B = 0 (or the end of the input) ends it with exit 0. Exit 1: the candidate's code failed, the last line of stderr says
how.

What is NOT covered: the candidate's code shares this process, so it may write anything it likes to the answer pipe. All
that it can gain is wrong predictions. Ordinary prints and reads of it can not disturb the frames (`_take_pipes`).
This file is frozen: no experiment may edit it.
"""

import argparse
import importlib.util
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

QUESTION, ANSWER = 0x53574D51, 0x53574D41
Predict = Callable[[torch.Tensor], torch.Tensor]


class CandidateError(Exception):
    """The candidate's code did not keep its side of the contract; the message says where."""


def main() -> int:
    """Load the candidate, then answer until told to stop."""
    parser = argparse.ArgumentParser(description="Answer predictions of a trained candidate on stdin and stdout.")
    parser.add_argument("--code", type=Path, required=True, help="the candidate's train.py")
    parser.add_argument("--artifact", type=Path, required=True, help="folder that its training left")
    arguments = parser.parse_args()
    questions, answers = _take_pipes()
    torch.set_num_threads(1)
    try:
        serve(load_candidate(arguments.code, arguments.artifact), questions, answers)
    except BrokenPipeError:
        return 0  # nobody is asking any more
    except (Exception, SystemExit) as error:  # a candidate's code may raise anything, or try to leave
        print(f"score: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def load_candidate(code: Path, artifact: Path) -> Predict:
    """Import the candidate's file by its path and let it load its own artifact."""
    sys.dont_write_bytecode = True  # leave nothing behind beside the code
    spec = importlib.util.spec_from_file_location("candidate", code)
    if spec is None or spec.loader is None:
        raise CandidateError(f"{code} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules["candidate"] = module  # dataclasses and pickles look their module up by name
    spec.loader.exec_module(module)
    return module.load(str(artifact))


def serve(predict: Predict, questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer one frame after the other."""
    while (tokens := read_question(questions)) is not None:
        with torch.inference_mode():
            logits = predict(tokens)
        if logits.dim() != 3 or logits.shape[:2] != tokens.shape:
            raise CandidateError(f"logits of shape {tuple(logits.shape)} for tokens of shape {tuple(tokens.shape)}")
        answers.write(struct.pack("<IIII", ANSWER, *logits.shape))
        answers.write(logits.detach().float().contiguous().numpy().astype("<f4", copy=False).data)
        answers.flush()


def read_question(questions: BinaryIO) -> torch.Tensor | None:
    """The next window of tokens, int64 [B, T]; None at the end."""
    header = questions.read(12)
    if not header:
        return None
    magic, rows, columns = struct.unpack("<III", header)
    if magic != QUESTION:
        raise ValueError(f"a frame must begin with {QUESTION:#x}, not {magic:#x}")
    if rows == 0:
        return None
    tokens = np.frombuffer(questions.read(2 * rows * columns), dtype="<u2").reshape(rows, columns)
    return torch.from_numpy(tokens.astype(np.int64))


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Move the real stdin and stdout to descriptors of our own: prints now go to stderr, reads find nothing."""
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return questions, answers


if __name__ == "__main__":
    sys.exit(main())
