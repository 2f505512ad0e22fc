"""Train a small GPT on a fixed stream of tokens. This is the file that the swarm edits.

    python train.py                                                             # by hand: ten seconds, and a score
    python train.py --scale depth=2                                             # does it hold at twice the depth?
    python train.py --data data/train --out out --seed 0 --budget stream.bin    # as the swarm runs it
    python train.py --tier gpu --budget 600M --seconds 300                      # the same model, larger, on one GPU

`--budget FILE` is all that may be learnt from: uint16 tokens, drawn by the runner. Each is a training target at most
once: SEQ_LEN and BATCH may change, their number may not. With `--seconds` wall time is the budget: this file builds
and compiles first, writes `ready` in --out and waits for the stream; its coming starts the clock. Scores are computed
elsewhere, from what `load` predicts. On one thread of a CPU the same seed and stream give bit-identical weights.

In this order: constants, tiers, model, loss, optimiser, data, training, command line. What a run by hand looks up or
tells besides is in `by_hand.py`, which no trial has.
"""

import argparse
import gc
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

try:
    import by_hand
except ImportError:
    by_hand = None

# ======== Constants. Every value that `choices:` or `range:` names works, in any combination: machines may search here.
# A percentage is what the edit does to val_bpb at equal tokens (negative is better): the mean of three paired seeds,
# each +-0.1 to 0.5. `benchmarks/effects.py` measures them again.

# ---- Shape of the model.
WIDTH = 64  # choices: 32, 64, 96, 128; channels of the residual stream, a multiple of HEAD_DIM; 96: -1.3 %
DEPTH = 2  # choices: 1, 2, 3, 4; layers; 3: -0.3 %, for a fifth more time
HEAD_DIM = 32  # choices: 16, 32, 64; channels of one attention head; 16: +0.7 %
MLP_RATIO = 4  # choices: 2, 3, 4, 6; hidden channels of the MLP per residual channel; 6: 0.0 %
ACTIVATION = "relu2"  # choices: relu2, gelu, silu; in the MLP; relu2: squared (Primer, arXiv 2109.08668); gelu: +0.1 %
SOFTCAP = 15.0  # range: 0..30; a tanh keeps the logits within this (Gemma 2, arXiv 2408.00118); 0, off: -0.0 %
VALUE_EMBEDDING = True  # a second embedding feeds every other layer's values (modded-nanogpt, 2024); off: +1.9 %

# ---- Known techniques, shipped OFF on purpose: a search then has something real to find. They are no secret: a swarm
# that switches one on has discovered nothing new. All three together: -5.0 %.

BIGRAM = False  # Add an embedding of the hashed (previous, current) pair of tokens (modded-nanogpt, 2026); on: -4.1 %
BIGRAM_ROWS = 4096  # range: 512..16384 log; rows that the pairs share
SMEAR = False  # Mix the previous token's embedding into each by a weight per channel (modded-nanogpt, 2025); on: -2.0 %
ALIBI = False  # Attention falls off linearly with distance; no rotary positions (ALiBi, arXiv 2108.12409); on: -1.4 %
SLOPE = 0.5  # range: 0.01..1 log; ALIBI's fall for the first head, a quarter of it for each next; for 3x tokens 0.06

# ---- Optimisation.
SEQ_LEN = 128  # choices: 64, 128, 256; tokens per sequence in training; scores are taken at 256; 256: +1.9 %
ROPE_BASE = 100.0  # range: 10..100000 log; the slowest rotary turn takes 2 pi times this many tokens; 10000: +0.4 %
BATCH = 8  # choices: 4, 8, 16, 32; sequences per step; 4: -0.4 %, for a tenth more time; 16: +0.8 %
MATRIX_LR = 0.04  # range: 0.01..0.16 log; step size of the matrices, by Muon; 0.02: +0.7 %, 0.08: +0.4 %
MOMENTUM = 0.9  # range: 0.7..0.97; momentum of Muon; 0.95: +0.3 %
EMBED_LR = 0.5  # range: 0.1..4 log; Adam's step size of embeddings at width 64, as width^-0.5; 1: -0.3 %
BIGRAM_LR = 0.125  # range: 0.02..1 log; step size of BIGRAM's rows, which overshoot: 0.5: +0.3 %, at 3x tokens +4.3 %
HEAD_LR = 0.02  # range: 0.004..0.1 log; step size of the head, also as width^-0.5; 0.01: +0.6 %
SCALAR_LR = 0.05  # range: 0.005..0.5 log; step size of the mixing weights; 0.02: -0.1 %
WARMDOWN = 0.5  # range: 0..1; last share of the steps, in which the step sizes fall linearly to 0; 0.8: +0.2 %

