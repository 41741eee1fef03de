"""Two optimisers that the training loop sees as one."""

from __future__ import annotations

from typing import Any

import torch


class Together(torch.optim.Optimizer):
    """Steps all its parts; a parameter without a gradient stays where it is. Saved and loaded as one optimiser is."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts  # the parts hold groups and state; there is nothing of its own to set up

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step(closure)

    def state_dict(self) -> dict[str, Any]:
        """The states of all parts, their parameters numbered one after the other."""
        state: dict[int, Any] = {}
        before = 0
        for part in self.parts:
            state |= {before + number: entry for number, entry in part.state_dict()["state"].items()}
            before += _count(part)
        return {"state": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        before = 0
        for part in self.parts:
            own = range(before, before + _count(part))
            state = {number - before: entry for number, entry in state_dict["state"].items() if number in own}
            part.load_state_dict({**part.state_dict(), "state": state})
            before += _count(part)


def _count(part: torch.optim.Optimizer) -> int:
    return sum(len(group["params"]) for group in part.param_groups)
