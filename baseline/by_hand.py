"""What a run of train.py by hand looks up, and tells beside its loss: the default corpus, val_bpb, and MFU.

For people only: no trial has this file, the swarm's scorer computes scores itself.
"""

import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

SCORED = {"cpu": (256, 65536), "gpu": (2048, 524288), "tiny": (256, 8192)}  # context and tokens, as the task says
ROWS = 16  # windows scored at once
# Dense bf16, in 10^12 operations per second, by the maker's data sheets; the first name that the GPU's name contains.
PEAKS = {"GB200": 2500, "B200": 2250, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312}
PEAKS |= {"L40S": 362, "L40": 181, "L4": 121}


def prepared(tier: str) -> Path:
    """The training tokens of the default corpus, made by prepare.py when they are not there yet.

    Raises:
        ValueError: they are not there; says how to make them.
    """
    script = Path(__file__).resolve().with_name("prepare.py")
    corpus = script.parent / ".cache" / ("data" if tier == "cpu" else "gpu-data")
    if not (corpus / "manifest.json").is_file():
        if tier != "cpu":
            how = f"python {script} --out {corpus} --source climbmix --vocab 8192"
            raise ValueError(f"the GPU tier's data is not there: {how}")
        if subprocess.run([sys.executable, script, "--out", corpus], check=False).returncode:
            raise ValueError(f"{corpus} is not there and could not be prepared")
    return corpus / "train"


def scores(model: nn.Module, corpus: Path, tier: str, dtype: torch.dtype, operations_per_s: float) -> dict[str, str]:
    """How good and how fast, as the summary block shows it."""
    told, device = {}, next(model.parameters()).device
    if (corpus / "val").is_dir():
        told["val_bpb"] = f"{bits_per_byte(model, corpus, *SCORED[tier]):.6f}"
    if peak := peak_flops(device, dtype):
        told["mfu_percent"] = f"{100 * operations_per_s / peak:.1f}"
    if device.type == "cuda":
        told["peak_vram_mb"] = f"{torch.cuda.max_memory_allocated() / 2**20:.0f}"
    return told


@torch.no_grad()
def bits_per_byte(model: nn.Module, corpus: Path, window: int, tokens: int) -> float:
    """val_bpb of the first `tokens` of validation text, as the swarm's scorer computes it."""
    device = next(model.parameters()).device
    lengths = torch.from_numpy(np.load(corpus / "token_bytes.npy").astype(np.int64))
    stream = np.fromfile(corpus / "val" / "tokens.bin", dtype="<u2", count=tokens + 1).astype(np.int64)
    window = min(window, len(stream) - 1)  # of very little text
    count = (len(stream) - 1) // window * window
    inputs, targets = (torch.from_numpy(x).view(-1, window) for x in (stream[:count], stream[1 : count + 1]))
    nats = 0.0
    for questions, answers in zip(inputs.split(ROWS), targets.split(ROWS), strict=True):
        logits = model(questions.to(device)).float().flatten(0, 1)
        nats_each = F.cross_entropy(logits, answers.flatten().to(device), reduction="none").cpu()
        nats += nats_each[lengths[answers.flatten()] > 0].double().sum().item()
    return nats / math.log(2) / lengths[targets].sum().item()


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Operations per second that 100 % MFU means: a GPU's data sheet; of a core, a large matrix product in `dtype`."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name()
        return next((1e12 * peak for part, peak in PEAKS.items() if part in name), None)
    a = torch.ones(1024, 1024, dtype=dtype)
    torch.mm(a, a)  # the first one also sets up the kernel
    started = time.process_time()
    for _ in range(16):
        torch.mm(a, a)
    return 16 * 2.0 * 1024**3 / (time.process_time() - started)
