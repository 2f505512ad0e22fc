"""Tiny tasks for the tests of trials: candidates and answering drivers in plain Python, each with one habit."""

import array
import json
import math
import struct
import time
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path

from node.data import Data
from node.sandbox.bare import Bare
from node.trial import Workshop
from swarm.records import Limits, TrialSpec, candidate_id
from swarm.task import load_task

VOCABULARY = 5
TOKEN_BYTES = (1, 2, 3, 1, 0)  # the last is BOS: no text, never scored
WINDOW, TOKENS, VAL_TOKENS = 8, 1300, 400

HONEST = """
import sys
from pathlib import Path
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
print("trained on", Path(options["--budget"]).stat().st_size // 2, "tokens with seed", options["--seed"])
(Path(options["--out"]) / "model.pt").write_bytes(Path(options["--budget"]).read_bytes()[:64])
"""
PRINTED = """
import os
print("val_bpb: 9.0")
print("seed", os.environ["SWARM_SEED"])
print("val_bpb: 1.25")
print("peak_vram_mb: 0")
"""

ASKED = """
import math, struct, sys, time
questions, answers = sys.stdin.buffer, sys.stdout.buffer
V = 5
def ask():
    magic, rows, window = struct.unpack("<III", questions.read(12))
    assert magic == 0x53574D51
    return rows, window, struct.unpack(f"<{rows * window}H", questions.read(2 * rows * window))
def answer(rows, window, logits, magic=0x53574D41, vocabulary=V):
    answers.write(struct.pack("<IIII", magic, rows, window, vocabulary))
    answers.write(struct.pack(f"<{len(logits)}f", *logits))
    answers.flush()
while True:
    rows, window, tokens = ask()
    if rows == 0:
        break
"""
UNIFORM = ASKED + "    answer(rows, window, [0.0] * (len(tokens) * V))\n"
# Odds of 3 for the next token being this one plus 1: the probability then is 3/7, else 1/7.
FAVOURS_NEXT = ASKED + (
    "    answer(rows, window, [math.log(3) if v == (t + 1) % V else 0.0 for t in tokens for v in range(V)])\n"
)
WRONG_SHAPE = ASKED + "    answer(rows, window - 1, [0.0] * (rows * (window - 1) * V))\n"
WRONG_VOCABULARY = ASKED + "    answer(rows, window, [0.0] * (len(tokens) * 4), vocabulary=4)\n"
WRONG_MAGIC = ASKED + "    answer(rows, window, [0.0] * (len(tokens) * V), magic=7)\n"
NOT_FINITE = ASKED + "    answer(rows, window, [0.0] * (len(tokens) * V - 1) + [math.nan])\n"
INFINITE = ASKED + "    answer(rows, window, [0.0] * (len(tokens) * V - 1) + [-math.inf])\n"
HUGE = ASKED + "    answer(rows, window, [3e38, -3e38, 0.0, 0.0, 0.0] * len(tokens))\n"
ENDS_EARLY = ASKED + (
    "    answers.write(struct.pack('<IIII', 0x53574D41, rows, window, V) + bytes(10)); answers.flush()\n"
    "    sys.exit('weights are damaged')\n"
)
NEVER_ANSWERS = ASKED + "    time.sleep(60)\n"
NEVER_READS = "import time\ntime.sleep(60)\n"

# The same odds, but it claims what each token costs, and gives predictions of one place in each window.
CLAIMS = """
import math, struct, sys, time
questions, answers = sys.stdin.buffer, sys.stdout.buffer
V, told = 5, 0
def numbers(count):
    return struct.unpack(f"<{count}H", questions.read(2 * count))
def answer(shape, values):
    answers.write(struct.pack("<IIII", 0x53574D41, *shape) + struct.pack(f"<{len(values)}f", *values))
    answers.flush()
def logits(token):
    return [math.log(3) if v == (token + 1) % V else 0.0 for v in range(V)]
def cost(token, following):
    return math.log2(7 / 3 if following == (token + 1) % V else 7)
while True:
    magic, rows, window = struct.unpack("<III", questions.read(12))
    if rows == 0:
        break
    tokens = numbers(rows * window)
    starts = range(0, len(tokens), window)
    if magic == 0x53574D43:
        pairs = [(tokens[s + i], tokens[s + i + 1]) for s in starts for i in range(window - 1)]
        costs = [cost(*pair) for pair in pairs]
        {claim}
        told += len(costs)
        answer((rows, window - 1, 1), costs)
    else:
        assert magic == 0x53574D50, hex(magic)
        found = [logits(tokens[s + place]) for s, place in zip(starts, numbers(rows))]
        {predict}
        answer((rows, 1, V), [logit for row in found for logit in row])
"""

