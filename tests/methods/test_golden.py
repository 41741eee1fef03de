"""Numbers of each stage stay what they were; across machines within a stated tolerance."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import golden_values

if TYPE_CHECKING:
    from tiny import Tiny

TOLERANCE = 0.02  # absolute; another processor or torch moves losses and shares in the third digit


def test_numbers_of_every_stage_are_those_that_were_written(trained: Tiny) -> None:
    golden, found = json.loads(golden_values.FILE.read_text()), golden_values.of(trained)
    assert found["versions"] == golden["versions"], "a stage's version changed: write the golden values anew"
    for part in ("losses", "maps", "miou"):
        assert found[part] == pytest.approx(golden[part], abs=TOLERANCE), f"{part} moved: raise the stage's version"
    assert found["labels"] == pytest.approx(golden["labels"], abs=TOLERANCE), "labels moved: raise the stage's version"
    assert found["threshold"] == pytest.approx(golden["threshold"], abs=0.05), "the operating point moved"
