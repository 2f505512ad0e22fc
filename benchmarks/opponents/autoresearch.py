"""The strong reference: what autoresearch trains by default, at the size that it is told, on a CPU.

RMSNorm, rotary positions, QK-norm, gated value embeddings in alternate layers, a learned mix of stream and embedding,
relu squared, a head of its own under a softcap in fp32, torch's own attention kernel; Muon for matrices, AdamW for the
rest, step sizes scaled by sqrt(768 / width). Knows nothing of the task, the data or the clock.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NATIVE_BF16 = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))
DTYPE = torch.bfloat16 if NATIVE_BF16 else torch.float32
SOFTCAP = 15.0
GATE_CHANNELS = 32  # of the stream, that decide how much of a value embedding each head takes
WARMDOWN = 0.5  # share of the budget, at its end
MATRIX_LR, EMBED_LR, HEAD_LR, MIX_LR, X0_LR = 0.04, 0.6, 0.004, 0.005, 0.5
WEIGHT_DECAY = 0.2  # of matrices, falling to 0 with the budget, only where it agrees with the step


class Size(NamedTuple):
    """Shape of the model."""

    vocabulary: int
    width: int
    depth: int
    heads: int


def norm(x: Tensor) -> Tensor:
    """RMSNorm without a gain."""
    return F.rms_norm(x, x.shape[-1:])


class Linear(nn.Linear):
    """fp32 weights, used in the precision of the input; uniform, of variance 1 / inputs unless told otherwise."""

    def __init__(self, inputs: int, outputs: int, std: float | None = None) -> None:
        super().__init__(inputs, outputs, bias=False)
        bound = math.sqrt(3) * (inputs**-0.5 if std is None else std)
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        """Multiply."""
        return F.linear(input, self.weight.to(input.dtype))


@lru_cache(maxsize=4)
def angles(length: int, channels: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, [T, 1, channels / 2]."""
    frequencies = 10000.0 ** -(torch.arange(0, channels, 2) / channels)
    turns = torch.outer(torch.arange(length), frequencies)[:, None]
    return turns.cos().to(DTYPE), turns.sin().to(DTYPE)


def rotate(x: Tensor) -> Tensor:
    """Rotary positions for [B, T, heads, channels]."""
    cos, sin = angles(x.size(1), x.size(3))
    left, right = x.chunk(2, dim=3)
    return torch.cat((left * cos + right * sin, right * cos - left * sin), dim=3)


class Block(nn.Module):
    """Attention, then an MLP of four times the width, each added to the stream; both start as zero."""

    def __init__(self, size: Size, gated: bool) -> None:
        super().__init__()
        self.heads = size.heads
        self.q, self.k, self.v = (Linear(size.width, size.width) for _ in range(3))
        self.out = Linear(size.width, size.width, std=0.0)
        self.up, self.down = Linear(size.width, 4 * size.width), Linear(4 * size.width, size.width, std=0.0)
        self.gate = Linear(min(GATE_CHANNELS, size.width), size.heads, std=0.0) if gated else None

    def forward(self, x: Tensor, value: Tensor | None) -> Tensor:
        """[B, T, width] to the same."""
        x = x + self.out(self.attend(norm(x), value))
        added: Tensor = self.down(F.relu(self.up(norm(x))).square())
        return x + added

    def attend(self, x: Tensor, value: Tensor | None) -> Tensor:
        """Causal attention; a value embedding joins the values through a gate per head that starts at 1."""
        shape = (x.size(0), x.size(1), self.heads, -1)
        q, k, v = (layer(x).view(shape) for layer in (self.q, self.k, self.v))
        if self.gate is not None and value is not None:
            gate = 2 * torch.sigmoid(self.gate(x[..., :GATE_CHANNELS]))
            v = v + gate[..., None] * value.view(shape)
        q, k = norm(rotate(q)), norm(rotate(k))
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
        return y.transpose(1, 2).reshape(x.shape)


def value_table(size: Size) -> nn.Embedding:
    """Uniform, of variance 1 / width, as a matrix from the stream would be."""
    table = nn.Embedding(size.vocabulary, size.width)
    bound = (3 / size.width) ** 0.5
    nn.init.uniform_(table.weight, -bound, bound)
    return table