TASK = """
name = "toy"
editable = ["train.py"]
[frozen]
"score.py" = "{score}"
[commands]
prepare = "prepare.py --out {{data}}"
train = "train.py --data {{data}} --out {{out}} --seed {{seed}} --budget {{budget}}"
score = "score.py --code {{code}} --artifact {{artifact}}"
[metric]
name = "val_bpb"
score = "answers"
[budget]
tokens = {tokens}
window = {window}
val_tokens = {val_tokens}
tolerance_bits = {tolerance_bits}
[transfer]
scale = "{scale}"
"""
PRINTED_TASK = """
name = "toy-printed"
editable = ["train.py"]
[commands]
train = "train.py"
[metric]
name = "val_bpb"
score = "printed"
pattern = '^val_bpb:\\s*(\\S+)'
"""


def claims(claim: str = "pass", predict: str = "pass") -> str:
    """A script that claims, and does something with its claims or its predictions before it answers."""
    return CLAIMS.replace("{claim}", claim).replace("{predict}", predict)


def answers_task(folder: Path, score: str = UNIFORM, scale: str = "", tolerance_bits: float = 0.0) -> Path:
    """A task folder whose score is computed by us."""
    folder.mkdir(parents=True)
    for name, text in (("train.py", HONEST), ("score.py", score), ("prepare.py", "")):
        (folder / name).write_text(text)
    numbers = {"tokens": TOKENS, "window": WINDOW, "val_tokens": VAL_TOKENS, "tolerance_bits": tolerance_bits}
    (folder / "task.toml").write_text(TASK.format(score=sha256(score.encode()).hexdigest(), scale=scale, **numbers))
    return folder


def printed_task(folder: Path) -> Path:
    """A task folder whose score is what train.py prints."""
    folder.mkdir(parents=True)
    (folder / "train.py").write_text(PRINTED)
    (folder / "helper.py").write_text("VALUE = 2.5\n")
    (folder / "task.toml").write_text(PRINTED_TASK)
    return folder


def stream(count: int, start: int) -> list[int]:
    """Tokens that repeat with no simple period; about every fifth is BOS."""
    return [(start + i * i + i // 7) % VOCABULARY for i in range(count)]


def write_data(folder: Path) -> Data:
    """Prepared data in the layout that every task uses."""
    for split, count, start in (("train", 3000, 1), ("val", 1000, 2), ("holdout", 1000, 3)):
        (folder / split).mkdir(parents=True)
        (folder / split / "tokens.bin").write_bytes(array.array("H", stream(count, start)).tobytes())
    header = "{'descr': '<i4', 'fortran_order': False, 'shape': (5,), }".ljust(117) + "\n"
    raw = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()
    (folder / "token_bytes.npy").write_bytes(raw + struct.pack("<5i", *TOKEN_BYTES))
    (folder / "manifest.json").write_text(json.dumps({"fingerprint": "toy"}))
    return Data(folder, "toy")


def bits_per_byte(start: int, probability: Callable[[int, int], float]) -> float:
    """The score of the toy's `probability(token, next token)`, the slow and obvious way."""
    tokens = stream(VAL_TOKENS + 1, start)
    pairs = [(a, b) for a, b in zip(tokens, tokens[1:], strict=False) if TOKEN_BYTES[b]]
    return sum(-math.log2(probability(a, b)) for a, b in pairs) / sum(TOKEN_BYTES[b] for _, b in pairs)


def workshop_at(root: Path, task_folder: Path) -> Workshop:
    """A workshop for one task, everything of it below `root`."""
    task = load_task(task_folder)
    data = write_data(root / "data") if task.has_data else None
    return Workshop(task=task, folder=task_folder, data=data, sandbox=Bare(), scratch=root / "scratch")


def spec_of(
    train: str, *, seed: int = 0, cpu_s: float = 20.0, wall_s: float = 20.0, memory_mb: int = 2048
) -> TrialSpec:
    """A trial of one train.py."""
    files = {"train.py": train}
    limits = Limits(cpu_s=cpu_s, wall_s=wall_s, memory_mb=memory_mb, log_bytes=100_000)
    return TrialSpec(f"trial-{seed}", candidate_id(files), seed, "screen", files, limits)


def eventually(true: Callable[[], bool], within_s: float) -> bool:
    """Whether something becomes true in time."""
    deadline = time.monotonic() + within_s
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def is_running(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def read_pids(path: Path) -> list[int]:
    """The complete lines of a file into which processes wrote their ids."""
    text = path.read_text() if path.exists() else ""
    return [int(line) for line in text[: text.rfind("\n") + 1].split()]


def any_running(pids: Iterable[int]) -> bool:
    """Whether one of them runs."""
    return any(is_running(pid) for pid in pids)
