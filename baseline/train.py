"""Train a small GPT on a fixed stream of tokens. This is the file that the swarm edits.

    python train.py                                                             # by hand: ten seconds, and a score
    python train.py --scale depth=2                                             # does it hold at twice the depth?
    python train.py --data data/train --out out --seed 0 --budget stream.bin    # as the swarm runs it
    python train.py --tier gpu --budget 600M --seconds 300                      # the same model, larger, on one GPU

`--budget FILE` is the whole of what may be learnt from: one flat array of uint16 tokens, written for this trial by its
runner (pieces of 256 consecutive tokens, drawn by the seed; a border between two pieces just costs a little loss).
Every token is a training target at most once, so SEQ_LEN and BATCH may change, the number of tokens may not.
`--budget 205k` draws such a stream here. What this file prints is for people: scores are computed elsewhere, from the
predictions that `load` gives. Only by hand, where `val` lies beside the training tokens, is val_bpb computed here, too.

With `--seconds` wall time is the budget. This file builds and compiles first, writes `ready` in --out, and waits until
its runner moves the stream into place: the clock starts there, every step from then on is training, and the checkpoint
is written before the seconds are over.

On the CPU: one thread, and the same seed and stream give bit-identical weights. The constants below may be searched by
a machine: every sane value works (`# choices:` and `# range:` say which), in any combination.
"""

import argparse
import gc
import importlib
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# A percentage is the change of val_bpb that flipping the switch makes at equal tokens, three paired seeds, with 0.1 to
# 0.5 % of noise: `benchmarks/effects.py` measures them again.

# ---- Shape of the model. Width 96: -1.3 %, depth 3: -0.3 %, each for about a quarter more time.
# Channels of the residual stream, a multiple of HEAD_DIM; layers; channels of one attention head.
WIDTH = 64  # choices: 32, 64, 96, 128
DEPTH = 2  # choices: 1, 2, 3, 4
HEAD_DIM = 32  # choices: 16, 32, 64
# Hidden channels of the MLP per residual channel.
MLP_RATIO = 4  # choices: 2, 3, 4, 6
# Non-linearity of the MLP; relu2 = relu squared (Primer, arXiv 2109.08668); gelu: +0.1 %, which is noise.
ACTIVATION = "relu2"  # choices: relu2, gelu, silu
# Logits are squeezed into +-SOFTCAP by a tanh (Gemma 2, arXiv 2408.00118); 0 = off: no change, for 17 % less time.
SOFTCAP = 15.0  # range: 0..30
# A second embedding of the token feeds the values of every other layer (modded-nanogpt, 2024-12); without: +1.9 %.
VALUE_EMBEDDING = True

# ---- Known techniques that are shipped OFF, on purpose: an offline search then has something real to find. They are no
# secret, and a swarm that switches one on has discovered nothing new. All three together: -5.0 %.
# Add an embedding of the hashed (previous, current) pair of tokens (modded-nanogpt, 2026): -4.1 %.
BIGRAM = False
BIGRAM_ROWS = 4096  # range: 512..16384 log
# Mix the previous token's embedding into each token's, by a learned weight per channel (modded-nanogpt, 2025): -2.0 %.
SMEAR = False
# Attention that falls off linearly with distance, instead of rotary positions (ALiBi, arXiv 2108.12409): -1.4 %.
ALIBI = False
# Its slope for the first head; each other head has a quarter of the one before. Three times the tokens want 0.06.
SLOPE = 0.5  # range: 0.01..1 log

# ---- Optimisation.
# Tokens per sequence in training; scores are taken at 256, so positions must extrapolate.
SEQ_LEN = 128  # choices: 64, 128, 256
# The slowest rotary turn takes 2 pi ROPE_BASE tokens; 10 000, made for long texts: +0.4 % (three seeds).
ROPE_BASE = 100.0  # range: 10..100000 log
# Sequences per step. Half the batch is twice the steps: better per token, dearer in time.
BATCH = 8  # choices: 4, 8, 16, 32
# Muon, for the matrices: step size and momentum.
MATRIX_LR = 0.04  # range: 0.01..0.16 log
MOMENTUM = 0.9  # range: 0.7..0.97
# Adam's step sizes for the embeddings, the rows of BIGRAM, the head (these three x sqrt(64 / WIDTH)) and the mixing
# weights. Rows of pairs are rare and overshoot: BIGRAM_LR 0.5 costs 0.3 % here, 4.3 % at three times the tokens.
EMBED_LR = 0.5  # range: 0.1..4 log
BIGRAM_LR = 0.125  # range: 0.02..1 log
HEAD_LR = 0.02  # range: 0.004..0.1 log
SCALAR_LR = 0.05  # range: 0.005..0.5 log
# Share of the steps, at the end, over which all step sizes fall linearly to 0.
WARMDOWN = 0.5  # range: 0..1


# ---- What a GPU's time is spent on, and a CPU trial does without: fixed here, switches of the GPU tier below.
# Tokens that most layers look back, 0 = all; every fourth layer, counted from the last, always sees all.
WINDOW = 0  # fixed
# Attention stays within the document of its token.
DOCUMENTS = False  # fixed
# Passes over BATCH sequences whose gradients are added up to one step; with the ramp a quarter of them in the first
# third of the training, half in the second.
PASSES = 1  # fixed
BATCH_RAMP = False  # fixed
# Share of the step sizes that is left when WARMDOWN ends.
LR_FLOOR = 0.0  # fixed
# The model that is kept is a moving average of the weights over the last steps, with this decay; 0 = off.
TAIL_EMA = 0.0  # fixed
# Compile model and loss as one (torch.compile), forwards and backwards.
COMPILE = False  # fixed
# Rows of the head are filled up to a multiple of this, as tensor cores like it.
PAD_VOCAB = 1  # fixed
# Context and number of the tokens that a run by hand is scored on.
SCORED_WINDOW = 256  # fixed
SCORED_TOKENS = 65536  # fixed

