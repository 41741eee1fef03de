"""Lengths in images seen, the course of the rate, and recipes that follow the backbone: all against hand values."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tagseg import config
from tagseg.localize.classify import Classify
from tagseg.segment.train import Segment
from tagseg.training.schedule import RECIPES, TIMM_RECIPE, Schedule, optimiser, rate_factor, recipe_values, steps
from tagseg.types import UsageError


@pytest.mark.parametrize(("images", "expected"), [
    (1000, 375),  # 6 passes: 6000 images in batches of 16
    (100, 100),  # at least 1600 images
    (10_000, 625),  # at most 10,000
    (267, 101),  # 1602 images: the last batch is whole
])
def test_length_counts_images_seen(images: int, expected: int) -> None:
    assert steps(Schedule(epochs=6, min_images=1600, max_images=10_000, batch=16), images) == expected


def test_there_is_always_one_step() -> None:
    assert steps(Schedule(epochs=0.001, min_images=0), 10) == 1


def test_warm_up_is_linear_and_then_the_rate_falls_by_a_power() -> None:
    rising = Schedule(warmup=0.2, power=2.0)
    found = [rate_factor(rising, step, 10) for step in range(10)]
    assert found == pytest.approx([0.5, 1.0, 1.0, *((1 - k / 8) ** 2 for k in range(1, 8))])


def test_without_warm_up_it_is_the_poly_rule() -> None:
    poly = Schedule(warmup=0.0, power=0.9)
    assert [rate_factor(poly, step, 4) for step in range(4)] == pytest.approx([1, 0.75**0.9, 0.5**0.9, 0.25**0.9])
    assert rate_factor(poly, 0, 1) == 1


@pytest.mark.parametrize("total", [1, 2, 3, 100])
def test_the_factor_stays_within_zero_and_one(total: int) -> None:
    assert all(0 < rate_factor(Schedule(), step, total) <= 1 for step in range(total))


@pytest.mark.parametrize("name", [*RECIPES, "timm:resnet18"])
def test_auto_follows_the_backbone_wherever_a_schedule_is(name: str) -> None:
    recipe = RECIPES.get(name, TIMM_RECIPE)
    for cfg in (Classify(), Segment()):
        resolved = config.resolve(cfg, recipe_values(name)).schedule
        assert (resolved.optimiser, resolved.lr, resolved.head_lr, resolved.weight_decay) == \
            (recipe.optimiser, recipe.lr, recipe.head_lr, recipe.weight_decay)


def test_what_was_set_stays() -> None:
    resolved = config.resolve(Schedule(lr=0.5, optimiser="sgd"), recipe_values("small"))
    assert (resolved.lr, resolved.optimiser, resolved.head_lr) == (0.5, "sgd", 3e-3)


def test_body_and_head_learn_at_their_own_rates() -> None:
    body, head = nn.Linear(2, 2), nn.Linear(2, 1)
    rates = Schedule(optimiser="adamw", lr=0.1, head_lr=0.2, weight_decay=0.3)
    made = optimiser(rates, body.parameters(), head.parameters())
    assert isinstance(made, torch.optim.AdamW)
    assert [g["initial_lr"] for g in made.param_groups] == [0.1, 0.2]
    body.requires_grad_(False)
    only = optimiser(replace(rates, optimiser="sgd"), body.parameters(), head.parameters())
    assert isinstance(only, torch.optim.SGD)
    assert [(g["initial_lr"], g["momentum"], g["weight_decay"]) for g in only.param_groups] == [(0.2, 0.9, 0.3)]


def test_an_unresolved_rate_is_refused() -> None:
    net = nn.Linear(1, 1)
    with pytest.raises(UsageError, match=r"schedule\.lr is still 'auto'"):
        optimiser(Schedule(), net.parameters(), net.parameters())