# ---- What a GPU's time is spent on and a CPU trial does without: fixed here, switches of the GPU tier below.
ATTENTION = "sdpa"  # fixed: the kernel of attention; one that does not work here gives way to the next of KERNELS
WINDOW = 0  # fixed: tokens that a layer looks back, 0 = all; each fourth layer, counted from the last, always sees all
DOCUMENTS = False  # fixed: attention stays within the document of its token
PASSES = 1  # fixed: batches whose gradients are added up to one step
BATCH_RAMP = False  # fixed: a quarter of these passes in the first third of the training, half in the second
LR_FLOOR = 0.0  # fixed: share of the step sizes that is left at the end
TAIL_EMA = 0.0  # fixed: keep the moving average of the last weights, with this decay; 0 = off
COMPILE = False  # fixed: model and loss as one, forwards and backwards
PAD_VOCAB = 1  # fixed: the head's rows are filled up to a multiple of this, as tensor cores like it

# ---- The GPU tier, `--tier gpu`: each GPU_NAME takes the place of NAME; what has no GPU_ line holds for both. Meant
# for one H100 and 300 s: 54 M parameters, vocabulary 8192. Sizes and step sizes follow public five-minute runs
# (autoresearch, modded-nanogpt). None of their effects was measured with this file yet: `benchmarks/gpu.sh` does it.

GPU_WIDTH = 512  # choices: 384, 512, 640, 768; channels of the residual stream
GPU_DEPTH = 8  # choices: 6, 7, 8, 9, 10, 12; layers
GPU_HEAD_DIM = 128  # choices: 64, 128; channels of one attention head
GPU_BIGRAM = True  # an embedding of the hashed (previous, current) pair of tokens
GPU_BIGRAM_ROWS = 8192  # range: 4096..131072 log; rows that the pairs share
GPU_BIGRAM_LR = 0.5  # range: 0.1..4 log; Adam's step size of these rows
GPU_SMEAR = True  # the previous token's embedding, mixed into each by a weight per channel
GPU_ALIBI = False  # fixed: the kernels that skip what is masked know no slopes
GPU_ATTENTION = "fa3"  # fixed: fa3 (FlashAttention-3, arXiv 2407.08608), then flex, then sdpa; all compute the same
GPU_SEQ_LEN = 2048  # choices: 1024, 2048; tokens per sequence in training
GPU_ROPE_BASE = 10000.0  # range: 100..100000 log; the slowest rotary turn takes 2 pi times this many tokens
GPU_BATCH = 64  # choices: 16, 32, 64, 128; sequences per pass
GPU_MATRIX_LR = 0.04  # range: 0.01..0.16 log; step size of the matrices, by Muon
GPU_MOMENTUM = 0.95  # range: 0.8..0.98; momentum of Muon
GPU_EMBED_LR = 2.0  # range: 0.5..8 log; Adam's step size of the embeddings, at width 64
GPU_HEAD_LR = 0.014  # range: 0.004..0.05 log; Adam's step size of the head, at width 64
GPU_SCALAR_LR = 0.05  # range: 0.005..0.5 log; Adam's step size of the mixing weights
GPU_WARMDOWN = 0.75  # range: 0.2..1; last share of the training, in which the step sizes fall
GPU_LR_FLOOR = 0.05  # range: 0..0.2; share of the step sizes that is left at the end (autoresearch, 2026)
GPU_WINDOW = 256  # choices: 0, 128, 256, 512, 1024; tokens that three of four layers see (modded-nanogpt, 2024)
GPU_DOCUMENTS = True  # attention stays within the document of its token (modded-nanogpt, 2024)
GPU_PASSES = 4  # choices: 1, 2, 4, 8; batches whose gradients are added up to one step
GPU_BATCH_RAMP = True  # a quarter of the passes in the first third, then half in the second (modded-nanogpt)
GPU_TAIL_EMA = 0.98  # range: 0.9..0.995; decay of the average of the last weights (modded-nanogpt)
GPU_COMPILE = True  # fixed: without it the same model, slower
GPU_PAD_VOCAB = 64  # fixed
# `--tier tiny`: the GPU tier's code at sizes that a CPU tries in seconds.
TINY = {"WIDTH": 64, "DEPTH": 4, "HEAD_DIM": 32, "BIGRAM_ROWS": 512, "SEQ_LEN": 128, "BATCH": 2, "WINDOW": 32}
TINY |= {"COMPILE": False, "ATTENTION": "sdpa"}


# ======== Tiers: which constants, device, precision and kernel.
STARTED = time.perf_counter()
TIER = "cpu"
DEVICE = torch.device("cpu")
# bf16 where this CPU multiplies it natively: 4.6x the fp32 rate, while emulated bf16 is slower than fp32. Asked of the
# CPU, not timed: a busy machine must not change the weights.
CAN = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch can not say
NATIVE = any(CAN.get(name) for name in ("avx512_bf16", "amx_bf16"))
DTYPE = torch.bfloat16 if NATIVE else torch.float32
KERNELS = ("fa3", "flex", "sdpa")  # of attention; the first two skip what is masked
KERNEL, FUSED, BLOCK_MASK = "sdpa", None, None  # the one in use, its function, and what makes masks for "flex"


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
        here["DTYPE"] = torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float32


