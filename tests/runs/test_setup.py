"""Devices by name: what cannot be is refused before any work, in words."""

from __future__ import annotations

import pytest
import torch

from tagseg.runs.setup import choose_device
from tagseg.types import EnvironmentFault, UsageError


@pytest.mark.parametrize("asked", ["cpu:3", "cuda:", "cuda:x", "cuda:-1", "tpu", "", "auto:0", "cuda0"])
def test_what_is_no_device_is_a_usage_error(asked: str) -> None:
    with pytest.raises(UsageError, match="expected one of auto, cpu, cuda, or cuda:N"):
        choose_device(asked)


def test_a_card_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [choose_device(d) for d in ("auto", "cuda", "cuda:1", "cpu")] == ["cuda", "cuda", "cuda:1", "cpu"]
    with pytest.raises(EnvironmentFault, match=r"--device cuda:2: torch finds 2 GPU\(s\) here, cuda:0 to cuda:1"):
        choose_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentFault, match="no usable GPU"):
        choose_device("cuda")
