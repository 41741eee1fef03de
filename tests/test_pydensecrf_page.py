"""docs/pydensecrf.md: its snippets run as they stand, and what it says of the agreement is so."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tagseg.ops.crf import kernels, mean_field

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "pydensecrf.md").read_text()
BEFORE, AFTER, SHARED = re.findall(r"```python\n(.*?)```", PAGE, re.S)
NAMES = ("sxy_gaussian", "compat_gaussian", "sxy_bilateral", "srgb", "compat_bilateral", "iterations")


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(ROOT / "tests" / "ops" / "golden" / "crf_pydensecrf2.npz") as stored:
        return {key.removeprefix(f"{name}_"): stored[key] for key in stored.files if key.startswith(f"{name}_")}


def given(case: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"image": case["image"], "probabilities": np.exp(-case["unary"].astype(np.float32))}


def test_the_snippet_gives_pydensecrfs_labels() -> None:
    case = golden("three")
    assert dict(zip(NAMES, case["settings"].tolist(), strict=True)) == {
        name: float(value) for name, value in re.findall(r"(\w+)=(\d+)", AFTER)}
    names: dict[str, np.ndarray] = given(case)
    exec(AFTER, names)
    assert (names["labels"] == case["labels"]).all()
    exec(SHARED, names)
    assert (names["strong"].argmax(0) == case["labels"]).all()
    assert (names["weak"] != names["strong"]).any()


@pytest.mark.parametrize("name", ["three", "eight", "wide"])
def test_all_labels_of_the_stored_results_are_equal(name: str) -> None:
    case = golden(name)
    sxy_gaussian, compat_gaussian, sxy_bilateral, srgb, compat_bilateral, iterations = case["settings"].tolist()
    prepared = kernels(case["image"], sxy_gaussian=sxy_gaussian, sxy_bilateral=sxy_bilateral, srgb=srgb)
    ours = mean_field(prepared, case["unary"].astype(np.float32), compat_gaussian=compat_gaussian,
                      compat_bilateral=compat_bilateral, iterations=int(iterations))
    assert (ours.argmax(0) == case["labels"]).all()


@pytest.mark.peer
def test_the_old_snippet_is_one_that_runs() -> None:
    pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed (extra `bench`)")
    case = golden("three")
    names: dict[str, np.ndarray] = given(case)
    exec(BEFORE, names)
    assert (names["labels"] == case["labels"]).mean() >= 0.9999


def test_the_commands_of_the_page_parse() -> None:
    import shlex

    from tagseg.cli import parser

    lines = re.findall(r"^tagseg (refine [^#\n]+)", PAGE, re.M)
    assert len(lines) == 4
    for line in lines:
        assert parser().parse_args(shlex.split(line)).command == "refine"
