"""Sides of a comparison: what runs in which process, and whose memory counts."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from benchmarks.processes import Side, cores

MB = 2**20


def blocks(given: int, warm: int, kept: int, each: int) -> dict[str, Any]:
    """A job that holds `given` MB from the start, keeps `kept` more from its first call, and needs `each` in a call."""
    held, calls = [np.ones(given * MB, np.uint8)], list[str]()

    def small() -> None:
        calls.append("warm")
        held.append(np.ones(warm * MB, np.uint8))

    def run() -> tuple[int, list[str]]:
        if "ours" not in calls:
            held.append(np.ones(kept * MB, np.uint8))
        calls.append("ours")
        np.ones(each * MB, np.uint8)
        return os.getpid(), calls

    return {"warm ours": small, "ours": run, "peer": run}


def first(name: str, *sizes: int) -> Any:
    side = Side.start(blocks, sizes, name, cores(1))
    side.stop()
    return side.first


def test_memory_is_what_the_first_whole_run_takes_and_keeps() -> None:
    peak = first("ours", 70, 50, 40, 30).peak_mb
    assert peak is None or peak == pytest.approx(40 + 30, abs=8)  # not what was given or a small run left


def test_a_side_s_small_run_is_its_own() -> None:
    process, calls = first("ours", 1, 1, 1, 1).result
    assert calls == ["warm", "ours"]
    assert process != os.getpid()
    assert first("peer", 1, 1, 1, 1).result[1] == ["ours"]
