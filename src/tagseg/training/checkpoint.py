"""Checkpoints of a half-done training: two are kept, each is checked by sha256 before it is believed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from tagseg.disk import write_atomic


@dataclass
class State:
    """Where a training stands. `rate` is lowered once after losses that are not numbers."""

    step: int = 0
    rate: float = 1.0
    history: list[list[float]] = field(default_factory=list)


def write(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, state: State) -> None:
    """Write weights, optimiser and state at this step; the two newest checkpoints stay."""
    tensors = {f"model.{n}": t for n, t in model.state_dict().items()}
    tensors |= {f"optimiser.{n}": t for n, t in _optimiser_tensors(optimiser).items()}
    data = save({n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()})
    name = f"checkpoint-{state.step:08d}"
    write_atomic(folder / f"{name}.safetensors", data)
    note = {
        "step": state.step,
        "rate": state.rate,
        "history": state.history,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    write_atomic(folder / f"{name}.json", json.dumps(note).encode())
    for old in sorted(folder.glob("checkpoint-*.json"))[:-2]:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)


def restore(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> State:
    """Load the newest checkpoint whose bytes are those written; a damaged one falls back to the one before."""
    for note in sorted(folder.glob("checkpoint-*.json"), reverse=True):
        found = _read(note)
        if found is not None:
            tensors, meta = found
            model.load_state_dict({n[6:]: t for n, t in tensors.items() if n.startswith("model.")})
            _load_optimiser(optimiser, {n[10:]: t for n, t in tensors.items() if n.startswith("optimiser.")})
            return State(meta["step"], meta["rate"], meta["history"])
    return State()


def _read(note: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    try:
        meta, data = json.loads(note.read_text()), note.with_suffix(".safetensors").read_bytes()
    except (OSError, ValueError):
        return None
    return (load(data), meta) if hashlib.sha256(data).hexdigest() == meta["sha256"] else None


def _optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimiser.state_dict()["state"]
    return {f"{i}.{n}": torch.as_tensor(v) for i, entry in state.items() for n, v in entry.items() if v is not None}


def _load_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    whole = optimiser.state_dict()
    whole["state"] = {}
    for name, tensor in tensors.items():
        index, _, entry = name.partition(".")
        whole["state"].setdefault(int(index), {})[entry] = tensor
    optimiser.load_state_dict(whole)
