"""Each line of section 7 of a method's specification has a test that carries its number."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tagseg.methods import METHODS

# how many lines section 7 has; `cam` has no specification of its own
LINES = {"dfs": 14, "esol": 14, "mcof": 14, "priors": 12, "transfernet": 14}
HERE = Path(__file__).parent


def test_every_method_but_the_baseline_is_listed() -> None:
    assert set(LINES) == set(METHODS) - {"cam"}


@pytest.mark.parametrize("method", LINES)
def test_no_number_is_missing(method: str) -> None:
    named = re.compile(rf"^def test_{method}_s7_(\d\d)_\w+\(", re.MULTILINE)
    found = {int(number) for file in HERE.rglob("test_*.py") for number in named.findall(file.read_text())}
    assert found == set(range(1, LINES[method] + 1))
