"""The plain reference: a GPT-2 as nanoGPT trains it, at the size that it is told.

Learned positions, LayerNorm, GELU, tied embedding, AdamW with weight decay, clipping, warm-up and a cosine to a tenth.
Attention is done by hand in bf16 (twice as fast as torch's kernel on a CPU): a slow opponent would prove nothing.
Knows nothing of the task, the data or the clock. Learned positions end at `Size.context`: it is scored there.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NATIVE_BF16 = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))
DTYPE = torch.bfloat16 if NATIVE_BF16 else torch.float32
FLOOR = 0.1  # the step size ends at this share of its peak


class Size(NamedTuple):
    """Shape of the model."""

    vocabulary: int
    width: int
    depth: int
    heads: int
    context: int


class Linear(nn.Linear):
    """fp32 weights, used in the precision of the input."""

    def __init__(self, inputs: int, outputs: int, std: float = 0.02) -> None:
        super().__init__(inputs, outputs, bias=False)
        nn.init.normal_(self.weight, std=std)

    def forward(self, input: Tensor) -> Tensor:
        """Multiply."""
        return F.linear(input, self.weight.to(input.dtype))


class Norm(nn.Module):
    """LayerNorm with a learned gain and no bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        return F.layer_norm(x, x.shape[-1:], self.gain.to(x.dtype))


class Block(nn.Module):
    """Attention, then an MLP of four times the width, each added to the stream."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        std = 0.02 / math.sqrt(2 * size.depth)  # GPT-2: what is added shrinks with the number of additions
        self.norm_1, self.norm_2 = Norm(size.width), Norm(size.width)
        self.qkv, self.out = Linear(size.width, 3 * size.width), Linear(size.width, size.width, std)
        self.up, self.down = Linear(size.width, 4 * size.width), Linear(4 * size.width, size.width, std)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[B, T, width] to the same."""
        x = x + self.out(self.attend(self.norm_1(x), mask))
        added: Tensor = self.down(F.gelu(self.up(self.norm_2(x))))
        return x + added

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        """Causal attention; by hand in bf16, torch's kernel in fp32: each is the faster one there."""
        rows, length, width = x.shape
        shape = (rows, length, self.heads, width // self.heads)
        q, k, v = (part.view(shape).transpose(1, 2) for part in self.qkv(x).split(width, dim=2))
        if x.dtype == torch.float32:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            q, k, v = (part.reshape(rows * self.heads, length, -1) for part in (q, k, v))
            logits = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=q.size(-1) ** -0.5)
            y = torch.bmm(logits.softmax(dim=-1), v).view(rows, self.heads, length, -1)
        return y.transpose(1, 2).reshape(rows, length, width)


class GPT(nn.Module):
    """Tokens [B, T <= context] to logits [B, T, vocabulary]."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(size.vocabulary, size.width), nn.Embedding(size.context, size.width)
        nn.init.normal_(self.token.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.depth))
        self.norm = Norm(size.width)
        future = torch.ones(size.context, size.context, dtype=torch.bool).triu(1)
        self.mask = torch.zeros(future.shape, dtype=DTYPE).masked_fill(future, -math.inf)[None]

    def forward(self, tokens: Tensor) -> Tensor:
        """Predict every next token."""
        length = tokens.size(1)
        x = (self.token(tokens) + self.position.weight[:length]).to(DTYPE)
        for block in self.blocks:
            x = block(x, self.mask[:, :length, :length])
        return F.linear(self.norm(x), self.token.weight.to(DTYPE))


class Optimizer:
    """AdamW; decay for matrices and tables only. The schedule follows the share of the budget that is used."""

    def __init__(self, model: GPT, lr: float, warmup: float) -> None:
        self.lr, self.warmup = lr, warmup
        self.parameters = list(model.parameters())
        groups = [
            {"params": [p for p in self.parameters if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in self.parameters if p.dim() == 1], "weight_decay": 0.0},
        ]
        self.adam = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)

    def scale(self, share: float) -> float:
        """Step size as a share of its peak."""
        if share < self.warmup:
            return max(share, 0.001) / self.warmup
        return FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * (share - self.warmup) / (1 - self.warmup))) / 2

    def step(self, share: float) -> None:
        """Use the gradients, then drop them."""
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.adam.param_groups:
            group["lr"] = self.lr * self.scale(share)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
