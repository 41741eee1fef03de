"""A second layer on widened features, and offsets that keep tags and make maps small."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tagseg.artifacts import Weights
from tagseg.localize import classify, shrinkage
from tagseg.localize.classify import TagNet
from tagseg.localize.sampling_layers import layers_of, offsets_of, with_layers
from tagseg.localize.shrinkage import Shrink, Shrinking, TagsOnly
from tagseg.ops.pooling import gap
from tagseg.runs.setup import Prepared
from tagseg.store import Run
from tagseg.training.loop import Batch
from tagseg.types import DataError, UsageError

OFFSETS = {"samplers.1.offset.weight", "samplers.1.offset.bias"}
SECOND = {"samplers.1.weight", "head.weight", "head.bias"}


def two_layers(prepared: Prepared, twofold: Weights) -> TagNet:
    first, last = layers_of(twofold, 2)
    return with_layers(twofold, prepared.inputs.tagged.classes, [first, replace(last, moves=True)])


def objective(model: TagNet, floor: float = 0.0, **settings: object) -> Shrinking:
    return Shrinking(gap, replace(Shrink(), **settings), model.head, floor)  # type: ignore[arg-type]


def changed(before: Weights, after: Weights) -> set[str]:
    a, b = before.tensors(), after.tensors()
    return {name for name in b if name not in a or a[name].shape != b[name].shape or not torch.equal(a[name], b[name])}


def test_esol_s7_06_the_second_stage_leaves_the_first_as_it_is(
    prepared: Prepared, expanded: Weights, twofold: Weights, shrunk: Weights
) -> None:
    assert any("running_mean" in name for name in twofold.tensors())
    assert changed(expanded, twofold) == SECOND  # another head, on other features
    assert changed(twofold, shrunk) == OFFSETS
    assert all(shrunk.tensors()[name].any() for name in OFFSETS)


def test_esol_s7_06_no_gradient_reaches_the_widened_features(prepared: Prepared, twofold: Weights, few: Batch) -> None:
    model = two_layers(prepared, twofold)
    model.requires_grad_(True)
    assert not shrinkage.widened(model, few["images"]).requires_grad  # stopgrad(F1)
    for loss in (TagsOnly(gap), objective(model, area="max", weight=0.5, negatives=0.5)):
        model.zero_grad()
        loss.total(model, few).backward()
        assert all(p.grad is None for n, p in model.named_parameters() if n.startswith(("backbone.", "samplers.0.")))


def test_the_second_head_and_layer_move_where_it_is_asked_for(
    prepared: Prepared, run: Run, expanded: Weights, twofold: Weights
) -> None:
    cfg = replace(prepared.cfg.shrink, head="train")
    after = shrinkage.shrunk(run, prepared.inputs.tagged, expanded, twofold, cfg)
    assert changed(twofold, after) == OFFSETS | {"head.weight", "head.bias"}
    both = shrinkage.shrunk(run, prepared.inputs.tagged, expanded, twofold, replace(cfg, head="layer"))
    assert changed(twofold, both) == OFFSETS | SECOND


@pytest.mark.parametrize("kind", ["detached_max", "max", "fixed_max", "start_max", "local_max", "sigmoid"])
def test_each_form_of_the_area_is_a_share_and_pulls_at_the_offsets(
    prepared: Prepared, expanded: Weights, twofold: Weights, few: Batch, kind: str
) -> None:
    model = two_layers(prepared, twofold)
    offsets = model.learns(offsets_of(model, 1))
    wide = shrinkage.widened(model, few["images"])
    maps = model.head(model.sampled(wide, 1))
    before = classify.load(expanded, prepared.inputs.tagged.classes).head if kind == "fixed_max" else model.head
    shares = Shrinking(gap, replace(Shrink(), area=kind), before).shares(model, wide, maps)  # type: ignore[arg-type]
    assert (shares >= 0).all()
    if kind != "fixed_max":  # at zero offsets the maximum at the start is the maximum
        assert shares.max() <= 1 + 1e-4
    shares[few["tags"]].mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in offsets)


def test_a_fixed_maximum_is_that_of_the_widened_map(
    prepared: Prepared, expanded: Weights, twofold: Weights, few: Batch
) -> None:
    model, first = two_layers(prepared, twofold), classify.load(expanded, prepared.inputs.tagged.classes)
    with torch.no_grad():
        widened_map = first(first.backbone.preprocess(few["images"].float() / 255)).relu()
        wide = shrinkage.widened(model, few["images"])
        maps = model.head(model.sampled(wide, 1))
        shares = Shrinking(gap, replace(Shrink(), area="fixed_max"), first.head).shares(model, wide, maps)
    expected = maps.relu() / (widened_map.amax((2, 3)) + 1e-5)[:, :, None, None]
    assert torch.allclose(shares, expected, rtol=1e-3, atol=1e-5)


def test_under_its_floor_the_tag_loss_does_not_pull(prepared: Prepared, twofold: Weights, few: Batch) -> None:
    model = two_layers(prepared, twofold)
    for floor, pulls in ((0.0, True), (9.0, False)):
        model.zero_grad()
        objective(model, floor, weight=0.0).total(model, few).backward()
        assert bool(model.head.bias.grad.any()) == pulls  # type: ignore[union-attr]


def test_a_batch_in_parts_gives_the_same_loss(prepared: Prepared, twofold: Weights, few: Batch) -> None:
    model = two_layers(prepared, twofold)
    loss = objective(model, 0.3, area="max", weight=0.5, negatives=0.5)
    whole = loss.total(model, few).item()
    parts = [loss.total(model, {n: t[i : i + 3] for n, t in few.items()}).item() for i in range(0, len(few["tags"]), 3)]
    assert sum(parts) == pytest.approx(whole, rel=1e-5)


def test_negatives_weigh_what_absent_classes_show(prepared: Prepared, twofold: Weights, few: Batch) -> None:
    model = two_layers(prepared, twofold)
    plain, more = (objective(model, negatives=weight).total(model, few).item() for weight in (0.0, 1e4))
    with torch.no_grad():
        maps = model.head(model.sampled(shrinkage.widened(model, few["images"]), 1)).relu().mean((2, 3))
    absent = ~few["tags"]
    assert more - plain == pytest.approx(1e4 * float(((maps * absent).sum(1) / absent.sum(1)).sum()), rel=1e-3)


def test_weights_without_a_second_layer_are_refused(prepared: Prepared, run: Run, expanded: Weights) -> None:
    with pytest.raises(DataError, match="found 1 sampling layers, expected 2"):
        shrinkage.shrunk(run, prepared.inputs.tagged, expanded, expanded, prepared.cfg.shrink)


@pytest.mark.parametrize(("change", "said"), [({"limit": -1.0}, "shrink.limit"), ({"weight": -0.1}, "found weight"),
                                              ({"negatives": -1.0}, "negatives")])  # fmt: skip
def test_settings_that_cannot_work_are_refused(
    prepared: Prepared, run: Run, expanded: Weights, twofold: Weights, change: dict[str, float], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        shrinkage.shrunk(run, prepared.inputs.tagged, expanded, twofold, replace(prepared.cfg.shrink, **change))
