"""What the benchmarks of the training script share: data, a script with other constants, a score, a peak.

Owns no number that is compared; the score is the node's own arithmetic on the pinned validation tokens.
"""

import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from node.scoring import bits_per_byte, read_questions, surprise
from swarm.constants import Value, rewrite

BASELINE = Path(__file__).parents[2] / "baseline"
VAL_TOKENS = 65_536  # as baseline/task.toml scores
ROWS = 16


def prepare(folder: Path) -> Path:
    """The task's own data, made by its own script."""
    subprocess.run([sys.executable, BASELINE / "prepare.py", "--out", folder], check=True, stdout=subprocess.DEVNULL)
    return folder


def script(constants: Mapping[str, Value], path: Path) -> Path:
    """A copy of the shipped train.py with other constants."""
    path.write_text(rewrite((BASELINE / "train.py").read_text("utf-8"), constants), "utf-8")
    return path


def execute(path: Path) -> ModuleType:
    """The names that a script defines; its `main` does not run."""
    spec = importlib.util.spec_from_file_location("candidate", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def val_bpb(predict: Callable[[Tensor], Tensor], data: Path, window: int) -> float:
    """Bits per byte on the pinned validation tokens, in windows of `window`."""
    questions = read_questions(data, "val", window, VAL_TOKENS)
    bits = []
    for start in range(0, len(questions.inputs), ROWS):
        rows = slice(start, start + ROWS)
        with torch.no_grad():
            logits = predict(torch.from_numpy(questions.inputs[rows].astype(np.int64))).float().numpy().copy()
        targets = questions.targets[rows]
        bits.append(surprise(logits.reshape(targets.size, -1), targets.ravel()).reshape(targets.shape))
    return bits_per_byte(np.concatenate(bits), questions)


def peak_gflops(dtype: torch.dtype) -> float:
    """The best of several large multiplications on one thread, in GFLOP per CPU-second."""
    torch.set_num_threads(1)
    a, b = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    seconds = []
    for _ in range(8):
        started = time.process_time()
        a @ b
        seconds.append(time.process_time() - started)
    return 2 * 2048**3 / min(seconds) / 1e9
