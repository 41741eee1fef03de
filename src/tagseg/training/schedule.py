"""How long and how fast to train: images seen, learning rates that follow the backbone, their course over the run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from tagseg import config
from tagseg.types import UsageError

Auto = Literal["auto"]


@dataclass(frozen=True)
class Schedule:
    """Length is counted in images seen, so that a budget means the same on 100 and on 10,000 images.

    `epochs` passes over the set, but at least `min_images` and at most `max_images` images; `lr` for pretrained layers,
    `head_lr` for new ones; "auto" follows the backbone (`RECIPES`).
    """

    epochs: float = 6.0
    min_images: int = 1600
    max_images: int = 10_000
    batch: int = 16
    optimiser: Literal["auto", "adamw", "sgd"] = "auto"
    lr: float | Auto = "auto"
    head_lr: float | Auto = "auto"
    weight_decay: float | Auto = "auto"
    momentum: float = 0.9
    warmup: float = 0.05
    power: float = 0.9
    checkpoint_seconds: float = config.unkeyed(30.0)


@dataclass(frozen=True, kw_only=True)
class Training:
    """What every config of a stage that trains has beside its own settings and a schedule."""

    seed: int | Auto = "auto"
    device: str = "auto"
    precision: str = "auto"


@dataclass(frozen=True)
class Recipe:
    """What a backbone's weights are known to take (data sheets of the weights; measured, docs/decisions.md)."""

    optimiser: Literal["adamw", "sgd"]
    lr: float
    head_lr: float
    weight_decay: float


RECIPES = {
    "mobilenet_v2": Recipe("adamw", 2e-4, 2e-3, 1e-2),
    "squeezenet1_1": Recipe("adamw", 2e-4, 2e-3, 1e-2),
    "vgg16": Recipe("sgd", 1e-3, 1e-2, 5e-4),
    "small": Recipe("adamw", 3e-3, 3e-3, 1e-2),
}
TIMM_RECIPE = Recipe("adamw", 1e-4, 1e-3, 1e-2)


def recipe_values(backbone: str) -> dict[str, str | float]:
    """The "auto" fields of `Schedule` for a backbone."""
    recipe = RECIPES.get(backbone, TIMM_RECIPE)
    return {n: getattr(recipe, n) for n in ("optimiser", "lr", "head_lr", "weight_decay")}


def steps(schedule: Schedule, images: int) -> int:
    """Optimiser steps for a set of that many images."""
    seen = min(max(schedule.epochs * images, schedule.min_images), schedule.max_images)
    return max(1, math.ceil(seen / schedule.batch))


def rate_factor(schedule: Schedule, step: int, total: int) -> float:
    """Linear warm-up, then (1 - t)^power."""
    warm = schedule.warmup * total
    return min(1.0, (step + 1) / warm) if step < warm else (1 - (step - warm) / max(total - warm, 1)) ** schedule.power


def optimiser(schedule: Schedule, body: Iterable[nn.Parameter], head: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW or SGD with two groups; each group's `initial_lr` is what `rate_factor` multiplies."""
    groups = [
        {"params": [p for p in body if p.requires_grad], "initial_lr": number(schedule.lr, "lr")},
        {"params": [p for p in head if p.requires_grad], "initial_lr": number(schedule.head_lr, "head_lr")},
    ]
    groups = [{**g, "lr": g["initial_lr"]} for g in groups if g["params"]]
    decay = number(schedule.weight_decay, "weight_decay")
    if schedule.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=schedule.momentum, weight_decay=decay)
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=decay, foreach=True)


def number(value: float | str, name: str) -> float:
    """A rate that has followed the backbone. Errors: `UsageError` where it still says "auto"."""
    if isinstance(value, str):
        raise UsageError(f"schedule.{name} is still {value!r}: it must be resolved from the backbone before training")
    return value
