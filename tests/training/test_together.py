"""Two optimisers as one: both step, and the saved state goes back to where it came from."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from tagseg.training import checkpoint
from tagseg.training.checkpoint import State
from tagseg.training.together import Together


def two() -> tuple[nn.Module, Together]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    first = torch.optim.AdamW(model[0].parameters(), lr=0.1)
    return model, Together(first, torch.optim.SGD(model[1].parameters(), lr=0.1, momentum=0.9))


def step(model: nn.Module, both: Together) -> None:
    both.zero_grad()
    model(torch.ones(1, 3)).square().sum().backward()
    both.step()


def test_both_parts_step_and_what_has_no_gradient_stays() -> None:
    model, both = two()
    before = [p.clone() for p in model.parameters()]
    step(model, both)
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    before = [p.clone() for p in model.parameters()]
    both.zero_grad()
    model[1].weight.grad = torch.ones_like(model[1].weight)  # type: ignore[index,union-attr]
    both.step()
    assert [torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)] == [True, True, False, True]


def test_a_checkpoint_brings_back_both_states(tmp_path: Path) -> None:
    model, both = two()
    step(model, both)
    checkpoint.write(tmp_path, model, both, State(1))
    step(model, both)
    fresh, again = two()
    assert checkpoint.restore(tmp_path, fresh, again).step == 1
    step(fresh, again)
    for a, b in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b)
    assert len(again.param_groups) == 2
