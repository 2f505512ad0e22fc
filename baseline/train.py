"""Train a small GPT on a fixed stream of tokens. This is the file that the swarm edits.

    python train.py                                                             # by hand: ten seconds, and a score
    python train.py --scale depth=2                                             # does it hold at twice the depth?
    python train.py --data data/train --out out --seed 0 --budget stream.bin    # as the swarm runs it

`--budget FILE` is the whole of what may be learnt from: one flat array of uint16 tokens, written for this trial by its
runner (pieces of 256 consecutive tokens, drawn by the seed; a border between two pieces just costs a little loss).
Every token is a training target at most once, so SEQ_LEN and BATCH may change, the number of tokens may not.
`--budget 205k` draws such a stream here. What this file prints is for people: scores are computed elsewhere, from the
predictions that `load` gives. Only by hand, where `val` lies beside the training tokens, is val_bpb computed here, too.

One thread. The same seed and stream give bit-identical weights. The constants below may be searched by a machine: every
sane value works (`# choices:` and `# range:` say which), in any combination.
"""

import argparse
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# A percentage is the change of val_bpb that flipping the switch makes at equal tokens, three paired seeds, with 0.1 to
# 0.5 % of noise: `benchmarks/effects.py` measures them again.

# ---- Shape of the model. Width 96: -1.4 %, depth 3: -0.3 %, each for about a fifth more time.
# Channels of the residual stream, a multiple of HEAD_DIM; layers; channels of one attention head.
WIDTH = 64  # choices: 32, 64, 96, 128
DEPTH = 2  # choices: 1, 2, 3, 4
HEAD_DIM = 32  # choices: 16, 32, 64
# Hidden channels of the MLP per residual channel.
MLP_RATIO = 4  # choices: 2, 3, 4, 6
# Non-linearity of the MLP; relu2 = relu squared (Primer, arXiv 2109.08668); gelu: -0.1 %, which is noise.
ACTIVATION = "relu2"  # choices: relu2, gelu, silu
# Logits are squeezed into +-SOFTCAP by a tanh (Gemma 2, arXiv 2408.00118); 0 = off: +0.1 %, for 15 % less time.
SOFTCAP = 15.0  # range: 0..30
# A second embedding of the token feeds the values of every other layer (modded-nanogpt, 2024-12); without: +1.6 %.
VALUE_EMBEDDING = True

# ---- Known techniques that are shipped OFF, on purpose: an offline search then has something real to find. They are no
# secret, and a swarm that switches one on has discovered nothing new. All three together: -5.4 %.
# Add an embedding of the hashed (previous, current) pair of tokens (modded-nanogpt, 2026): -4.1 %.
BIGRAM = False
BIGRAM_ROWS = 4096  # range: 512..16384 log
# Mix the previous token's embedding into each token's, by a learned weight per channel (modded-nanogpt, 2025): -2.7 %.
SMEAR = False
# Attention that falls off linearly with distance, instead of rotary positions (ALiBi, arXiv 2108.12409): -2.5 %.
ALIBI = False

# ---- Optimisation.
# Tokens per sequence in training; scores are taken at 256, so positions must extrapolate.
SEQ_LEN = 128  # choices: 64, 128, 256
# Sequences per step. Half the batch is twice the steps: better per token, dearer in time.
BATCH = 8  # choices: 4, 8, 16, 32
# Muon, for the matrices: step size and momentum.
MATRIX_LR = 0.04  # range: 0.01..0.16 log
MOMENTUM = 0.9  # range: 0.7..0.97
# Adam's step sizes for the embeddings, the head (both x sqrt(64 / WIDTH)) and the mixing weights.
EMBED_LR = 0.5  # range: 0.1..4 log
HEAD_LR = 0.02  # range: 0.004..0.1 log
SCALAR_LR = 0.05  # range: 0.005..0.5 log
# Share of the steps, at the end, over which all step sizes fall linearly to 0.
WARMDOWN = 0.5  # range: 0..1


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
    frequencies = 10000.0 ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    angles = torch.outer(torch.arange(length), frequencies)[:, None, :]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1).to(DTYPE), torch.cat((sin, -sin), dim=-1).to(DTYPE)


