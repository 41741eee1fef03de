"""A training in small: a tiny network with dropout, batches made by numpy from the step, a real stage around it.

As a program: `toy_training.py CACHE` trains; TOY_KILL_AT kills the process (kill -9) as that step asks for its batch.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagseg.artifacts import Weights, write_weights
from tagseg.store import Run, Work, stage
from tagseg.training.loop import Batch, Task, fit
from tagseg.training.schedule import Schedule, optimiser
from tagseg.types import IGNORE
from toy_chain import note

STEPS, CLASSES = 12, 3


def batch(step: int, size: int = 6) -> Batch:
    """Images (n,3,8,8) and labels (n,8,8) whose shares of ignored pixels differ much from image to image."""
    rng = np.random.default_rng([7, step])
    images, labels = rng.random((size, 3, 8, 8), np.float32), rng.integers(0, CLASSES, (size, 8, 8))
    for i in range(size):
        labels[i, : 8 * i // size] = IGNORE
    return {"images": torch.from_numpy(images), "labels": torch.from_numpy(labels)}


def network(dropout: float = 0.2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(8, CLASSES, 1))


@dataclass
class PixelLoss:
    """Cross-entropy over labelled pixels. `before(part)` runs first and may raise, as a full memory does."""

    before: Callable[[Batch], None] = lambda part: None

    def count(self, batch: Batch) -> float:
        return float((batch["labels"] != IGNORE).sum())

    def total(self, model: nn.Module, batch: Batch) -> Tensor:
        self.before(batch)
        return F.cross_entropy(model(batch["images"]), batch["labels"], ignore_index=IGNORE, reduction="sum")


@dataclass(frozen=True)
class Config:
    schedule: Schedule = field(default_factory=lambda: schedule())
    steps: int = STEPS


def schedule(rate: float = 0.05, checkpoint_seconds: float = 0.0, kind: str = "adamw") -> Schedule:
    """Checkpoints after every step, unless told otherwise."""
    return Schedule(batch=6, optimiser="sgd" if kind == "sgd" else "adamw", lr=rate, head_lr=rate, weight_decay=0.01,
                    checkpoint_seconds=checkpoint_seconds)


def task(steps: int = STEPS, *, dropout: float = 0.2, rates: Schedule | None = None,
         batches: Callable[[int], Batch] = batch, objective: PixelLoss | None = None) -> Task:
    model = network(dropout)
    parts = list(model.children())
    return Task(model, optimiser(rates or schedule(), parts[0].parameters(), parts[3].parameters()), batches,
                objective or PixelLoss(), steps, seed=3, device="cpu", precision="fp32")


def noted(step: int) -> Batch:
    """The batch of a step; the step is written to TOY_LOG first, and the process may be killed here."""
    note(f"step {step}")
    if os.environ.get("TOY_KILL_AT") == str(step):
        os.kill(os.getpid(), signal.SIGKILL)
    return batch(step)


@stage(Weights, version=1)
def train(work: Work, cfg: Config) -> None:
    what = task(cfg.steps, rates=cfg.schedule, batches=noted)
    fit(work, what, cfg.schedule)
    note(f"resumed at {work.resumed_at}")
    write_weights(work, what.model.state_dict(), {})


if __name__ == "__main__":
    from toy_training import Config as Named  # under the module's own name, so that the stage is the tests' stage
    from toy_training import train as named_train

    torch.set_num_threads(1)
    named_train(Run(Path(sys.argv[1]), workers=1), Named())
