"""Answer for a trained candidate, frame by frame, on stdin and stdout.

    python score.py --code train.py --artifact out

Runs beside the candidate's code, inside its box, and is trusted with nothing. The scorer outside sends tokens, and
computes bits per byte itself: from the logits, or from claims that it holds against logits of another process, which
was not sent what they are about.

One frame, little-endian, any number of times:
    in   <III   magic, B, T     then B*T uint16 tokens
    out  <IIII  magic 0x53574D41, B, T, V       then float32 numbers
    0x53574D51  all: B*T*V logits; [b, t] predicts token t + 1 from tokens 0..t
    0x53574D43  claims: the out frame has T - 1 and V = 1; [b, t] is what token t + 1 cost after tokens 0..t, in bits
    0x53574D50  one: B uint16 places follow the tokens, the out frame has T = 1; [b, 0] are the logits at that place
B = 0 (or the end of the input) ends it with exit 0. Exit 1: the candidate's code failed, the last line of stderr says
how.

What is NOT covered: the candidate's code shares this process, so it may write anything it likes to the answer pipe. All
that it can gain is wrong predictions. Ordinary prints and reads of it can not disturb the frames (`_take_pipes`).
This file is frozen: no experiment may edit it.
"""

import argparse
import importlib.util
import math
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

ALL, CLAIMS, ONE, ANSWER = 0x53574D51, 0x53574D43, 0x53574D50, 0x53574D41
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
    while (question := read_question(questions)) is not None:
        with torch.inference_mode():
            found = answer(predict, *question)
        answers.write(struct.pack("<IIII", ANSWER, *found.shape))
        answers.write(found.contiguous().numpy().astype("<f4", copy=False).data)
        answers.flush()


def read_question(questions: BinaryIO) -> tuple[int, torch.Tensor, torch.Tensor] | None:
    """What is asked, of which tokens (int64 [B, T]), and of which place in each window if of one; None at the end."""
    header = questions.read(12)
    if not header:
        return None
    magic, rows, columns = struct.unpack("<III", header)
    if magic not in (ALL, CLAIMS, ONE):
        raise ValueError(f"a frame must begin with {ALL:#x}, {CLAIMS:#x} or {ONE:#x}, not {magic:#x}")
    if rows == 0:
        return None
    tokens = _read_numbers(questions, rows * columns).reshape(rows, columns)
    return magic, tokens, _read_numbers(questions, rows if magic == ONE else 0)


def _read_numbers(questions: BinaryIO, count: int) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(questions.read(2 * count), dtype="<u2").astype(np.int64))


def answer(predict: Predict, magic: int, tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Float32 numbers, three dimensions of them."""
    if magic == CLAIMS:
        logits = predicted(predict, tokens[:, :-1])
        costs = torch.nn.functional.cross_entropy(logits.mT, tokens[:, 1:].to(logits.device), reduction="none")
        return costs[..., None].cpu() / math.log(2)
    logits = predicted(predict, tokens)
    return (logits[torch.arange(len(places)), places][:, None] if magic == ONE else logits).cpu()


def predicted(predict: Predict, tokens: torch.Tensor) -> torch.Tensor:
    """Float32 logits [B, T, V]."""
    logits = predict(tokens)
    if logits.dim() != 3 or logits.shape[:2] != tokens.shape:
        raise CandidateError(f"logits of shape {tuple(logits.shape)} for tokens of shape {tuple(tokens.shape)}")
    return logits.detach().float()


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