# ---- The GPU tier, `--tier gpu`: each GPU_NAME takes the place of NAME; what has no GPU_ line holds for both. Meant
# for one H100 and 300 s: 54 M parameters, context 2048, vocabulary 8192. Sizes and step sizes follow public five-minute
# runs (autoresearch, modded-nanogpt). NOT measured with this file: `benchmarks/gpu.sh` measures it and every switch.

GPU_WIDTH = 512  # choices: 384, 512, 640, 768
GPU_DEPTH = 8  # choices: 6, 7, 8, 9, 10, 12
GPU_HEAD_DIM = 128  # choices: 64, 128
GPU_BIGRAM = True
GPU_BIGRAM_ROWS = 8192  # range: 4096..131072 log
GPU_BIGRAM_LR = 0.5  # range: 0.1..4 log
GPU_SMEAR = True
GPU_ALIBI = False  # fixed: the kernels that skip what is masked know no slopes
GPU_SEQ_LEN = 2048  # choices: 1024, 2048
GPU_ROPE_BASE = 10000.0  # range: 100..100000 log
GPU_BATCH = 64  # choices: 16, 32, 64, 128
GPU_MATRIX_LR = 0.04  # range: 0.01..0.16 log
GPU_MOMENTUM = 0.95  # range: 0.8..0.98
GPU_EMBED_LR = 2.0  # range: 0.5..8 log
GPU_HEAD_LR = 0.014  # range: 0.004..0.05 log
GPU_SCALAR_LR = 0.05  # range: 0.005..0.5 log
GPU_WARMDOWN = 0.75  # range: 0.2..1
GPU_LR_FLOOR = 0.05  # range: 0..0.2
GPU_WINDOW = 256  # choices: 0, 128, 256, 512, 1024
GPU_DOCUMENTS = True
GPU_PASSES = 4  # choices: 1, 2, 4, 8
GPU_BATCH_RAMP = True
GPU_TAIL_EMA = 0.98  # range: 0.9..0.995
GPU_COMPILE = True  # fixed: without it the same model, slower
GPU_PAD_VOCAB = 64  # fixed
GPU_SCORED_WINDOW = 2048  # fixed
GPU_SCORED_TOKENS = 1048576  # fixed
# `--tier tiny`: the GPU tier's code at sizes that a CPU tries in seconds.
TINY = {
    **{"WIDTH": 64, "DEPTH": 4, "HEAD_DIM": 32, "BIGRAM_ROWS": 512, "SEQ_LEN": 128, "BATCH": 2, "WINDOW": 32},
    **{"COMPILE": False, "SCORED_WINDOW": 256, "SCORED_TOKENS": 8192},
}

# Dense bf16, in 10^12 operations per second, by the maker's data sheets; the first name that the GPU's name contains.
PEAKS = {"B200": 2250, "H200": 989, "GH200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121}


# ---- Which tier, which device, which precision, which kernel.
TIER = "cpu"
DEVICE = torch.device("cpu")
KERNEL = "sdpa"  # of attention within documents; "flex" and "fa3" skip what is masked
FUSED: Any = None  # that kernel's function


def use_tier(tier: str) -> None:
    """Take over the constants of a tier, and its device."""
    here = globals()
    here["TIER"] = tier
    if tier != "cpu":
        here |= {name.removeprefix("GPU_"): value for name, value in [*here.items()] if name.startswith("GPU_")}
    if tier == "tiny":
        here |= TINY
    if tier == "gpu" and torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
        here["DEVICE"] = torch.device("cuda")
        bf16 = torch.cuda.is_bf16_supported()
        here["DTYPE"] = torch.bfloat16 if bf16 else torch.float32
        here["DTYPE_REASON"] = f"{'bf16' if bf16 else 'fp32 (no bf16 here)'} on {torch.cuda.get_device_name()}"


def use_kernel(name: str) -> None:
    """Load the function of an attention kernel. Raises ImportError or RuntimeError where it cannot run."""
    fused = None
    if name == "fa3":
        fused = importlib.import_module("flash_attn_interface").flash_attn_varlen_func
        if DEVICE.type == "cuda" and torch.cuda.get_device_capability()[0] != 9:
            raise RuntimeError("FlashAttention-3 needs a GPU of the Hopper generation")
    if name == "flex":
        fused = importlib.import_module("torch.nn.attention.flex_attention").flex_attention
    globals().update(KERNEL=name, FUSED=fused)


def pick_dtype() -> tuple[torch.dtype, str]:
    """bf16 where this CPU multiplies it natively (4.6x the fp32 rate), fp32 elsewhere (emulated bf16 is slower).

    Asked of the CPU, not timed: a busy machine must not change the weights.
    """
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"):
        return torch.bfloat16, "bf16 (native on this CPU)"
    return torch.float32, "fp32 (no native bf16 on this CPU)"


DTYPE, DTYPE_REASON = pick_dtype()


def norm(x: Tensor) -> Tensor:
    """Normalise without learned parameters. LayerNorm, because torch fuses it on the CPU (rms_norm: 6 % slower)."""
    return F.layer_norm(x, (x.size(-1),))


class Linear(nn.Linear):
    """Weights kept in fp32, used in the precision of the input. No bias."""

    def __init__(self, inputs: int, outputs: int, std: float | None = None) -> None:
        super().__init__(inputs, outputs, bias=False)
        bound = math.sqrt(3.0) * (inputs**-0.5 if std is None else std)
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


def embedding(rows: int, std: float) -> nn.Embedding:
    """A table of WIDTH channels."""
    table = nn.Embedding(rows, WIDTH)
    nn.init.normal_(table.weight, std=std)
    return table


def previous(x: Tensor, first: float = 0.0) -> Tensor:
    """Every position sees the one before it; position 0 sees `first`. `x` is [B, T, ...]."""
    shifted = torch.full_like(x, first)
    shifted[:, 1:] = x[:, :-1]
    return shifted


@lru_cache(maxsize=4)
def rotation(length: int) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine of rotary positions (RoPE, arXiv 2104.09864), [T, 1, HEAD_DIM]."""
    frequencies = ROPE_BASE ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    angles = torch.outer(torch.arange(length), frequencies)[:, None, :]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1).to(DEVICE, DTYPE), torch.cat((sin, -sin), dim=-1).to(DEVICE, DTYPE)


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Turn pairs of channels by an angle that grows with the position. `x` is [B, T, heads, HEAD_DIM]."""
    cos, sin = turn
    a, b = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((b, a), dim=-1), sin)