def use_kernel(name: str) -> None:
    """Load the function of an attention kernel. Raises ImportError or RuntimeError where it cannot run."""
    fused = block_mask = None
    if name == "fa3":
        from flash_attn_interface import flash_attn_varlen_func as fused
    if name == "flex":
        from torch.nn.attention.flex_attention import create_block_mask as block_mask
        from torch.nn.attention.flex_attention import flex_attention as fused

        block_mask = torch.compile(block_mask, dynamic=False) if COMPILE else block_mask
    globals().update(KERNEL=name, FUSED=fused, BLOCK_MASK=block_mask)


# ======== Model: pieces, attention, blocks.
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


@lru_cache(maxsize=4)
def rotation(length: int) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine by which channels turn in pairs (RoPE, arXiv 2104.09864), [T, 1, HEAD_DIM]."""
    frequencies = ROPE_BASE ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    angles = torch.outer(torch.arange(length), frequencies)[:, None, :]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1).to(DEVICE, DTYPE), torch.cat((sin, -sin), dim=-1).to(DEVICE, DTYPE)


@lru_cache(maxsize=4)
def attention_bias(length: int) -> Tensor:
    """What is added to the attention logits, [heads, T, T]: -inf for the future, with ALIBI a slope for the past."""
    position = torch.arange(length)
    distance = position[:, None] - position[None, :]
    heads = WIDTH // HEAD_DIM
    slopes = SLOPE * 4.0 ** -torch.arange(heads) if ALIBI else torch.zeros(heads)
    # Rotary positions are not trusted beyond what they were trained on: nothing before the last SEQ_LEN is seen (-1 %).
    unseen = (distance < 0) | (distance >= (length if ALIBI else SEQ_LEN))
    return (-slopes[:, None, None] * distance).masked_fill(unseen, -math.inf).to(DEVICE, DTYPE)


def look_back(tokens: Tensor, bos: int, windows: set[int]) -> dict[int, Any]:
    """By window: what attention may see, in the form that `attend` takes.

    Position q sees k <= q of its own document, less than `window` before it. A document goes on in the next row of the
    stream without its beginning: no token is thrown away, and all kernels compute the same.
    """
    rows, length = tokens.shape
    if not (DOCUMENTS or WINDOW) and (TIER == "cpu" or ALIBI or length <= SEQ_LEN):  # one for all, made once, or none
        return dict.fromkeys(windows, attention_bias(length) if TIER == "cpu" or ALIBI else None)
    if KERNEL == "fa3":  # one list of borders for all windows; its length is fixed, so that nothing compiles twice
        row_starts = torch.arange(0, tokens.numel(), length)
        found = torch.cat((row_starts, (tokens == bos).flatten().nonzero().flatten())).unique()
        borders = torch.full((tokens.numel() // 16 + 1,), tokens.numel(), dtype=torch.int32)
        if len(found) >= len(borders) or not DOCUMENTS:  # too many, tiny documents: joined for this once
            found = row_starts
        borders[: len(found)] = found
        return dict.fromkeys(windows, borders.to(DEVICE))
    document = (tokens.to(DEVICE) == bos).cumsum(1) * DOCUMENTS

    def seen(window: int) -> Callable[..., Tensor]:
        return lambda b, h, q, k: (k <= q) & (q - k < window) & (document[b, q] == document[b, k])

    if KERNEL == "flex":
        return {window: BLOCK_MASK(seen(window), rows, None, length, length, device=DEVICE.type) for window in windows}
    place, row = torch.arange(length, device=DEVICE), torch.arange(rows, device=DEVICE)[:, None, None]
    return {window: seen(window)(row, 0, place[:, None], place)[:, None] for window in windows}


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Any, window: int) -> Tensor:
    """Attention, [B, heads, T, HEAD_DIM] each; `seen` as `look_back` gives it."""
    rows, heads, length, channels = q.shape
    if seen is None or KERNEL == "sdpa" and seen.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None)
    if KERNEL == "sdpa":  # by hand: in bf16 on a CPU torch's fused kernel takes twice the time (in fp32 it takes half)
        q, k, v = (x.reshape(rows * heads, length, channels) for x in (q, k, v))
        bias = seen.expand(rows, heads, length, length).reshape(rows * heads, length, length)
        logits = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=channels**-0.5)
        return torch.bmm(logits.softmax(dim=-1), v).view(rows, heads, length, channels)
    if KERNEL == "flex":
        return FUSED(q, k, v, block_mask=seen)
    q, k, v = (x.transpose(1, 2).reshape(rows * length, heads, channels) for x in (q, k, v))
    y = FUSED(q, k, v, seen, seen, length, length, causal=True, window_size=(window - 1, 0))
    y = y[0] if isinstance(y, tuple) else y  # some versions also give the log-sum-exp
    return y.view(rows, length, heads, channels).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head attention with QK-norm (arXiv 2010.04245; off: +0.6 %); a value embedding may join its values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = Linear(WIDTH, WIDTH, std=0.0)  # every block starts as the identity; off: +0.1 %

    def forward(self, x: Tensor, value: Tensor | None, turn: tuple[Tensor, Tensor], seen: Any, window: int) -> Tensor:
        shape = (*x.shape[:2], -1, HEAD_DIM)
        v = (self.v(x) if value is None else self.v(x) + value).view(shape).transpose(1, 2)
        both = torch.cat((self.q.weight, self.k.weight)).to(x.dtype)  # in one go: fewer, larger calls
        qk = norm(F.linear(x, both).view(shape))
        if not ALIBI:
            a, b = qk.chunk(2, dim=-1)
            qk = torch.addcmul(qk * turn[0], torch.cat((b, a), dim=-1), turn[1])
        q, k = qk.transpose(1, 2).chunk(2, dim=1)
        return self.out(attend(q, k, v, seen, window).transpose(1, 2).reshape(x.shape))


class MLP(nn.Module):
    """Two layers with ACTIVATION between."""

    def __init__(self) -> None:
        super().__init__()
        self.up = Linear(WIDTH, MLP_RATIO * WIDTH)
        self.down = Linear(MLP_RATIO * WIDTH, WIDTH, std=0.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        return self.down(F.relu(x).square() if ACTIVATION == "relu2" else getattr(F, ACTIVATION)(x))


class GPT(nn.Module):
    """Tokens [B, T] to logits [B, T, vocabulary]. Position t sees tokens 0..t only."""

    def __init__(self, vocab_size: int, depth: int | None = None) -> None:
        super().__init__()
        assert WIDTH % HEAD_DIM == 0, f"WIDTH {WIDTH} must be a multiple of HEAD_DIM {HEAD_DIM}"
        assert not (ALIBI and (DOCUMENTS or WINDOW)), "ALIBI needs whole attention: switch DOCUMENTS and WINDOW off"
        depth = depth or DEPTH
        self.vocab_size = vocab_size
        self.token = embedding(vocab_size, std=1.0)
        self.bigram = embedding(BIGRAM_ROWS, std=0.0) if BIGRAM else None
        self.smear = nn.Parameter(torch.zeros(WIDTH)) if SMEAR else None
        fed = [str(i) for i in range(depth) if VALUE_EMBEDDING and (depth - 1 - i) % 2 == 0]  # the last layer always
        self.values = nn.ModuleDict({i: embedding(vocab_size, std=WIDTH**-0.5) for i in fed})
        self.attention = nn.ModuleList(Attention() for _ in range(depth))
        self.mlp = nn.ModuleList(MLP() for _ in range(depth))
        # Every block reads its own mix of the stream and of the embedding x0 (modded-nanogpt, 2024); off: 0.0 %.
        self.mix_stream = nn.Parameter(torch.ones(depth))
        self.mix_x0 = nn.Parameter(torch.full((depth,), 0.1))
        padded = -(-vocab_size // PAD_VOCAB) * PAD_VOCAB
        self.head = Linear(WIDTH, padded, std=0.001)  # not tied to the embedding; the first loss is log V

    def windows(self, length: int) -> list[int]:
        """How far each layer looks back in a context of `length`: no further than it was trained to."""
        last, whole = len(self.attention) - 1, min(length, SEQ_LEN)
        return [whole if (last - i) % 4 == 0 else min(WINDOW or whole, whole) for i in range(last + 1)]

    def around(self, tokens: Tensor) -> tuple[tuple[Tensor, Tensor], dict[int, Any]]:
        """What a pass needs beside its tokens: kept out of the compiled part, since it depends on what they are."""
        length = tokens.size(1)
        return rotation(length), look_back(tokens, self.vocab_size - 1, {*self.windows(length)})

    def embed(self, tokens: Tensor) -> Tensor:
        """Bigram before the norm, smear behind it: rows of rare pairs grow huge, and cost 4 % when not normalised."""
        x = self.token(tokens)
        if self.bigram is not None:  # the row of (previous token, token) is a hash: pairs may share rows
            before = F.pad(tokens[:, :-1], (1, 0), value=self.vocab_size - 1)
            x = x + self.bigram((before * 36313 ^ tokens * 27191) % BIGRAM_ROWS)
        x = norm(x)
        if self.smear is not None:
            x = x + self.smear * F.pad(x[:, :-1], (0, 0, 1, 0))
        return x.to(DTYPE)

    def forward(self, tokens: Tensor, around: Any = None, capped: bool = True) -> Tensor:
        """What is scored. `CappedLoss` takes it not capped, and repeats what the last line does: change both."""
        turn, seen = around or self.around(tokens)
        windows = self.windows(tokens.size(1))
        x = x0 = self.embed(tokens)
        for i, (attention, mlp) in enumerate(zip(self.attention, self.mlp, strict=True)):
            x = self.mix_stream[i].to(DTYPE) * x + self.mix_x0[i].to(DTYPE) * x0
            value = self.values[str(i)](tokens).to(DTYPE) if str(i) in self.values else None
            x = x + attention(norm(x), value, turn, seen[windows[i]], windows[i])
            x = x + mlp(norm(x))
        logits = self.head(norm(x))
        logits = logits if logits.size(-1) == self.vocab_size else logits[..., : self.vocab_size]
        return SOFTCAP * torch.tanh(logits / SOFTCAP) if SOFTCAP and capped else logits


# ======== Loss.
class CappedLoss(torch.autograd.Function):
    """Mean cross entropy of the softcapped `logits` [N, V], in nats, its gradient worked out in the same pass.

    Half of autograd's time, a sixth of a step's. C tanh(x / C) = 2 C sigmoid(2 x / C) - C, where the C at the end
    changes no probability: sigmoid takes a tenth of tanh's time on a CPU. Spoils `logits`.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        targets = targets[:, None]
        bent = logits.float().mul_(2 / SOFTCAP).sigmoid_() if SOFTCAP else logits.float()
        gradient = torch.softmax(2 * SOFTCAP * bent if SOFTCAP else bent, dim=-1)
        loss = -gradient.gather(1, targets).clamp_min(1e-38).log().mean()
        gradient.scatter_add_(1, targets, gradient.new_full(targets.shape, -1.0)).mul_(1 / len(targets))
        if SOFTCAP:
            gradient.mul_(bent.addcmul_(bent, bent, value=-1)).mul_(4)
        ctx.save_for_backward(gradient.to(logits.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient if upstream[0] == 1 else gradient * upstream[0]), None  # to multiply by 1 takes 1 % of a step


def plain_loss(model: GPT, inputs: Tensor, targets: Tensor, around: Any) -> Tensor:
    """Nats per token; on a CPU with the gradient by hand, on a GPU the compiler does as well."""
    if TIER == "cpu":
        return CappedLoss.apply(model(inputs, around, capped=False).flatten(0, 1), targets.flatten())
    return F.cross_entropy(model(inputs, around).float().flatten(0, 1), targets.flatten())


# ======== Optimiser.
def orthogonalise(updates: Tensor) -> Tensor:
    """Bring all singular values of each matrix near 1, by a quintic Newton-Schulz iteration. [n, r, c] with r <= c."""
    x = updates.to(DTYPE)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.float()


def lying(matrix: Tensor) -> Tensor:
    """The matrix or its transpose, whichever is at least as wide as high. A view."""
    return matrix if matrix.size(0) <= matrix.size(1) else matrix.T


class Optimizer:
    """Muon for the matrices inside the blocks, Adam for the rest; one schedule scales all step sizes."""

    def __init__(self, model: GPT) -> None:
        stacks: dict[tuple[int, ...], list[nn.Parameter]] = {}  # matrices of one shape: few, large calls
        for matrix in (*model.attention.parameters(), *model.mlp.parameters()):
            stacks.setdefault(tuple(sorted(matrix.shape)), []).append(matrix)
        self.stacks = [(stack, torch.zeros(len(stack), *shape, device=DEVICE)) for shape, stack in stacks.items()]
        narrow = (64 / WIDTH) ** 0.5
        rest = [(module.weight, EMBED_LR * narrow) for module in (model.token, *model.values.values())]
        rest += [] if model.bigram is None else [(model.bigram.weight, BIGRAM_LR * narrow)]
        rest += [(p, SCALAR_LR) for p in model.parameters() if p.dim() == 1]
        rest += [(model.head.weight, HEAD_LR * narrow)]
        self.slots = [(p, lr, torch.zeros_like(p), torch.zeros_like(p)) for p, lr in rest]
        self.steps, self.weights, self.tail = 0, list(model.parameters()), []

    @torch.no_grad()
    def step(self, progress: float) -> None:
        """One step, after the share `progress` of the budget."""
        scale = min(1.0, (1 - progress) / WARMDOWN) if WARMDOWN else 1.0
        scale = LR_FLOOR + (1 - LR_FLOOR) * scale
        self.adam(scale)
        self.muon(MATRIX_LR * scale)
        if TAIL_EMA and progress >= 0.8:  # earlier weights would have no share in it
            self.tail = self.tail or [p.clone() for p in self.weights]
            torch._foreach_lerp_(self.tail, self.weights, 1 - TAIL_EMA)

    def muon(self, lr: float) -> None:
        """Momentum with orthogonalised steps (Jordan et al. 2024). Adam, the best of 5 step sizes: +0.7 %."""
        for stack, momentum in self.stacks:
            gradients = torch.stack([lying(p.grad) for p in stack])
            momentum.lerp_(gradients, 1 - MOMENTUM)
            updates = orthogonalise(gradients.lerp_(momentum, MOMENTUM))  # Nesterov
            for p, update in zip(stack, updates, strict=True):
                lying(p).sub_(update, alpha=lr * max(1.0, p.size(0) / p.size(1)) ** 0.5)
                p.grad = None

    def adam(self, scale: float, beta1: float = 0.8, beta2: float = 0.95, eps: float = 1e-10) -> None:
        """As in arXiv 1412.6980. Not torch.optim's: making one imports the compiler, a fifth of a trial's CPU time."""
        self.steps += 1
        unbias = (1 - beta2**self.steps) ** 0.5 / (1 - beta1**self.steps)
        for p, lr, mean, square in self.slots:
            mean.lerp_(p.grad, 1 - beta1)
            square.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            p.addcdiv_(mean, square.sqrt().add_(eps), value=-lr * scale * unbias)
            p.grad = None

    @torch.no_grad()
    def finish(self) -> None:
        """Keep the average of the last weights, if there is one."""
        if self.tail:
            torch._foreach_copy_(self.weights, self.tail)


# ======== Data.
def read_tokens(path: Path) -> np.ndarray:
    """A file of uint16 tokens, mapped; refused when empty or cut short in the middle of a token."""
    size = path.stat().st_size
    if size == 0 or size % 2:
        raise ValueError(f"{path} holds {size} bytes: cut short; remove the prepared folder and prepare it again")
    return np.memmap(path, dtype="<u2", mode="r")


def read_stream(budget: int | Path, data: Path, seed: int) -> np.ndarray:
    """The tokens of this trial: the runner's file, or so many tokens of `data`, in pieces drawn by the seed."""
    if isinstance(budget, Path):
        return read_tokens(budget)
    tokens, random = read_tokens(data / "tokens.bin"), np.random.default_rng(seed)
    if DOCUMENTS:  # whole, in an order drawn by the seed, each once before any comes again; the last is cut
        starts = np.load(data / "documents.npy").astype(np.int64)
        lengths = np.diff(starts, append=len(tokens))
        order = np.concatenate([random.permutation(len(starts)) for _ in range(1 + budget // lengths.sum())])
        order = order[: lengths[order].cumsum().searchsorted(budget) + 1]
        return np.concatenate([tokens[starts[i] : starts[i] + lengths[i]] for i in order])[:budget]
    piece = max(1, min(256, len(tokens) - 1))
    starts = random.integers(0, len(tokens) - piece, size=-(-budget // piece))
    return np.concatenate([tokens[:0], *(tokens[start : start + piece] for start in starts)])[:budget]


class Batches:
    """Inputs and targets [BATCH, SEQ_LEN], one pair after the other. Each token is a target at most once.

    The stream is read by BATCH readers side by side, so that the rows of a batch come from different pieces.
    """

    def __init__(self, stream: np.ndarray, bos: int, vocab_size: int = 65536) -> None:
        self.stream, self.bos, self.count = stream, bos, len(stream) // (SEQ_LEN * BATCH)
        self.vocab_size = vocab_size
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
        if (largest := tokens.max()) >= self.vocab_size:  # not for all at first: that would read 1 GB on a GPU
            stop(f"token {largest} is outside the vocabulary of {self.vocab_size}: --budget is of another --data", 2)
        pair = torch.from_numpy(tokens)
        return pair[:, :-1], pair[:, 1:]


def to_device(tokens: Tensor) -> Tensor:
    """Without waiting for what the device does now."""
    return tokens if DEVICE.type == "cpu" else tokens.contiguous().pin_memory().to(DEVICE, non_blocking=True)


# ======== Training.
class Clock:
    """How much of the budget is used, in batches and in seconds."""

    def __init__(self, seconds: float = math.inf, now: Callable[[], float] = time.perf_counter) -> None:
        self.now, self.started, self.seconds = now, now(), seconds
        self.ticked, self.step_s, self.used = self.started, 0.0, 0

    def progress(self, batches: int) -> float:  # share of the tokens or of the seconds, whichever is further on
        return max(self.used / batches, (self.ticked - self.started) / self.seconds)

    def has_time(self) -> bool:  # for one more step, if it is a tenth slower than the last
        return self.ticked - self.started + 1.1 * self.step_s < self.seconds

    def tick(self, batches: int) -> None:
        self.used, before, self.ticked = self.used + batches, self.ticked, self.now()
        self.step_s = self.ticked - before


LossOf = Callable[[GPT, Tensor, Tensor, Any], Tensor]


def get_ready(model: GPT) -> LossOf:
    """The loss, compiled and tried on tokens that mean nothing. What does not work here is left out, aloud."""
    if TIER == "cpu":
        return plain_loss
    fits = COMPILE or DEVICE.type == "cpu"  # "flex" that is not compiled keeps every score in memory
    kernels = [kernel for kernel in KERNELS[KERNELS.index(ATTENTION) :] if fits or kernel != "flex"]
    ways = [*((kernel, COMPILE) for kernel in kernels), *([("sdpa", False)] if COMPILE else [])]
    for kernel, compiles in ways:
        try:
            use_kernel(kernel)
            loss_of = torch.compile(plain_loss, dynamic=False) if compiles else plain_loss
            nothing = torch.zeros(BATCH, SEQ_LEN, dtype=torch.int64)
            loss_of(model, to_device(nothing), to_device(nothing), model.around(nothing)).backward()
            break
        except (ImportError, OSError, AssertionError, AttributeError, TypeError, RuntimeError) as error:
            if no_memory(error) or (kernel, compiles) == ways[-1]:
                raise
            why = next(iter(str(error).strip().splitlines()), type(error).__name__)
            print(f"attention {kernel}{', compiled' if compiles else ''}: not here ({why})", flush=True)
    model.zero_grad()
    print(f"attention {kernel}, {'compiled' if compiles else 'not compiled'}", flush=True)
    gc.freeze()  # what the compiler left is not looked through again
    return loss_of


def losses(model: GPT, steps: Batches, loss_of: LossOf = plain_loss, clock: Clock | None = None) -> Iterator[float]:
    """Train until the batches or the seconds are used up; yield the loss (nats per token) of each step."""
    clock, optimizer = clock or Clock(), Optimizer(model)
    while clock.used < len(steps) and clock.has_time():
        progress = clock.progress(len(steps))
        share = 1 if not BATCH_RAMP or progress >= 2 / 3 else 2 if progress >= 1 / 3 else 4
        passes = min(max(1, PASSES // share), len(steps) - clock.used)
        total = torch.zeros((), device=DEVICE)
        for inputs, targets in (steps[clock.used + i] for i in range(passes)):
            loss = loss_of(model, to_device(inputs), to_device(targets), model.around(inputs)) / passes
            loss.backward()
            total += loss.detach()
        optimizer.step(progress)
        told = total.item()  # waits for the device: the clock must not run ahead of it
        clock.tick(passes)
        yield told
    optimizer.finish()


def flops(model: GPT, tokens: int) -> float:
    """Operations of training on `tokens`: 6 per weight of a matrix and token, and attention without borders."""
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    visible = sum(window - window**2 / (2 * SEQ_LEN) for window in model.windows(SEQ_LEN))
    return tokens * (6.0 * weights + 12.0 * WIDTH * visible)


def save(model: GPT, out: Path) -> None:
    """Leave the artifact that `load` reads."""
    try:
        torch.save(model.state_dict(), out / "model.pt")
        if TIER != "cpu":
            (out / "tier.txt").write_text(TIER)
    except (OSError, RuntimeError) as error:  # the second, from torch's file of that name, when a disk is full
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise
        why = error.strerror if isinstance(error, OSError) else "no room left"
        stop(f"the model can not be written to {out} ({why}): free some space, or name another --out", 2)


def load(artifact_dir: str) -> Callable[[Tensor], Tensor]:
    """The trained model: tokens, int64 [B, T], to logits, float [B, T, V]. [b, t] predicts token t + 1 from 0..t.

    Logits stay where they were made: what 17 GB of them cost is counted there.
    """
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
        return torch.cat([model(row.to(DEVICE)).float() for row in tokens.split(1)])

    return predict


def read_batches(arguments: argparse.Namespace, data: Path, meta: dict[str, int]) -> Batches:
    """What this trial learns from."""
    return Batches(read_stream(arguments.budget, data, arguments.seed), meta["bos"], meta["vocab_size"])


def trial(arguments: argparse.Namespace, data: Path, meta: dict[str, int], steps: Batches | None) -> dict[str, str]:
    """Build, get the tokens if they are still to come, train, save. Returns what there is to tell."""
    model = GPT(meta["vocab_size"], DEPTH * arguments.scale.get("depth", 1)).to(DEVICE)
    loss_of, seconds = get_ready(model), math.inf
    if arguments.seconds:  # training stops early by twice what saving takes now, and half a second
        before = time.perf_counter()
        save(model, arguments.out)
        seconds = arguments.seconds - 2 * (time.perf_counter() - before) - 0.5
    if steps is None:  # ask for the tokens: their coming starts the clock. Who keeps us waiting also ends us
        (arguments.out / "ready").touch()
        while not arguments.budget.exists():
            time.sleep(0.001)
    clock, startup_s = Clock(seconds), time.perf_counter() - STARTED
    steps = steps or read_batches(arguments, data, meta)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    size = f"{millions:.2f} M parameters, {len(steps)} batches of {SEQ_LEN * BATCH} tokens"
    print(f"{size}, {'bf16' if DTYPE == torch.bfloat16 else 'fp32 (no native bf16 here)'} on {DEVICE}", flush=True)
    now = time.process_time if DEVICE.type == "cpu" else time.perf_counter
    before, mean, step = now(), math.log(model.vocab_size), 0  # the loss of a blind guess
    for step, loss in enumerate(losses(model, steps, loss_of, clock), start=1):
        if not math.isfinite(loss):
            stop(f"loss is {loss} at step {step} of {len(steps)}", 1)
        mean = 0.9 * mean + 0.1 * loss  # over about 10 steps
        if step % 10 == 0 or clock.used == len(steps):
            print(f"step {clock.used}/{len(steps)} tokens {clock.used * SEQ_LEN * BATCH} loss {mean:.3f}", flush=True)
    training_s, tokens = now() - before, clock.used * SEQ_LEN * BATCH
    save(model, arguments.out)
    operations = flops(model, tokens)
    use_kernel("sdpa")  # scores do not rest on what was compiled for training
    known = by_hand and isinstance(arguments.budget, int)  # a trial's time is for training
    told = by_hand.scores(model, data.parent, TIER, DTYPE, operations / training_s) if known else {}
    told |= {"train_loss": f"{mean:.6f}", "training_seconds": f"{training_s:.1f}"}
    told |= {"total_seconds": f"{time.perf_counter() - STARTED:.1f}", "startup_seconds": f"{startup_s:.1f}"}
    told |= {"cpu_seconds": f"{time.process_time():.1f}", "tokens_per_s": f"{tokens / training_s:.0f}"}
    told |= {"total_tokens_M": f"{tokens / 1e6:.2f}", "total_tflops": f"{operations / 1e12:.3f}"}
    return told | {"num_steps": f"{step}", "num_params_M": f"{millions:.2f}", "depth": f"{len(model.attention)}"}


def main() -> None:
    """Train, leave the model in --out, print what people like to see. Exit 1: training failed; 2: what you can mend."""
    arguments = read_arguments()
    torch.set_num_threads(1)  # two threads are slower than one as soon as the machine has anything else to do
    torch.manual_seed(arguments.seed)
    if arguments.tier == "gpu" and not torch.cuda.is_available():
        print("no CUDA here: the CPU tier instead of the GPU's", flush=True)
        arguments.tier = "cpu"
    use_tier(arguments.tier)
    try:
        data = arguments.data or (by_hand.prepared(TIER) if by_hand else Path("data/train"))
        meta = json.loads((data / "meta.json").read_text())
        waits = arguments.seconds and isinstance(arguments.budget, Path)
        steps = None if waits else read_batches(arguments, data, meta)
        arguments.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, KeyError, EOFError) as error:
        known = "--data is the train folder that prepare.py makes, --budget a file of tokens or a number such as 205k"
        stop(f"{error} ({known}, --out a folder for the model)", 2)
    try:
        told = trial(arguments, data, meta, steps)
    except RuntimeError as error:  # torch's word for a CPU that ran out of memory, and the base of a GPU's
        if not no_memory(error):
            raise
        p = "" if TIER == "cpu" else "GPU_"
        stop(f"out of memory: lower {p}BATCH (now {BATCH}), {p}SEQ_LEN ({SEQ_LEN}) or {p}WIDTH ({WIDTH})", 1)
    print("---", *(f"{name + ':':17} {value}" for name, value in told.items()), sep="\n")


def no_memory(error: Exception) -> bool:
    """Whether memory ran out; a kernel's "out of resource: shared memory" is something else."""
    return any(words in str(error) for words in ("out of memory", "not enough memory", "can't allocate memory"))


def stop(why: str, status: int) -> NoReturn:
    """End with one sentence instead of a traceback."""
    print(f"train: {why}", file=sys.stderr)
    sys.exit(status)


# ======== Command line.
def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a small GPT on a fixed stream of tokens.")
    add = parser.add_argument
    add("--data", type=Path, help="folder with tokens.bin and meta.json; default: prepared beside this")
    add("--out", type=Path, default=Path("out"), help="folder for the trained model; default: out")
    add("--seed", type=int, default=0, help="decides initial weights, and the data if drawn here")
    add("--budget", type=read_budget, default="204.8k", help="the runner's token stream, or a count such as 205k")
    add("--tier", choices=("cpu", "gpu", "tiny"), default="cpu", help="tiny: gpu, for a CPU to try")
    add("--seconds", type=float, default=0.0, help="wall time from the stream to the written model")
    why = "N times the layers, or N times a --budget that is a count: does a gain survive at a larger scale?"
    add("--scale", type=read_scale, default={}, metavar="depth=N|tokens=N", help=why)
    arguments = parser.parse_args()
    if arguments.seconds and "tokens" in arguments.scale:
        parser.error("--scale tokens=N changes nothing where --seconds is the budget: name more seconds")
    if isinstance(arguments.budget, int):
        arguments.budget *= arguments.scale.get("tokens", 1)
    return arguments


def read_budget(text: str) -> int | Path:
    """`205k` as a number; what is none must be a file."""
    number = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmM]?)", text)
    return int(float(number[1]) * {"": 1, "k": 1_000, "m": 1_000_000}[number[2].lower()]) if number else Path(text)


def read_scale(text: str) -> dict[str, int]:
    """`depth=2` or `tokens=3`: how many times as much of it."""
    found = re.fullmatch(r"(depth|tokens)=([1-9]\d*)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is neither depth=N nor tokens=N with a whole N, such as depth=2")
    return {found[1]: int(found[2])}


if __name__ == "__main__":
    main()