def rotate(x: Tensor) -> Tensor:
    """Turn pairs of channels by an angle that grows with the position. `x` is [B, T, heads, HEAD_DIM]."""
    cos, sin = rotation(x.size(1))
    a, b = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((b, a), dim=-1), sin)


@lru_cache(maxsize=4)
def attention_bias(length: int) -> Tensor:
    """What is added to the attention logits, [heads, T, T]: -inf for the future, with ALIBI a slope for the past."""
    position = torch.arange(length)
    distance = position[:, None] - position[None, :]
    heads = WIDTH // HEAD_DIM
    slopes = 2.0 ** -(1.0 + 2.0 * torch.arange(heads)) if ALIBI else torch.zeros(heads)
    bias = -slopes[:, None, None] * distance
    return bias.masked_fill(distance < 0, -math.inf).to(DTYPE)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention, [B, heads, T, HEAD_DIM] each.

    In bf16 by hand: torch's fused kernel needs twice the time on a CPU (in fp32 it needs half, so there it is used).
    """
    rows, heads, length, channels = q.shape
    bias = attention_bias(length)
    if DTYPE == torch.float32:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    q, k, v = (x.reshape(rows * heads, length, channels) for x in (q, k, v))
    bias = bias.expand(rows, heads, length, length).reshape(rows * heads, length, length)
    logits = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=channels**-0.5)
    return torch.bmm(logits.softmax(dim=-1), v).view(rows, heads, length, channels)


class Attention(nn.Module):
    """Multi-head attention with QK-norm (arXiv 2010.04245); a value embedding may join its values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = Linear(WIDTH, WIDTH, std=0.0)  # zero: every block starts as the identity

    def forward(self, x: Tensor, value: Tensor | None) -> Tensor:
        shape = (*x.shape[:2], -1, HEAD_DIM)
        v = self.v(x) if value is None else self.v(x) + value
        both = torch.cat((self.q.weight, self.k.weight)).to(x.dtype)  # in one go: fewer, larger calls
        qk = norm(F.linear(x, both).view(shape))
        q, k = (qk if ALIBI else rotate(qk)).transpose(1, 2).chunk(2, dim=1)
        y = attend(q, k, v.view(shape).transpose(1, 2))
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
        self.head = Linear(WIDTH, vocab_size, std=0.001)  # not tied to the embedding; the first loss is log V

    def forward(self, tokens: Tensor) -> Tensor:
        return softcap(self.head(self.stream(tokens)))

    def stream(self, tokens: Tensor) -> Tensor:
        """What the head reads, [B, T, WIDTH]."""
        x = x0 = self.embed(tokens)
        for i, (attention, mlp) in enumerate(zip(self.attention, self.mlp, strict=True)):
            x = self.mix_stream[i].to(DTYPE) * x + self.mix_x0[i].to(DTYPE) * x0
            value = self.values[str(i)](tokens).to(DTYPE) if str(i) in self.values else None
            x = x + attention(norm(x), value)
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
        self.stacks = [(stack, torch.zeros(len(stack), *shape)) for shape, stack in stacks.items()]

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

    def __init__(self, model: GPT, steps: int) -> None:
        self.steps = steps
        self.muon = Muon([*model.attention.parameters(), *model.mlp.parameters()])
        tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
        scalars = [p for p in model.parameters() if p.dim() == 1]
        narrow = (64 / WIDTH) ** 0.5
        groups = [(tables, EMBED_LR * narrow), ([model.head.weight], HEAD_LR * narrow), (scalars, SCALAR_LR)]
        self.adam = Adam([(p, lr) for parameters, lr in groups for p in parameters])

    def step(self, step: int) -> None:
        left = 1 - step / self.steps
        scale = min(1.0, left / WARMDOWN) if WARMDOWN else 1.0
        self.adam.step(scale)
        self.muon.step(MATRIX_LR * scale)


