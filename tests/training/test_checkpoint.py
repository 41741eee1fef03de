"""Checkpoints give back exactly what was written, two are kept, and a damaged one is never believed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tagseg.training import checkpoint
from tagseg.training.checkpoint import State, restore, write
from tagseg.training.loop import Task, _gradient_step
from toy_training import batch, schedule, task


def trained(kind: str = "adamw", steps: int = 3) -> Task:
    made = task(rates=schedule(kind=kind))
    for group in made.optimiser.param_groups:
        group["lr"] = 0.1
    for step in range(steps):
        _gradient_step(made, batch(step), 1)
    return made


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_weights_optimiser_and_state_come_back(tmp_path: Path, kind: str) -> None:
    before, after = trained(kind), trained(kind, steps=0)
    write(tmp_path, before.model, before.optimiser, State(3, 0.5, [[0, 1.5, 0.25]]))
    assert restore(tmp_path, after.model, after.optimiser) == State(3, 0.5, [[0, 1.5, 0.25]])
    _assert_same(before, after)
    for one in (before, after):  # and so does the next step
        torch.manual_seed(1)
        _gradient_step(one, batch(9), 1)
    _assert_same(before, after)


def _assert_same(a: Task, b: Task) -> None:
    assert all(torch.equal(x, b.model.state_dict()[n]) for n, x in a.model.state_dict().items())
    one, other = a.optimiser.state_dict()["state"], b.optimiser.state_dict()["state"]
    assert one.keys() == other.keys()
    for i in one:
        assert one[i].keys() == other[i].keys()
        tensors = {n: torch.as_tensor(v) for n, v in one[i].items() if v is not None}
        assert all(torch.equal(t, torch.as_tensor(other[i][n])) for n, t in tensors.items())


def test_an_empty_folder_is_the_start(tmp_path: Path) -> None:
    made = trained()
    assert restore(tmp_path / "nowhere", made.model, made.optimiser) == State()


def test_the_two_newest_are_kept(tmp_path: Path) -> None:
    made = trained()
    for step in (2, 9, 10, 100):
        write(tmp_path, made.model, made.optimiser, State(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"checkpoint-{s:08d}.{end}" for s in (10, 100) for end in ("json", "safetensors")]


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "gone", "note", "note cut"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, damage: str) -> None:
    older, newer = trained(steps=2), trained(steps=3)
    write(tmp_path, older.model, older.optimiser, State(2))
    write(tmp_path, newer.model, newer.optimiser, State(3))
    file = tmp_path / ("checkpoint-00000003.json" if damage.startswith("note") else "checkpoint-00000003.safetensors")
    data = file.read_bytes()
    if damage == "gone":
        file.unlink()
    elif damage == "note":
        file.write_text(json.dumps({**json.loads(data), "sha256": "0" * 64}))
    else:
        file.write_bytes({"bit": bytes([*data[:-1], data[-1] ^ 1]), "cut": data[: len(data) // 2], "empty": b"",
                          "note cut": data[: len(data) // 2]}[damage])
    found = trained(steps=0)
    assert restore(tmp_path, found.model, found.optimiser).step == 2
    _assert_same(older, found)


def test_when_all_are_damaged_it_starts_anew_untouched(tmp_path: Path) -> None:
    made = trained()
    write(tmp_path, made.model, made.optimiser, State(3))
    (tmp_path / "checkpoint-00000003.safetensors").write_bytes(b"x")
    fresh = trained(steps=0)
    before = {n: t.clone() for n, t in fresh.model.state_dict().items()}
    assert checkpoint.restore(tmp_path, fresh.model, fresh.optimiser) == State()
    assert all(torch.equal(t, before[n]) for n, t in fresh.model.state_dict().items())