class GPT(nn.Module):
    """Tokens [B, T] to logits [B, T, vocabulary]."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.token = nn.Embedding(size.vocabulary, size.width)  # normal, of variance 1
        fed = [i for i in range(size.depth) if (size.depth - 1 - i) % 2 == 0]
        self.values = nn.ModuleDict({str(i): value_table(size) for i in fed})
        self.blocks = nn.ModuleList(Block(size, gated=i in fed) for i in range(size.depth))
        self.mix, self.mix_x0 = nn.Parameter(torch.ones(size.depth)), nn.Parameter(torch.full((size.depth,), 0.1))
        self.head = Linear(size.width, size.vocabulary, std=0.001)

    def forward(self, tokens: Tensor) -> Tensor:
        """Predict every next token."""
        x = x0 = norm(self.token(tokens).to(DTYPE))
        for i, block in enumerate(self.blocks):
            x = self.mix[i].to(DTYPE) * x + self.mix_x0[i].to(DTYPE) * x0
            x = block(x, self.values[str(i)](tokens).to(DTYPE) if str(i) in self.values else None)
        logits: Tensor = SOFTCAP * torch.tanh(self.head(norm(x)).float() / SOFTCAP)
        return logits


def orthogonal(matrices: Tensor) -> Tensor:
    """Singular values to about 1, by five quintic Newton-Schulz steps; [n, rows, columns]."""
    x = matrices.to(DTYPE)
    tall = x.size(1) > x.size(2)
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
    result: Tensor = (x.mT if tall else x).float()
    return result


class Muon:
    """Nesterov momentum, orthogonalised; matrices of one shape go together."""

    def __init__(self, matrices: list[nn.Parameter]) -> None:
        shapes = sorted({tuple(p.shape) for p in matrices})
        self.stacks = [[p for p in matrices if tuple(p.shape) == shape] for shape in shapes]
        self.momenta = [torch.zeros(len(stack), *stack[0].shape) for stack in self.stacks]
        self.steps = 0

    @torch.no_grad()
    def step(self, lr: float, decay: float) -> None:
        """Momentum rises from 0.85 to 0.95 over the first 300 steps."""
        keep = 0.85 + 0.10 * min(1.0, self.steps / 300)
        self.steps += 1
        for stack, momentum in zip(self.stacks, self.momenta, strict=True):
            gradients = torch.stack([p.grad for p in stack if p.grad is not None])
            momentum.lerp_(gradients, 1 - keep)
            updates = orthogonal(gradients.lerp_(momentum, keep))
            rate = lr * max(1.0, momentum.size(1) / momentum.size(2)) ** 0.5
            for p, update in zip(stack, updates, strict=True):
                agrees = update * p >= 0
                p.sub_(rate * (update + decay * p * agrees))
                p.grad = None


class Optimizer:
    """Muon and AdamW under one schedule, which follows the share of the budget that is used."""

    def __init__(self, model: GPT, lr: float, warmup: float) -> None:
        """`lr` multiplies every default step size."""
        self.lr, self.warmup = lr, warmup
        gates = [p for name, p in model.blocks.named_parameters() if ".gate." in name]
        self.muon = Muon([p for name, p in model.blocks.named_parameters() if ".gate." not in name])
        narrow = (768 / model.token.embedding_dim) ** 0.5
        tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
        rates = [
            (tables, EMBED_LR * narrow),
            ([model.head.weight, *gates], HEAD_LR * narrow),
            ([model.mix], MIX_LR),
            ([model.mix_x0], X0_LR),
        ]
        groups = [{"params": parameters, "lr": rate, "peak": rate} for parameters, rate in rates]
        self.adam = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0, fused=True)

    def scale(self, share: float) -> float:
        """Step sizes as a share of their peak: warm-up, flat, linear to 0."""
        if share < self.warmup:
            return max(share, 0.001) / self.warmup
        return min(1.0, max(0.0, (1 - share) / WARMDOWN))

    def step(self, share: float) -> None:
        """Use the gradients, then drop them."""
        scale = self.lr * self.scale(share)
        for group in self.adam.param_groups:
            group["lr"] = group["peak"] * scale
        self.adam.step()
        self.muon.step(MATRIX_LR * scale, WEIGHT_DECAY * (1 - share))
        self.adam.zero_grad(set_to_none=True)