@lru_cache(maxsize=4)
def attention_bias(length: int) -> Tensor:
    """What is added to the attention logits, [heads, T, T]: -inf for the future, with ALIBI a slope for the past.

    Rotary positions are not trusted beyond what they were trained on: nothing further back than SEQ_LEN is seen (-1 %).
    """
    position = torch.arange(length)
    distance = position[:, None] - position[None, :]
    heads = WIDTH // HEAD_DIM
    slopes = SLOPE * 4.0 ** -torch.arange(heads) if ALIBI else torch.zeros(heads)
    bias = -slopes[:, None, None] * distance
    unseen = (distance < 0) | (distance >= (length if ALIBI else SEQ_LEN))
    return bias.masked_fill(unseen, -math.inf).to(DTYPE)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention, [B, heads, T, HEAD_DIM] each.

    In bf16 by hand: torch's fused kernel needs twice the time on a CPU (in fp32 it needs half, so there it is used).
    """
    if TIER != "cpu" and not ALIBI:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    rows, heads, length, channels = q.shape
    bias = attention_bias(length)
    if DTYPE == torch.float32:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    q, k, v = (x.reshape(rows * heads, length, channels) for x in (q, k, v))
    bias = bias.expand(rows, heads, length, length).reshape(rows * heads, length, length)
    logits = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=channels**-0.5)
    return torch.bmm(logits.softmax(dim=-1), v).view(rows, heads, length, channels)


def look_back(tokens: Tensor, bos: int, windows: set[int]) -> dict[int, Any]:
    """By window: what attention within documents may see, in the form that KERNEL takes.

    Position q sees k <= q of its own document, less than `window` before it. A document goes on in the next row of the
    stream without its beginning: no token is thrown away, and all kernels compute the same.
    """
    rows, length = tokens.shape
    if KERNEL == "fa3":  # one list of borders for all windows; its length is fixed, so that nothing compiles twice
        borders = torch.full((tokens.numel() // 16 + 1,), tokens.numel(), dtype=torch.int32)
        row_starts = torch.arange(0, tokens.numel(), length)
        found = torch.cat((row_starts, (tokens == bos).flatten().nonzero().flatten())).unique()
        if len(found) >= len(borders) or not DOCUMENTS:  # too many, tiny documents: joined for this once
            found = row_starts
        borders[: len(found)] = found
        return dict.fromkeys(windows, borders.to(DEVICE))
    document = (tokens.to(DEVICE) == bos).cumsum(1) * DOCUMENTS

    def seen(window: int) -> Callable[..., Tensor]:
        return lambda b, h, q, k: (k <= q) & (q - k < window) & (document[b, q] == document[b, k])

    if KERNEL == "flex":
        mask = importlib.import_module("torch.nn.attention.flex_attention").create_block_mask
        mask = compiled(mask) if COMPILE else mask
        return {window: mask(seen(window), rows, None, length, length, device=DEVICE.type) for window in windows}
    place = torch.arange(length, device=DEVICE)
    row = torch.arange(rows, device=DEVICE)[:, None, None]
    return {window: seen(window)(row, 0, place[:, None], place)[:, None] for window in windows}


@lru_cache(maxsize=4)
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled for fixed shapes, once."""
    return torch.compile(function, dynamic=False)


def attend_within(q: Tensor, k: Tensor, v: Tensor, seen: Any, window: int) -> Tensor:
    """Attention within documents and windows, [B, heads, T, HEAD_DIM] each; `seen` as `look_back` gives it."""
    if KERNEL == "flex":
        return FUSED(q, k, v, block_mask=seen)
    if KERNEL == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    rows, heads, length, channels = q.shape
    q, k, v = (x.transpose(1, 2).reshape(rows * length, heads, channels) for x in (q, k, v))
    reach = (min(window, length) - 1, 0)
    y = FUSED(q, k, v, seen, seen, length, length, causal=True, window_size=reach)
    y = y[0] if isinstance(y, tuple) else y  # some versions also give the log-sum-exp
    return y.view(rows, length, heads, channels).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head attention with QK-norm (arXiv 2010.04245); a value embedding may join its values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = Linear(WIDTH, WIDTH, std=0.0)  # zero: every block starts as the identity

    def forward(
        self, x: Tensor, value: Tensor | None, turn: tuple[Tensor, Tensor], seen: dict[int, Any] | None, window: int
    ) -> Tensor:
        shape = (*x.shape[:2], -1, HEAD_DIM)
        v = (self.v(x) if value is None else self.v(x) + value).view(shape).transpose(1, 2)
        both = torch.cat((self.q.weight, self.k.weight)).to(x.dtype)  # in one go: fewer, larger calls
        qk = norm(F.linear(x, both).view(shape))
        q, k = (qk if ALIBI else rotate(qk, turn)).transpose(1, 2).chunk(2, dim=1)
        y = attend(q, k, v) if seen is None else attend_within(q, k, v, seen[window], window)
        return self.out(y.transpose(1, 2).reshape(x.shape))