def read_stream(budget: str, data: Path, seed: int, scale: int = 1) -> np.ndarray:
    """The tokens of this trial: the runner's file, or `scale` times as many as told, in pieces drawn by the seed."""
    if Path(budget).is_file():
        return read_tokens(Path(budget))
    number = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmM]?)", budget)
    if number is None:
        raise ValueError(f"--budget {budget} is neither a file nor a number of tokens such as 205k")
    count = scale * int(float(number[1]) * {"": 1, "k": 1_000, "m": 1_000_000}[number[2].lower()])
    tokens = read_tokens(data / "tokens.bin")
    piece = min(256, len(tokens) - 1)
    starts = np.random.default_rng(seed).integers(0, len(tokens) - piece, size=-(-count // piece))
    return np.concatenate([tokens[:0], *(tokens[start : start + piece] for start in starts)])[:count]


def read_tokens(path: Path) -> np.ndarray:
    """A file of uint16 tokens, mapped; refused when empty or cut short in the middle of a token."""
    size = path.stat().st_size
    if size == 0 or size % 2:
        raise ValueError(f"{path} holds {size} bytes: cut short; remove the prepared folder and prepare it again")
    return np.memmap(path, dtype="<u2", mode="r")


def batches(stream: np.ndarray, bos: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs and targets [BATCH, SEQ_LEN] of every step. Each token is a target at most once.

    The stream is read by BATCH readers side by side, so that the rows of a batch come from different pieces.
    """
    steps = len(stream) // (SEQ_LEN * BATCH)
    if steps == 0:
        raise ValueError(f"--budget has {len(stream)} tokens, less than one step of {SEQ_LEN * BATCH}: raise it")
    targets = torch.from_numpy(stream.astype(np.int64))
    inputs = torch.cat((torch.tensor([bos]), targets[:-1]))
    inputs, targets = (t[: steps * SEQ_LEN * BATCH].view(BATCH, steps, SEQ_LEN) for t in (inputs, targets))
    return [(inputs[:, step], targets[:, step]) for step in range(steps)]


def losses(model: GPT, steps: list[tuple[Tensor, Tensor]]) -> Iterator[float]:
    """Train on every batch once; yield the loss (nats per token) of each step."""
    optimizer = Optimizer(model, len(steps))
    for step, (inputs, targets) in enumerate(steps):
        x = model.stream(inputs).flatten(0, 1)
        loss = HeadLoss.apply(x, model.head.weight.to(x.dtype), targets.flatten())
        loss.backward()
        optimizer.step(step)
        yield loss.item()


def load(artifact_dir: str) -> Callable[[Tensor], Tensor]:
    """The trained model: tokens, int64 [B, T], to logits, float [B, T, V]. [b, t] predicts token t + 1 from 0..t."""
    state = torch.load(Path(artifact_dir) / "model.pt", weights_only=True)
    model = GPT(vocab_size=state["head.weight"].size(0), depth=state["mix_stream"].numel())
    model.load_state_dict(state)

    @torch.no_grad()
    def predict(tokens: Tensor) -> Tensor:
        return model(tokens).float()

    return predict


def flops(model: GPT, tokens: int) -> float:
    """Operations of training on `tokens`: 6 per weight of a matrix and token, and the causal half of attention."""
    weights = sum(p.numel() for module in model.modules() if isinstance(module, nn.Linear) for p in module.parameters())
    return tokens * (6.0 * weights + 6.0 * len(model.attention) * WIDTH * SEQ_LEN)


def peak_flops(seconds: float = 0.1) -> float:
    """Operations per second of a large matrix product in DTYPE on this core: what 100 % MFU means here."""
    a, b = torch.ones(1024, 1024, dtype=DTYPE), torch.ones(1024, 1024, dtype=DTYPE)
    torch.mm(a, b)  # the first one also sets up the kernel
    started, products = time.process_time(), 0
    while time.process_time() - started < seconds:
        torch.mm(a, b)
        products += 1
    return products * 2.0 * 1024**3 / (time.process_time() - started)


@torch.no_grad()
def bits_per_byte(model: GPT, corpus: Path, window: int = 256, tokens: int = 65536) -> float:
    """val_bpb of the first `tokens` validation tokens, as the swarm's scorer computes it."""
    lengths = torch.from_numpy(np.load(corpus / "token_bytes.npy").astype(np.int64))
    stream = torch.from_numpy(read_tokens(corpus / "val" / "tokens.bin")[: tokens + 1].astype(np.int64))
    rows = (len(stream) - 1) // window
    inputs, targets = stream[: rows * window].view(rows, window), stream[1 : rows * window + 1].view(rows, window)
    nats = 0.0
    for questions, answers in zip(inputs.split(16), targets.split(16), strict=True):
        nats_each = F.cross_entropy(model(questions).float().flatten(0, 1), answers.flatten(), reduction="none")
        nats += nats_each[lengths[answers.flatten()] > 0].double().sum().item()
    return nats / math.log(2) / lengths[targets].sum().item()


def prepared(data: Path | None) -> Path:
    """The folder of training tokens: as told, or the default corpus, made by prepare.py when it is not there yet."""
    if data is not None:
        return data
    here = Path(__file__).resolve().parent
    corpus = here / ".cache" / "data"
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
    try:
        data = prepared(arguments.data)
        meta = json.loads((data / "meta.json").read_text())
        stream = read_stream(arguments.budget, data, arguments.seed, longer)
        steps = batches(stream, meta["bos"])
        if stream.max() >= meta["vocab_size"]:
            raise ValueError(f"token {stream.max()} is outside the vocabulary of {meta['vocab_size']} in {data}")
    except (OSError, ValueError) as error:
        print(f"train: {error} (--data is the train folder that prepare.py makes)", file=sys.stderr)
        return 2
    try:
        model = GPT(meta["vocab_size"], DEPTH * deeper)
        return train(model, steps, arguments, data, started)
    except RuntimeError as error:  # torch's word for a CPU that ran out of memory, and the base of a GPU's
        if "memory" not in str(error):
            raise
        print(
            f"train: out of memory: lower BATCH (now {BATCH}), SEQ_LEN ({SEQ_LEN}) or WIDTH ({WIDTH})", file=sys.stderr
        )
        return 1


def train(
    model: GPT, steps: list[tuple[Tensor, Tensor]], arguments: argparse.Namespace, data: Path, started: float
) -> int:
    """The run itself; 0, or 1 when the loss is no number any more."""
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{millions:.2f} M parameters, {len(steps)} steps of {SEQ_LEN * BATCH} tokens, {DTYPE_REASON}", flush=True)

    recent, before = math.log(model.vocab_size), time.process_time()  # the loss of a blind guess
    for step, loss in enumerate(losses(model, steps), start=1):
        if not math.isfinite(loss):
            print(f"train: loss is {loss} at step {step} of {len(steps)}", file=sys.stderr)
            return 1
        recent = 0.9 * recent + 0.1 * loss  # running mean over about 10 steps
        if step % 10 == 0 or step == len(steps):
            print(f"step {step}/{len(steps)} tokens {step * SEQ_LEN * BATCH} loss {recent:.3f}", flush=True)
    training = time.process_time() - before

    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), arguments.out / "model.pt")
    tokens = len(steps) * SEQ_LEN * BATCH
    operations = flops(model, tokens)
    print("---")
    if not Path(arguments.budget).is_file():  # by hand: a trial's time is for training
        if (data.parent / "val").is_dir():
            print(f"val_bpb:          {bits_per_byte(model, data.parent):.6f}")
        print(f"mfu_percent:      {100 * operations / training / peak_flops():.1f}")
    seconds = time.perf_counter() - started
    print(f"train_loss:       {recent:.6f}\ntraining_seconds: {training:.1f}\ntotal_seconds:    {seconds:.1f}")
    print(f"cpu_seconds:      {time.process_time():.1f}\ntokens_per_s:     {tokens / training:.0f}")
    print(f"total_tokens_M:   {tokens / 1e6:.2f}\ntotal_tflops:     {operations / 1e12:.3f}")
    print(f"num_steps:        {len(steps)}\nnum_params_M:     {millions:.2f}\ndepth:            {len(model.attention)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
