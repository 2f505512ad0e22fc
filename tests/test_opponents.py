"""The trainers that the baseline is measured against do train, and predict from the past alone."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.opponents import autoresearch, nanogpt

VOCABULARY, CONTEXT = 37, 16


def nanogpt_trainer() -> tuple[torch.nn.Module, Any]:
    model = nanogpt.GPT(nanogpt.Size(VOCABULARY, width=32, depth=2, heads=2, context=CONTEXT))
    return model, nanogpt.Optimizer(model, lr=3e-3, warmup=0.1)


def autoresearch_trainer() -> tuple[torch.nn.Module, Any]:
    model = autoresearch.GPT(autoresearch.Size(VOCABULARY, width=32, depth=2, heads=2))
    return model, autoresearch.Optimizer(model, lr=1.0, warmup=0.0)


TRAINERS = pytest.mark.parametrize("make", [nanogpt_trainer, autoresearch_trainer])


def trained(make: Any, steps: int = 100) -> tuple[torch.nn.Module, float]:
    """A model that has seen one sentence over and over, and its last loss."""
    torch.set_num_threads(1)  # on a busy machine two threads wait for each other
    torch.manual_seed(0)
    model, optimizer = make()
    sentence = torch.randint(VOCABULARY, (4, CONTEXT + 1))
    for step in range(steps):
        loss = F.cross_entropy(model(sentence[:, :-1]).float().flatten(0, 1), sentence[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not say
        optimizer.step(step / steps)
    return model, loss.item()


@TRAINERS
def test_it_learns_a_sentence_by_heart(make: Any) -> None:
    _, loss = trained(make)
    assert loss < 1.8  # half of what a blind guess costs, log 37 = 3.6


@TRAINERS
def test_every_parameter_is_trained(make: Any) -> None:
    torch.manual_seed(0)
    before = make()[0].state_dict()
    after = trained(make)[0].state_dict()
    assert not [name for name in before if torch.equal(before[name], after[name])]


@TRAINERS
def test_a_prediction_does_not_see_the_future(make: Any) -> None:
    model, _ = trained(make)
    tokens = torch.randint(VOCABULARY, (3, CONTEXT))
    changed = tokens.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % VOCABULARY
    with torch.no_grad():
        assert torch.equal(model(tokens)[:, :9], model(changed)[:, :9])
        assert not torch.equal(model(tokens)[:, 9:], model(changed)[:, 9:])


@TRAINERS
def test_step_sizes_follow_the_share_of_the_budget(make: Any) -> None:
    _, optimizer = make()
    scales = [optimizer.scale(share) for share in (0.1, 0.5, 0.75, 1.0)]
    assert scales[0] == pytest.approx(1.0)
    assert scales == sorted(scales, reverse=True) and scales[-1] <= 0.1 + 1e-9
