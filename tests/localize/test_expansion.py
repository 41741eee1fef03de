"""Offsets that climb the tag loss: who moves, who does not, and when it ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tagseg.artifacts import Weights
from tagseg.localize import cam, classify, expansion
from tagseg.localize.classify import Layer, TagLoss, TagNet
from tagseg.localize.expansion import Ascent, Ends, Expand
from tagseg.localize.sampling_layers import Clip, layers_of, offsets_of, with_layers
from tagseg.nets.backbones import build
from tagseg.ops.pooling import gap
from tagseg.runs.setup import Prepared
from tagseg.store import Run
from tagseg.training.loop import Batch
from tagseg.training.schedule import optimiser
from tagseg.types import DataError, Interrupted, UsageError

OFFSETS = {"samplers.0.offset.weight", "samplers.0.offset.bias"}


def moving(prepared: Prepared, classifier: Weights) -> tuple[TagNet, list[Any]]:
    layer = replace(layers_of(classifier, 1)[0], moves=True, clip="channel_max", beta=0.5)
    model = with_layers(classifier, prepared.inputs.tagged.classes, [layer])
    return model, model.learns(offsets_of(model, 0))


def loss_of(model: TagNet, images: Batch) -> float:
    with torch.no_grad():
        return float(TagLoss(gap).total(model, images)) / len(images["tags"])


def climb(
    prepared: Prepared, classifier: Weights, few: Batch, rate: float
) -> tuple[float, float, TagNet, dict[str, Tensor]]:
    """The tag loss of one batch before and after a step of Eq. 5 on it; a negative rate descends."""
    model, offsets = moving(prepared, classifier)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    start = loss_of(model, few)
    (Ascent(gap).total(model, few) / len(few["tags"])).backward()
    with torch.no_grad():
        for parameter in offsets:
            parameter -= rate * parameter.grad
    return start, loss_of(model, few), model, before


def test_esol_s7_03_ascent_moves_offsets_only(prepared: Prepared, classifier: Weights, few: Batch) -> None:
    start, end, model, before = climb(prepared, classifier, few, 0.05)
    assert end > start + 1e-6
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in OFFSETS), name
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) != (name in OFFSETS), name


@pytest.mark.parametrize("head", ["frozen", "train"])
def test_esol_s7_03_the_whole_stage_changes_the_offsets_alone(
    prepared: Prepared, run: Run, classifier: Weights, head: str
) -> None:
    cfg = replace(prepared.cfg.expand, head=head)
    after = expansion.expanded(run, prepared.inputs.tagged, classifier, cfg).tensors()
    before = classifier.tensors()
    assert after.keys() - before.keys() == OFFSETS
    assert all(after[name].any() for name in OFFSETS)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == ({"head.weight", "head.bias"} if head == "train" else set())


def test_esol_s7_04_the_same_step_the_other_way_lowers_the_loss(
    prepared: Prepared, classifier: Weights, few: Batch
) -> None:
    start, end, _, _ = climb(prepared, classifier, few, -0.05)
    assert end < start - 1e-6


def test_the_gradient_of_the_ascent_ends_at_the_features(prepared: Prepared, classifier: Weights, few: Batch) -> None:
    model, _ = moving(prepared, classifier)
    seen: list[Tensor] = []
    model.samplers[0].register_forward_hook(lambda module, given, out: seen.append(given[0]))
    Ascent(gap).total(model, few).backward()
    assert not seen[0].requires_grad


@pytest.mark.parametrize("clip", ["none", "channel_max"])
@pytest.mark.parametrize("idle", ["alpha=0", "no rate"])
def test_esol_s7_09_without_ascent_the_maps_are_the_baselines(
    prepared: Prepared, run: Run, classifier: Weights, clip: str, idle: str
) -> None:
    tagged, cfg = prepared.inputs.tagged.limit(6), prepared.cfg.expand
    cfg = replace(cfg, clip=replace(cfg.clip, kind=clip))
    cfg = (replace(cfg, alpha=0.0) if idle == "alpha=0" else
           replace(cfg, schedule=replace(cfg.schedule, lr=0.0, head_lr=0.0)))  # fmt: skip
    idle_maps = cam.maps(run, tagged, expansion.expanded(run, tagged, classifier, cfg), prepared.cfg.cam)
    plain = classify.load(classifier, tagged.classes)
    if clip == "channel_max":
        plain.layers = (replace(plain.layers[0], clip="channel_max", beta=0.5),)
    network = cam.network_of(plain)
    work: Any = type("W", (), {"run": run, "map": lambda self, f, xs: map(f, xs)})()
    for seen, found in zip(cam.raw_maps(work, network, tagged, list(tagged.ids), prepared.cfg.cam), idle_maps,
                           strict=True):  # fmt: skip
        raw = seen.values.numpy()[found.classes - 1]
        expected = raw / (raw.max((1, 2), keepdims=True, initial=0) + 1e-5)
        assert np.allclose(found.scores, expected, atol=1e-3)  # stored as float16


@pytest.mark.parametrize("clip", [Clip(), Clip("channel_quantile", quantile=0.7)])
def test_clipping_changes_the_maps(prepared: Prepared, run: Run, classifier: Weights, clip: Clip) -> None:
    tagged, idle = prepared.inputs.tagged.limit(4), replace(prepared.cfg.expand, alpha=0.0)
    a, b = (cam.maps(run, tagged, expansion.expanded(run, tagged, classifier, replace(idle, clip=c)), prepared.cfg.cam)
            for c in (clip, Clip("none")))  # fmt: skip
    apart = [float(np.abs(one.scores - other.scores).max(initial=0)) for one, other in zip(a, b, strict=True)]
    assert max(apart) > 0.05, apart


def test_maps_of_moving_taps_are_made_in_bf16_too(prepared: Prepared, run: Run, expanded: Weights) -> None:
    tagged, cfg = prepared.inputs.tagged.limit(6), prepared.cfg.cam
    fine, coarse = (cam.maps(run, tagged, expanded, replace(cfg, precision=p)) for p in ("fp32", "bf16"))
    for a, b in zip(fine, coarse, strict=True):
        assert np.abs(a.scores - b.scores).mean() < 0.02 if len(a.classes) else not len(b.classes)


def test_esol_s7_10_the_guard_ends_a_strong_ascent_and_says_why(
    prepared: Prepared, run: Run, classifier: Weights
) -> None:
    cfg = prepared.cfg.expand
    strong = replace(cfg, alpha=20.0, schedule=replace(cfg.schedule, epochs=40.0))
    weights = expansion.expanded(run, prepared.inputs.tagged, classifier, strong)
    (event,) = weights.record["events"]
    assert "alpha 20.0" in event
    assert f"its ceiling {weights.meta['ceiling']:.3f}" in event
    made = int(event.split()[2])
    assert 2 <= made < 60  # of 120
    assert weights.meta["tag_loss_at_start"] < weights.meta["ceiling"] < weights.meta["tag_loss_at_end"]


def test_an_ascent_of_three_steps_is_guarded_too(prepared: Prepared, run: Run, classifier: Weights) -> None:
    strong = replace(prepared.cfg.expand, alpha=100.0)
    weights = expansion.expanded(run, prepared.inputs.tagged, classifier, strong)
    assert len(weights.record["events"]) == 1
    assert "over its ceiling" in weights.record["events"][0]


def test_a_classifier_over_the_ceiling_makes_no_step(prepared: Prepared, run: Run, classifier: Weights) -> None:
    weights = expansion.expanded(run, prepared.inputs.tagged, classifier, replace(prepared.cfg.expand, ceiling=1e-6))
    assert "no step was made" in weights.record["events"][0]
    assert not any(weights.tensors()[name].any() for name in OFFSETS)


def test_esol_s7_11_the_ascent_optimiser_holds_two_tensors_without_decay(
    prepared: Prepared, classifier: Weights
) -> None:
    model, offsets = moving(prepared, classifier)
    for cfg in (Expand(), prepared.cfg.expand):
        made = optimiser(expansion.scaled(cfg.schedule, cfg.alpha), offsets, [])
        held = [p for group in made.param_groups for p in group["params"]]
        named = dict(model.named_parameters())
        assert {id(p) for p in held} == {id(named[name]) for name in OFFSETS}
        assert [group["weight_decay"] for group in made.param_groups] == [0.0]
        assert [group["lr"] for group in made.param_groups] == [pytest.approx(0.01 * 0.1)]


def test_the_guards_ceiling_by_hand() -> None:
    even = np.array([[True], [False]])  # guessing costs ln 2
    assert expansion.guard_ceiling(0.0, even) == 0.0  # 5 times nothing
    assert expansion.guard_ceiling(0.01, even) == pytest.approx(0.05)
    assert expansion.guard_ceiling(0.2, even) == pytest.approx(0.2 + 0.2 * (np.log(2) - 0.2))
    assert expansion.guard_ceiling(0.9, even) == pytest.approx(0.9)  # worse than guessing: no step


def test_the_guard_takes_the_mean_of_its_window(prepared: Prepared, classifier: Weights) -> None:
    ends = Ends(moving(prepared, classifier)[0], None, 0.5, Expand())  # type: ignore[arg-type]
    rows = [[float(i), -loss, 1.0] for i, loss in enumerate([9, 9, 9, 9, *[0.4] * 8])]
    assert ends(rows[:1]) is None
    assert ends(rows[:2]) is not None
    assert ends(rows) is None


def test_the_ascent_stops_at_a_wanted_area(prepared: Prepared, run: Run, classifier: Weights) -> None:
    cfg = replace(prepared.cfg.expand, area=0.01, schedule=replace(prepared.cfg.expand.schedule, epochs=4.0))
    weights = expansion.expanded(run, prepared.inputs.tagged, classifier, cfg)
    assert "stopped after 5 of" in weights.record["events"][0]
    assert "mean area" in weights.record["events"][0]


@pytest.mark.parametrize(("change", "said"), [
    ({"alpha": -1.0}, "expand.alpha"),
    ({"ceiling": 0.8}, "expand.ceiling"),
    ({"ceiling": 0.0}, "expand.ceiling"),
    ({"limit": 0.0}, "expand.limit"),
    ({"area": 1.5}, "expand.area"),
    ({"clip": Clip(beta=0.0)}, "expand.clip"),
])  # fmt: skip
def test_settings_that_cannot_work_are_refused(
    prepared: Prepared, run: Run, classifier: Weights, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        expansion.expanded(run, prepared.inputs.tagged, classifier, replace(prepared.cfg.expand, **change))


def test_decay_on_offsets_is_refused(prepared: Prepared, run: Run, classifier: Weights) -> None:
    cfg = prepared.cfg.expand
    with pytest.raises(UsageError, match="pulls offsets back"):
        expansion.expanded(run, prepared.inputs.tagged, classifier,
                           replace(cfg, schedule=replace(cfg.schedule, weight_decay=1e-4)))  # fmt: skip


def test_a_classifier_without_a_sampling_layer_is_refused(prepared: Prepared, run: Run) -> None:
    cfg = prepared.cfg.classifier
    plain = replace(cfg, sampler=0, schedule=replace(cfg.schedule, max_images=8))
    weights = classify.train(run, prepared.inputs.tagged, prepared.inputs.pretrained, plain)
    with pytest.raises(DataError, match=r"found 0 sampling layers, expected 1; .*classifier\.sampler"):
        expansion.expanded(run, prepared.inputs.tagged, weights, prepared.cfg.expand)


def test_a_layer_can_be_as_wide_as_the_features(prepared: Prepared, run: Run) -> None:
    cfg = prepared.cfg.classifier
    wide = replace(cfg, sampler="features", schedule=replace(cfg.schedule, max_images=8))
    weights = classify.train(run, prepared.inputs.tagged, prepared.inputs.pretrained, wide)
    assert layers_of(weights, 1) == [Layer(128)]


def test_a_frozen_network_stays_in_eval_mode() -> None:
    model = TagNet(build("small", stride=16), 2, [Layer(8, True)])
    assert model.train().backbone.training
    model.learns(offsets_of(model, 0))
    assert not model.train().backbone.training
    assert {n for n, p in model.named_parameters() if p.requires_grad} == OFFSETS


def test_killed_inside_the_ascent_it_ends_with_the_same_bytes(
    prepared: Prepared, run: Run, expanded: Weights, classifier: Weights, tmp_path: Path
) -> None:
    first = Run(tmp_path, workers=1, stopping=lambda: True)
    with pytest.raises(Interrupted):
        expansion.expanded(first, prepared.inputs.tagged, classifier, prepared.cfg.expand)
    again = expansion.expanded(Run(tmp_path, workers=1), prepared.inputs.tagged, classifier, prepared.cfg.expand)
    assert again.record["outputs"] == expanded.record["outputs"]