class MLP(nn.Module):
    """Two layers with ACTIVATION between."""

    def __init__(self) -> None:
        super().__init__()
        self.up = Linear(WIDTH, MLP_RATIO * WIDTH)
        self.down = Linear(MLP_RATIO * WIDTH, WIDTH, std=0.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        x = F.relu(x).square() if ACTIVATION == "relu2" else getattr(F, ACTIVATION)(x)
        return self.down(x)


class GPT(nn.Module):
    """Tokens [B, T] to logits [B, T, vocabulary]. Position t sees tokens 0..t only."""

    def __init__(self, vocab_size: int, depth: int | None = None) -> None:
        super().__init__()
        check_constants()
        depth = depth or DEPTH
        self.vocab_size = vocab_size
        self.token = embedding(vocab_size, std=1.0)
        self.bigram = embedding(BIGRAM_ROWS, std=0.0) if BIGRAM else None
        self.smear = nn.Parameter(torch.zeros(WIDTH)) if SMEAR else None
        fed = [str(i) for i in range(depth) if VALUE_EMBEDDING and (depth - 1 - i) % 2 == 0]  # the last layer always
        self.values = nn.ModuleDict({i: embedding(vocab_size, std=WIDTH**-0.5) for i in fed})
        self.attention = nn.ModuleList(Attention() for _ in range(depth))
        self.mlp = nn.ModuleList(MLP() for _ in range(depth))
        # Every block reads its own mix of the stream and of the embedding x0 (modded-nanogpt, record of 2024-11).
        self.mix_stream = nn.Parameter(torch.ones(depth))
        self.mix_x0 = nn.Parameter(torch.full((depth,), 0.1))
        padded = -(-vocab_size // PAD_VOCAB) * PAD_VOCAB
        self.head = Linear(WIDTH, padded, std=0.001)  # not tied to the embedding; the first loss is log V

    def windows(self, length: int) -> list[int]:
        """How far each layer looks back in a context of `length`."""
        last, short = len(self.attention) - 1, min(WINDOW or length, length)
        return [length if (last - i) % 4 == 0 else short for i in range(last + 1)]

    def around(self, tokens: Tensor) -> tuple[tuple[Tensor, Tensor], dict[int, Any] | None]:
        """What a pass needs beside its tokens: kept out of the compiled part, since it depends on what they are."""
        length = tokens.size(1)
        bos = self.vocab_size - 1
        return rotation(length), look_back(tokens, bos, {*self.windows(length)}) if DOCUMENTS or WINDOW else None

    def forward(self, tokens: Tensor, around: Any = None) -> Tensor:
        return softcap(self.head(self.stream(tokens, around))[..., : self.vocab_size])

    def stream(self, tokens: Tensor, around: Any = None) -> Tensor:
        """What the head reads, [B, T, WIDTH]."""
        turn, seen = around or self.around(tokens)
        windows = self.windows(tokens.size(1))
        x = x0 = self.embed(tokens)
        for i, (attention, mlp) in enumerate(zip(self.attention, self.mlp, strict=True)):
            x = self.mix_stream[i].to(DTYPE) * x + self.mix_x0[i].to(DTYPE) * x0
            value = self.values[str(i)](tokens).to(DTYPE) if str(i) in self.values else None
            x = x + attention(norm(x), value, turn, seen, windows[i])
            x = x + mlp(norm(x))
        return norm(x)

    def embed(self, tokens: Tensor) -> Tensor:
        """Bigram before the norm, smear behind it: rows of rare pairs grow huge, and cost 4 % when not normalised."""
        x = self.token(tokens)
        if self.bigram is not None:
            x = x + self.bigram(self.pair_row(tokens))
        x = norm(x)
        if self.smear is not None:
            x = x + self.smear * previous(x)
        return x.to(DTYPE)

    def pair_row(self, tokens: Tensor) -> Tensor:
        """The row of the bigram table for (previous token, token): a hash, so that pairs may share rows."""
        before = previous(tokens, first=self.vocab_size - 1)
        return (before * 36313 ^ tokens * 27191) % BIGRAM_ROWS


def softcap(logits: Tensor) -> Tensor:
    """Bend large logits back."""
    return SOFTCAP * torch.tanh(logits / SOFTCAP) if SOFTCAP else logits


class HeadLoss(torch.autograd.Function):
    """Mean cross entropy of the softcapped head: x [N, WIDTH] and weight [V, WIDTH] to nats.

    The gradient is worked out in the same pass, by hand: half of autograd's time, a sixth of a step's. It is what
    training sees of the head and of `softcap`: whoever changes those changes this.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        gradient, nats = capped_gradient(F.linear(x, weight).float(), targets[:, None])
        gradient = gradient.to(x.dtype)
        ctx.save_for_backward(gradient @ weight, gradient.T @ x)
        return nats

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        of_x, of_weight = ctx.saved_tensors
        return of_x * upstream[0], of_weight * upstream[0], None


def capped_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of the mean loss with regard to `logits` [N, V] before the cap, and that loss. Spoils `logits`.

    C tanh(x / C) = 2 C sigmoid(2 x / C) - C, where the C at the end changes no probability: sigmoid takes a tenth of
    tanh's time on a CPU.
    """
    bent = logits.mul_(2 / SOFTCAP).sigmoid_() if SOFTCAP else logits
    gradient = torch.softmax(2 * SOFTCAP * bent if SOFTCAP else bent, dim=-1)
    loss = -gradient.gather(1, targets).clamp_min(1e-38).log().mean()
    gradient.scatter_add_(1, targets, gradient.new_full(targets.shape, -1.0)).mul_(1 / len(targets))
    return (gradient.mul_(bent.addcmul_(bent, bent, value=-1)).mul_(4) if SOFTCAP else gradient), loss


def check_constants() -> None:
    """Say what is wrong with an edit in one line, before anything runs."""
    assert WIDTH % HEAD_DIM == 0, f"WIDTH {WIDTH} must be a multiple of HEAD_DIM {HEAD_DIM}"
    assert HEAD_DIM % 2 == 0, f"HEAD_DIM {HEAD_DIM} must be even: rotary positions turn pairs of channels"
    assert ACTIVATION in ("relu2", "gelu", "silu"), f"ACTIVATION {ACTIVATION!r} must be relu2, gelu or silu"
    assert 0 <= WARMDOWN <= 1, f"WARMDOWN {WARMDOWN} must lie in 0..1"
    assert not (ALIBI and (DOCUMENTS or WINDOW)), "ALIBI needs whole attention: switch DOCUMENTS and WINDOW off"


def orthogonalise(updates: Tensor) -> Tensor:
    """Bring all singular values of each matrix near 1, by a quintic Newton-Schulz iteration. [n, r, c] with r <= c."""
    x = updates.to(DTYPE)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.float()


class Muon:
    """Momentum with orthogonalised steps (Jordan et al. 2024). Matrices of one shape are stacked: few, large calls."""

    def __init__(self, matrices: list[nn.Parameter]) -> None:
        stacks: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for matrix in matrices:
            stacks.setdefault(tuple(sorted(matrix.shape)), []).append(matrix)
        self.stacks = [(stack, torch.zeros(len(stack), *shape, device=DEVICE)) for shape, stack in stacks.items()]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for stack, momentum in self.stacks:
            gradients = torch.stack([lying(p.grad) for p in stack])
            momentum.lerp_(gradients, 1 - MOMENTUM)
            updates = orthogonalise(gradients.lerp_(momentum, MOMENTUM))  # Nesterov
            for p, update in zip(stack, updates, strict=True):
                lying(p).sub_(update, alpha=lr * max(1.0, p.size(0) / p.size(1)) ** 0.5)
                p.grad = None


def lying(matrix: Tensor) -> Tensor:
    """The matrix or its transpose, whichever is at least as wide as high. A view."""
    return matrix if matrix.size(0) <= matrix.size(1) else matrix.T


class Adam:
    """Adam (arXiv 1412.6980) for parameters that each have their own step size.

    Not torch.optim's: making one of those imports the compiler, a fifth of a trial's CPU time.
    """

    def __init__(self, parameters: list[tuple[nn.Parameter, float]]) -> None:
        self.slots = [(p, lr, torch.zeros_like(p), torch.zeros_like(p)) for p, lr in parameters]
        self.steps = 0

    @torch.no_grad()
    def step(self, scale: float, beta1: float = 0.8, beta2: float = 0.95, eps: float = 1e-10) -> None:
        self.steps += 1
        unbias = (1 - beta2**self.steps) ** 0.5 / (1 - beta1**self.steps)
        for p, lr, mean, square in self.slots:
            mean.lerp_(p.grad, 1 - beta1)
            square.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            p.addcdiv_(mean, square.sqrt().add_(eps), value=-lr * scale * unbias)
            p.grad = None


class Optimizer:
    """Muon for the matrices inside the blocks, Adam for the rest; one schedule scales all step sizes."""

    def __init__(self, model: GPT) -> None:
        self.muon = Muon([*model.attention.parameters(), *model.mlp.parameters()])
        tables = [module.weight for module in (model.token, *model.values.values())]
        pairs = [] if model.bigram is None else [model.bigram.weight]
        scalars = [p for p in model.parameters() if p.dim() == 1]
        narrow = (64 / WIDTH) ** 0.5
        groups = [(tables, EMBED_LR * narrow), (pairs, BIGRAM_LR * narrow), (scalars, SCALAR_LR)]
        groups.append(([model.head.weight], HEAD_LR * narrow))
        self.adam = Adam([(p, lr) for parameters, lr in groups for p in parameters])

    def step(self, progress: float) -> None:
        """One step, after the share `progress` of the budget."""
        scale = min(1.0, (1 - progress) / WARMDOWN) if WARMDOWN else 1.0
        scale = LR_FLOOR + (1 - LR_FLOOR) * scale
        self.adam.step(scale)
        self.muon.step(MATRIX_LR * scale)


class TailAverage:
    """The moving average of the weights that is kept in the end. Those of the first 80 % would have no share in it."""

    def __init__(self, model: GPT) -> None:
        self.weights, self.average = list(model.parameters()), []

    @torch.no_grad()
    def update(self, progress: float) -> None:
        if TAIL_EMA and progress >= 0.8 and self.average:
            torch._foreach_lerp_(self.average, self.weights, 1 - TAIL_EMA)
        elif TAIL_EMA and progress >= 0.8:
            self.average = [p.clone() for p in self.weights]

    @torch.no_grad()
    def keep(self) -> None:
        for p, average in zip(self.weights, self.average, strict=bool(self.average)):
            p.copy_(average)


class Clock:
    """How much of the budget is used, in batches and in seconds."""

    def __init__(self, seconds: float = math.inf, now: Callable[[], float] = time.perf_counter) -> None:
        self.now, self.started = now, now()
        self.seconds, self.ticked, self.step_s, self.used = seconds, self.started, 0.0, 0

    def progress(self, batches: int) -> float:
        """Share of the tokens or of the seconds, whichever is further on."""
        return max(self.used / batches, (self.ticked - self.started) / self.seconds)

    def has_time(self) -> bool:
        """Whether one more step, if it is a tenth slower than the last, fits."""
        return self.ticked - self.started + 1.1 * self.step_s < self.seconds

    def tick(self, batches: int) -> None:
        """A step is done."""
        self.used += batches
        now = self.now()
        self.step_s, self.ticked = now - self.ticked, now


def read_stream(budget: str, data: Path, seed: int, scale: int = 1) -> np.ndarray:
    """The tokens of this trial: the runner's file, or `scale` times as many as told, in pieces drawn by the seed."""
    if Path(budget).is_file():
        return read_tokens(Path(budget))
    number = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmM]?)", budget)
    if number is None:
        raise ValueError(f"--budget {budget} is neither a file nor a number of tokens such as 205k")
    count = scale * int(float(number[1]) * {"": 1, "k": 1_000, "m": 1_000_000}[number[2].lower()])
    tokens = read_tokens(data / "tokens.bin")
    if DOCUMENTS:
        return whole_documents(tokens, np.load(data / "documents.npy").astype(np.int64), seed, count)
    piece = min(256, len(tokens) - 1)
    starts = np.random.default_rng(seed).integers(0, len(tokens) - piece, size=-(-count // piece))
    return np.concatenate([tokens[:0], *(tokens[start : start + piece] for start in starts)])[:count]


def read_tokens(path: Path) -> np.ndarray:
    """A file of uint16 tokens, mapped; refused when empty or cut short in the middle of a token."""
    size = path.stat().st_size
    if size == 0 or size % 2:
        raise ValueError(f"{path} holds {size} bytes: cut short; remove the prepared folder and prepare it again")
    return np.memmap(path, dtype="<u2", mode="r")


def whole_documents(tokens: np.ndarray, starts: np.ndarray, seed: int, count: int) -> np.ndarray:
    """Documents in an order drawn by the seed, each once before any comes again; the last is cut."""
    random, ends, parts, found = np.random.default_rng(seed), np.append(starts[1:], len(tokens)), [], 0
    while found < count:
        for i in random.permutation(len(starts)):
            parts.append(tokens[starts[i] : ends[i]])
            found += len(parts[-1])
            if found >= count:
                break
    return np.concatenate(parts)[:count]


class Batches(Sequence[tuple[Tensor, Tensor]]):
    """Inputs and targets [BATCH, SEQ_LEN], one pair after the other. Each token is a target at most once.

    The stream is read by BATCH readers side by side, so that the rows of a batch come from different pieces.
    """

    def __init__(self, stream: np.ndarray, bos: int) -> None:
        self.stream, self.bos, self.count = stream, bos, len(stream) // (SEQ_LEN * BATCH)
        if self.count == 0:
            raise ValueError(f"--budget has {len(stream)} tokens, less than one step of {SEQ_LEN * BATCH}: raise it")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        first = SEQ_LEN * (np.arange(BATCH) * self.count + index)
        tokens = self.stream[first[:, None] + np.arange(-1, SEQ_LEN)].astype(np.int64)
        if index == 0:
            tokens[0, 0] = self.bos
        pair = torch.from_numpy(tokens)
        return pair[:, :-1], pair[:, 1:]


def batches(stream: np.ndarray, bos: int, vocab_size: int = 65536) -> Batches:
    """A stream as batches; one that belongs to another vocabulary is refused."""
    found = Batches(stream, bos)
    largest = stream[: 2**24].max()
    if largest >= vocab_size:
        raise ValueError(f"token {largest} is outside the vocabulary of {vocab_size}")
    return found


LossOf = Callable[[GPT, Tensor, Tensor, Any], Tensor]


def plain_loss(model: GPT, inputs: Tensor, targets: Tensor, around: Any) -> Tensor:
    """Nats per token; on a CPU with the head's gradient by hand, on a GPU the compiler does as well."""
    if TIER != "cpu":
        return F.cross_entropy(model(inputs, around).float().flatten(0, 1), targets.flatten())
    x = model.stream(inputs, around).flatten(0, 1)
    return HeadLoss.apply(x, model.head.weight.to(x.dtype), targets.flatten())


def to_device(tokens: Tensor) -> Tensor:
    """Without waiting for what the device does now."""
    return tokens if DEVICE.type == "cpu" else tokens.contiguous().pin_memory().to(DEVICE, non_blocking=True)


def get_ready(model: GPT) -> LossOf:
    """The loss, compiled and tried on tokens that mean nothing. What does not work here is left out, aloud."""
    if TIER == "cpu":
        return plain_loss
    fused = ["fa3", "flex"] if DEVICE.type == "cuda" and COMPILE else []
    ways = [*((kernel, True) for kernel in fused), *([("sdpa", True)] if COMPILE else []), ("sdpa", False)]
    for kernel, compiles in ways:
        try:
            use_kernel(kernel)
            loss_of = torch.compile(plain_loss, dynamic=False) if compiles else plain_loss
            nothing = torch.zeros(BATCH, SEQ_LEN, dtype=torch.int64)
            loss_of(model, to_device(nothing), to_device(nothing), model.around(nothing)).backward()
            break
        except (ImportError, RuntimeError) as error:
            if "memory" in str(error) or (kernel, compiles) == ways[-1]:
                raise
            why = next(iter(str(error).strip().splitlines()), type(error).__name__)
            print(f"attention {kernel}{', compiled' if compiles else ''}: not here ({why})", flush=True)
    model.zero_grad()
    print(f"attention {kernel}, {'compiled' if compiles else 'not compiled'}", flush=True)
    gc.freeze()  # what the compiler left is not looked through again
    return loss_of


def passes_at(progress: float) -> int:
    """How many batches make up a step."""
    share = 1 if not BATCH_RAMP or progress >= 2 / 3 else 2 if progress >= 1 / 3 else 4
    return max(1, PASSES // share)


def losses(
    model: GPT, steps: Sequence[tuple[Tensor, Tensor]], loss_of: LossOf = plain_loss, clock: Clock | None = None
) -> Iterator[float]:
    """Train until the batches or the seconds are used up; yield the loss (nats per token) of each step."""
    clock = clock or Clock()
    optimizer, average = Optimizer(model), TailAverage(model)
    while clock.used < len(steps) and clock.has_time():
        progress = clock.progress(len(steps))
        passes = min(passes_at(progress), len(steps) - clock.used)
        total = torch.zeros((), device=DEVICE)
        for inputs, targets in (steps[clock.used + i] for i in range(passes)):
            loss = loss_of(model, to_device(inputs), to_device(targets), model.around(inputs)) / passes
            loss.backward()
            total += loss.detach()
        optimizer.step(progress)
        average.update(progress)
        told = total.item()  # waits for the device: the clock must not run ahead of it
        clock.tick(passes)
        yield told
    average.keep()


def load(artifact_dir: str) -> Callable[[Tensor], Tensor]:
    """The trained model: tokens, int64 [B, T], to logits, float [B, T, V]. [b, t] predicts token t + 1 from 0..t."""
    artifact = Path(artifact_dir)
    if (artifact / "tier.txt").is_file():
        use_tier((artifact / "tier.txt").read_text())
    state = torch.load(artifact / "model.pt", weights_only=True)
    model = GPT(vocab_size=state["token.weight"].size(0), depth=state["mix_stream"].numel())
    model.load_state_dict(state)
    model.to(DEVICE)

    @torch.no_grad()
    def predict(tokens: Tensor) -> Tensor:
        if TIER == "cpu":
            return model(tokens).float()
        # Row by row: the same shape for every window, so that its place among others can not change a bit.
        return torch.cat([model(row.to(DEVICE)).float().cpu() for row in tokens.split(1)])

    return predict


def flops(model: GPT, tokens: int) -> float:
    """Operations of training on `tokens`: 6 per weight of a matrix and token, and the visible part of attention.

    Borders of documents are not counted: shorter ones need less.
    """
    weights = sum(p.numel() for module in model.modules() if isinstance(module, nn.Linear) for p in module.parameters())
    visible = sum(window - window**2 / (2 * SEQ_LEN) for window in model.windows(SEQ_LEN))
    return tokens * (6.0 * weights + 12.0 * WIDTH * visible)


def peak_flops(seconds: float = 0.1) -> float | None:
    """Operations per second that 100 % MFU means: a GPU's data sheet; of a core, a large matrix product in DTYPE."""
    if DEVICE.type == "cuda":
        name = torch.cuda.get_device_name()
        return next((1e12 * peak for part, peak in PEAKS.items() if part in name), None)
    a, b = torch.ones(1024, 1024, dtype=DTYPE), torch.ones(1024, 1024, dtype=DTYPE)
    torch.mm(a, b)  # the first one also sets up the kernel
    started, products = time.process_time(), 0
    while time.process_time() - started < seconds:
        torch.mm(a, b)
        products += 1
    return products * 2.0 * 1024**3 / (time.process_time() - started)


@torch.no_grad()
def bits_per_byte(model: GPT, corpus: Path) -> float:
    """val_bpb of the first validation tokens, as the swarm's scorer computes it."""
    window, tokens = SCORED_WINDOW, SCORED_TOKENS
    lengths = torch.from_numpy(np.load(corpus / "token_bytes.npy").astype(np.int64))
    stream = torch.from_numpy(read_tokens(corpus / "val" / "tokens.bin")[: tokens + 1].astype(np.int64))
    rows = (len(stream) - 1) // window
    inputs, targets = stream[: rows * window].view(rows, window), stream[1 : rows * window + 1].view(rows, window)
    nats = 0.0
    for questions, answers in zip(inputs.split(16), targets.split(16), strict=True):
        logits = model(questions.to(DEVICE)).float().flatten(0, 1)
        nats_each = F.cross_entropy(logits, answers.flatten().to(DEVICE), reduction="none").cpu()
        nats += nats_each[lengths[answers.flatten()] > 0].double().sum().item()
    return nats / math.log(2) / lengths[targets].sum().item()


def prepared(data: Path | None) -> Path:
    """The folder of training tokens: as told, or the default corpus, made by prepare.py when it is not there yet."""
    if data is not None:
        return data
    here = Path(__file__).resolve().parent
    corpus = here / ".cache" / ("data" if TIER == "cpu" else "gpu-data")
    if TIER != "cpu" and not (corpus / "manifest.json").is_file():
        how = f"python {here / 'prepare.py'} --out {corpus} --source climbmix --vocab 8192"
        raise ValueError(f"the GPU tier's data is not there: {how}")
    if not (corpus / "manifest.json").is_file():
        made = subprocess.run([sys.executable, str(here / "prepare.py"), "--out", str(corpus)], check=False)
        if made.returncode:
            raise ValueError(f"{corpus} is not there and could not be prepared")
    return corpus / "train"


def read_scale(text: str) -> tuple[int, int]:
    """`depth=2` or `tokens=3`, as factors of depth and of tokens."""
    what, _, factor = text.partition("=")
    if what not in ("depth", "tokens") or not factor.isdecimal() or int(factor) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither depth=N nor tokens=N with a whole N, such as depth=2")
    return (int(factor), 1) if what == "depth" else (1, int(factor))


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a small GPT on a fixed stream of tokens.")
    parser.add_argument("--data", type=Path, help="folder with tokens.bin and meta.json; default: prepared beside this")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the trained model; default: out")
    parser.add_argument("--seed", type=int, default=0, help="decides initial weights, and the data if drawn here")
    parser.add_argument("--budget", default="204.8k", help="the runner's token stream, or a count such as 205k")
    parser.add_argument("--tier", choices=("cpu", "gpu", "tiny"), default="cpu", help="tiny: gpu, for a CPU to try")
    parser.add_argument("--seconds", type=float, default=0.0, help="wall time from the stream to the written model")
    parser.add_argument(
        "--scale",
        type=read_scale,
        default=(1, 1),
        metavar="depth=N|tokens=N",
        help="N times the layers, or N times a --budget that is a count: does a gain survive at a larger scale?",
    )
    return parser.parse_args()


def main() -> int:
    """Train, print what people like to see, leave `model.pt` in --out."""
    arguments = read_arguments()
    started = time.perf_counter()
    torch.set_num_threads(1)  # two threads are slower than one as soon as the machine has anything else to do
    torch.manual_seed(arguments.seed)
    deeper, longer = arguments.scale
    if arguments.tier == "gpu" and not torch.cuda.is_available():
        print("no CUDA here: the CPU tier instead of the GPU's", flush=True)
        arguments.tier = "cpu"
    use_tier(arguments.tier)
    waits = arguments.seconds > 0 and re.fullmatch(r"[\d.]+[kKmM]?", arguments.budget) is None
    try:
        data = prepared(arguments.data)
        meta = json.loads((data / "meta.json").read_text())

        def read() -> Batches:
            return batches(read_stream(arguments.budget, data, arguments.seed, longer), meta["bos"], meta["vocab_size"])

        steps = None if waits else read()
    except (OSError, ValueError) as error:
        print(f"train: {error} (--data is the train folder that prepare.py makes)", file=sys.stderr)
        return 2
    try:
        model = GPT(meta["vocab_size"], DEPTH * deeper).to(DEVICE)
        loss_of = get_ready(model)
        reserve = rehearse_saving(model, arguments.out) if arguments.seconds else 0.0
        steps = steps or wait_for(Path(arguments.budget), arguments.out, read)
        clock = Clock(arguments.seconds - reserve if arguments.seconds else math.inf)
        return train(model, steps, loss_of, clock, arguments, data, started)
    except RuntimeError as error:  # torch's word for a CPU that ran out of memory, and the base of a GPU's
        if "memory" not in str(error):
            raise
        p = "" if TIER == "cpu" else "GPU_"
        sizes = f"{p}BATCH (now {BATCH}), {p}SEQ_LEN ({SEQ_LEN}) or {p}WIDTH ({WIDTH})"
        print(f"train: out of memory: lower {sizes}", file=sys.stderr)
        return 1


def rehearse_saving(model: GPT, out: Path) -> float:
    """How many seconds before the end training has to stop: twice what saving takes now, and half a second."""
    before = time.perf_counter()
    save(model, out)
    return 2 * (time.perf_counter() - before) + 0.5


def save(model: GPT, out: Path) -> None:
    """Leave the artifact that `load` reads."""
    out.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), out / "model.pt")
    if TIER != "cpu":
        (out / "tier.txt").write_text(TIER)


def wait_for(stream: Path, out: Path, read: Callable[[], Batches]) -> Batches:
    """Ask for the tokens and wait until they are there, which starts the clock. Who keeps us waiting also ends us."""
    (out / "ready").touch()
    while not stream.exists():
        time.sleep(0.001)
    return read()


def train(
    model: GPT,
    steps: Batches,
    loss_of: LossOf,
    clock: Clock,
    arguments: argparse.Namespace,
    data: Path,
    started: float,
) -> int:
    """The run itself; 0, or 1 when the loss is no number any more."""
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    prepared_s = time.perf_counter() - started
    print(f"{millions:.2f} M parameters, {len(steps)} batches of {SEQ_LEN * BATCH} tokens, {DTYPE_REASON}", flush=True)

    now = time.process_time if DEVICE.type == "cpu" else time.perf_counter
    recent, before, step = math.log(model.vocab_size), now(), 0  # the loss of a blind guess
    for step, loss in enumerate(losses(model, steps, loss_of, clock), start=1):
        if not math.isfinite(loss):
            print(f"train: loss is {loss} at step {step} of {len(steps)}", file=sys.stderr)
            return 1
        recent = 0.9 * recent + 0.1 * loss  # running mean over about 10 steps
        if step % 10 == 0 or clock.used == len(steps):
            print(f"step {clock.used}/{len(steps)} tokens {clock.used * SEQ_LEN * BATCH} loss {recent:.3f}", flush=True)
    training = now() - before
    save(model, arguments.out)
    tokens = clock.used * SEQ_LEN * BATCH
    operations = flops(model, tokens)
    by_hand = not Path(arguments.budget).is_file()
    print("---")
    if by_hand and (data.parent / "val").is_dir():  # a trial's time is for training
        use_kernel("sdpa")
        print(f"val_bpb:          {bits_per_byte(model, data.parent):.6f}")
    peak = peak_flops() if by_hand or DEVICE.type == "cuda" else None
    if peak is not None:
        print(f"mfu_percent:      {100 * operations / training / peak:.1f}")
    if DEVICE.type == "cuda":
        print(f"peak_vram_mb:     {torch.cuda.max_memory_allocated() / 2**20:.0f}")
    seconds = time.perf_counter() - started
    print(f"train_loss:       {recent:.6f}\ntraining_seconds: {training:.1f}\ntotal_seconds:    {seconds:.1f}")
    print(f"startup_seconds:  {prepared_s:.1f}\ncpu_seconds:      {time.process_time():.1f}")
    print(f"tokens_per_s:     {tokens / training:.0f}")
    print(f"total_tokens_M:   {tokens / 1e6:.2f}\ntotal_tflops:     {operations / 1e12:.3f}")
    print(f"num_steps:        {step}\nnum_params_M:     {millions:.2f}\ndepth:            {len(model.attention)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
