"""What cannot be is refused before any work, in words: devices by name, saliency maps from elsewhere."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from tagseg import cli
from tagseg.methods import cam
from tagseg.runs import setup
from tagseg.runs.setup import Request, choose_device, ledger, prepare
from tagseg.types import DataError, EnvironmentFault, UsageError


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


# ---- saliency from elsewhere ----

WHO = "a network trained on masks"


@pytest.fixture
def given(tmp_path: Path) -> Request:
    """A request with saliency maps for its training and val images, for a method that is told to take them."""
    request = tiny.request(tmp_path / "run", data="scenes:basic?train=3&val=2&size=24", saliency=tmp_path / "maps",
                           saliency_from=WHO)
    for id in (*(f"train/{k:06d}" for k in range(3)), *(f"val/{k:06d}" for k in range(2))):
        (tmp_path / "maps" / id).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "maps" / f"{id}.npy", np.full((24, 24), 0.5, np.float32))
    return request


def test_saliency_from_elsewhere_is_opened_and_stands_in_the_ledger(
        given: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cam, "TAKES_SALIENCY", True, raising=False)
    prepared = prepare(given)
    assert prepared.inputs.saliency is not None
    assert prepared.inputs.saliency.get("train/000002").shape == (24, 24)
    assert f"saliency maps from elsewhere: {WHO}" in ledger(prepared)
    without = prepare(replace(given, saliency=None, saliency_from=None))
    assert without.inputs.saliency is None
    assert not any("saliency" in line for line in ledger(without))
    folder = given.saliency
    assert folder is not None
    (folder / "val" / "000001.npy").unlink()
    assert prepare(given).inputs.saliency is not None  # images that nothing is learned from need none
    (folder / "train" / "000001.npy").unlink()
    with pytest.raises(DataError, match="1 of 3 images have no saliency map: 'train/000001'"):
        prepare(given)
    for out in (folder, folder / "run"):
        with pytest.raises(UsageError, match="found it inside the data folder"):
            prepare(replace(given, out=out))


@pytest.mark.parametrize(("takes", "change", "says"), [
    (False, {}, "method 'cam' uses no saliency maps; leave it out"),
    (False, {"saliency": None}, "uses no saliency maps"),
    (True, {"saliency": None}, f"--saliency-from '{WHO}': found no --saliency"),
    (True, {"saliency_from": None}, "--saliency-from: found no words"),
    (True, {"saliency": Path("no/such/folder")}, "found nothing, expected a folder"),
])
def test_saliency_that_cannot_be_used_is_refused(given: Request, monkeypatch: pytest.MonkeyPatch, takes: bool,
                                                 change: dict[str, Any], says: str) -> None:
    monkeypatch.setattr(cam, "TAKES_SALIENCY", takes, raising=False)
    with pytest.raises(UsageError, match=says):
        prepare(replace(given, **change))


def test_the_command_line_passes_saliency_on(given: Request, capsys: pytest.CaptureFixture[str],
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    words = tiny.words(given.out, "--saliency", str(given.saliency), data=given.data)
    monkeypatch.setattr(cam, "TAKES_SALIENCY", True, raising=False)
    assert cli.main(["plan", *words]) == 2
    assert "--saliency-from: found no words" in capsys.readouterr().err
    assert cli.main(["plan", *words, "--saliency-from", WHO]) == 0


def test_the_commit_tells_changed_sources_and_no_added_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, rows = tmp_path / "src" / "tagseg" / "runs" / "setup.py", tmp_path / "docs" / "results" / "cam.jsonl"
    for file in (source, rows):
        file.parent.mkdir(parents=True)
        file.write_text("first\n")

    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(setup, "__file__", str(source))
    clean = setup.commit()
    assert clean is not None
    assert len(clean) == 12
    rows.write_text("first\nsecond\n")
    assert setup.commit() == clean
    source.write_text("second\n")
    assert setup.commit() == f"{clean}+dirty"
