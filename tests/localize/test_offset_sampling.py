"""Offsets that climb the tag loss and offsets that descend it: who moves, who does not, and when it ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from tagseg.artifacts import Weights
from tagseg.data.index import TaggedSet
from tagseg.localize import cam, classify, joint_sampling, offset_sampling
from tagseg.localize.classify import Layer, TagLoss, TagNet
from tagseg.localize.offset_sampling import Ascent, Expand, Guard, Shrinking, TagsOnly
from tagseg.nets.backbones import build
from tagseg.ops.pooling import gap
from tagseg.runs.setup import Prepared, prepare
from tagseg.store import Run
from tagseg.training.loop import Batch
from tagseg.training.schedule import optimiser
from tagseg.types import DataError, UsageError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(tiny.request(tmp_path_factory.mktemp("esol") / "run", method="esol"))


@pytest.fixture(scope="module")
def run(prepared: Prepared) -> Run:
    return Run(prepared.cache, workers=1)


@pytest.fixture(scope="module")
def classifier(prepared: Prepared, run: Run) -> Weights:
    return classify.train(run, prepared.inputs.tagged, prepared.inputs.pretrained, prepared.cfg.classifier)


@pytest.fixture(scope="module")
def expanded(prepared: Prepared, run: Run, classifier: Weights) -> Weights:
    return offset_sampling.expansion(run, prepared.inputs.tagged, classifier, prepared.cfg.expand)


@pytest.fixture(scope="module")
def twofold(prepared: Prepared, run: Run, expanded: Weights) -> Weights:
    return offset_sampling.second(run, prepared.inputs.tagged, expanded, prepared.cfg.second)


@pytest.fixture(scope="module")
def shrunk(prepared: Prepared, run: Run, twofold: Weights) -> Weights:
    return offset_sampling.shrinkage(run, prepared.inputs.tagged, twofold, prepared.cfg.shrink)


def batch(tagged: TaggedSet, count: int = 8) -> Batch:
    images = [torch.from_numpy(tagged.source.read(i)) for i in tagged.ids[:count]]
    return {"images": torch.stack(images), "tags": torch.from_numpy(tagged.tags[:count])}


def moving(classifier: Weights, classes: tuple[str, ...], clip: str = "channel_max") -> tuple[TagNet, list[Any]]:
    layer = replace(offset_sampling._only_layer(classifier), moves=True, clip=clip, beta=0.5)
    model = offset_sampling.with_layers(classifier, classes, [layer])
    return model, model.learns(offset_sampling.offsets_of(model, 0))


def loss_of(model: TagNet, images: Batch) -> float:
    with torch.no_grad():
        return float(TagLoss(gap).total(model, images)) / len(images["tags"])


def climb(prepared: Prepared, classifier: Weights, rate: float) -> tuple[float, float, TagNet, dict[str, Tensor]]:
    """The tag loss of one batch before and after a step of Eq. 5 on it; a negative rate descends."""
    tagged = prepared.inputs.tagged
    model, offsets = moving(classifier, tagged.classes)
    images, before = batch(tagged), {n: t.clone() for n, t in model.state_dict().items()}
    start = loss_of(model, images)
    (Ascent(gap, 1.0).total(model, images) / len(images["tags"])).backward()
    with torch.no_grad():
        for parameter in offsets:
            parameter -= rate * parameter.grad
    return start, loss_of(model, images), model, before


def test_esol_s7_03_ascent_moves_offsets_only(prepared: Prepared, classifier: Weights) -> None:
    start, end, model, before = climb(prepared, classifier, 0.05)
    assert end > start + 1e-6
    own = {n for n, _ in model.samplers.named_parameters() if "offset" in n}
    assert len(own) == 2
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name.removeprefix("samplers.") in own), name
    for name, tensor in model.state_dict().items():
        moved = name.removeprefix("samplers.") in own
        assert torch.equal(tensor, before[name]) != moved, name


def test_esol_s7_04_the_same_step_the_other_way_lowers_the_loss(prepared: Prepared, classifier: Weights) -> None:
    start, end, _, _ = climb(prepared, classifier, -0.05)
    assert end < start - 1e-6


def test_the_gradient_of_the_ascent_ends_at_the_features(prepared: Prepared, classifier: Weights) -> None:
    model, _ = moving(classifier, prepared.inputs.tagged.classes)
    seen: list[Tensor] = []
    model.samplers[0].register_forward_hook(lambda module, given, out: seen.append(given[0]))
    Ascent(gap, 0.01).total(model, batch(prepared.inputs.tagged)).backward()
    assert not seen[0].requires_grad


def test_esol_s7_06_the_second_stage_leaves_the_first_as_it_is(
    prepared: Prepared, expanded: Weights, twofold: Weights, shrunk: Weights
) -> None:
    first, second, third = expanded.tensors(), twofold.tensors(), shrunk.tensors()
    kept = [n for n in first if n.startswith(("backbone.", "samplers.0."))]
    assert any("running_mean" in n for n in kept)
    for name in kept:
        assert torch.equal(first[name], second[name]), name
        assert torch.equal(first[name], third[name]), name
    assert not torch.equal(first["head.weight"], second["head.weight"])  # another head, on other features
    assert torch.equal(second["head.weight"], third["head.weight"])  # frozen unless shrink.head=train
    assert torch.equal(second["samplers.1.weight"], third["samplers.1.weight"])
    assert third["samplers.1.offset.weight"].abs().max() > 0
    model = offset_sampling.with_layers(shrunk, prepared.inputs.tagged.classes, offset_sampling._layers(shrunk))
    model.requires_grad_(True)
    wide = offset_sampling.widened(model, batch(prepared.inputs.tagged)["images"])
    assert not wide.requires_grad  # stopgrad(F1)
    for objective in (TagsOnly(gap), Shrinking(gap, "max", 0.5, 0.5)):
        model.zero_grad()
        objective.total(model, batch(prepared.inputs.tagged)).backward()
        assert all(p.grad is None for n, p in model.named_parameters() if n.startswith(("backbone.", "samplers.0.")))


@pytest.mark.parametrize("clip", ["none", "channel_max"])
@pytest.mark.parametrize("idle", ["alpha=0", "no steps"])
def test_esol_s7_09_without_ascent_the_maps_are_the_baselines(
    prepared: Prepared, run: Run, classifier: Weights, clip: str, idle: str
) -> None:
    tagged, cfg = prepared.inputs.tagged.limit(6), prepared.cfg.expand
    cfg = replace(cfg, clip=replace(cfg.clip, kind=clip))
    cfg = (replace(cfg, alpha=0.0) if idle == "alpha=0" else
           replace(cfg, schedule=replace(cfg.schedule, lr=0.0, head_lr=0.0)))  # fmt: skip
    idle_maps = cam.maps(run, tagged, offset_sampling.expansion(run, tagged, classifier, cfg), prepared.cfg.cam)
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


def test_clipping_changes_the_maps(prepared: Prepared, run: Run, classifier: Weights) -> None:
    tagged, idle = prepared.inputs.tagged.limit(4), replace(prepared.cfg.expand, alpha=0.0)
    bare = replace(idle, clip=replace(idle.clip, kind="none"))
    a, b = (cam.maps(run, tagged, offset_sampling.expansion(run, tagged, classifier, cfg), prepared.cfg.cam)
            for cfg in (idle, bare))  # fmt: skip
    apart = [float(np.abs(one.scores - other.scores).max(initial=0)) for one, other in zip(a, b, strict=True)]
    assert max(apart) > 0.05, apart


def test_esol_s7_10_the_guard_ends_a_strong_ascent_and_says_why(
    prepared: Prepared, run: Run, classifier: Weights
) -> None:
    cfg = prepared.cfg.expand
    strong = replace(cfg, alpha=20.0, schedule=replace(cfg.schedule, epochs=40.0))
    weights = offset_sampling.expansion(run, prepared.inputs.tagged, classifier, strong)
    events = weights.record["events"]
    assert len(events) == 1
    assert "alpha 20.0" in events[0]
    assert f"its ceiling {weights.meta['ceiling']:.3f}" in events[0]
    assert int(events[0].split()[2]) < 120


def test_esol_s7_11_the_ascent_optimiser_holds_two_tensors_without_decay(
    prepared: Prepared, classifier: Weights
) -> None:
    model, offsets = moving(classifier, prepared.inputs.tagged.classes)
    for cfg in (Expand(), prepared.cfg.expand):
        made = optimiser(cfg.schedule, offsets, [])
        held = [p for group in made.param_groups for p in group["params"]]
        named = dict(model.samplers[0].named_parameters())
        assert {id(p) for p in held} == {id(named["offset.weight"]), id(named["offset.bias"])}
        assert [group["weight_decay"] for group in made.param_groups] == [0.0]
        assert [group["lr"] for group in made.param_groups] == [0.1]


def test_the_guards_ceiling_by_hand() -> None:
    even = np.array([[True], [False]])  # guessing costs ln 2
    assert offset_sampling.guard_ceiling(0.0, even) == 0.0  # 5 times nothing
    assert offset_sampling.guard_ceiling(0.01, even) == pytest.approx(0.05)
    assert offset_sampling.guard_ceiling(0.2, even) == pytest.approx(0.2 + 0.2 * (np.log(2) - 0.2))
    assert offset_sampling.guard_ceiling(0.9, even) == pytest.approx(0.9)  # worse than guessing: no step


def test_the_guard_waits_for_its_window_and_takes_the_mean() -> None:
    guard = Guard(0.5, 0.1)
    rows = [[float(i), -0.1 * loss, 1.0] for i, loss in enumerate([9, 9, 9, 9, *[0.4] * 8])]
    assert guard(rows[:7]) is None
    assert guard(rows[:8]) is not None
    assert guard(rows) is None


def test_the_ascent_stops_at_a_wanted_area(prepared: Prepared, run: Run, classifier: Weights) -> None:
    cfg = replace(prepared.cfg.expand, area=0.01, schedule=replace(prepared.cfg.expand.schedule, epochs=4.0))
    weights = offset_sampling.expansion(run, prepared.inputs.tagged, classifier, cfg)
    assert "stopped after 5 of" in weights.record["events"][0]
    assert "mean area" in weights.record["events"][0]


@pytest.mark.parametrize(("change", "said"), [({"alpha": -1.0}, "expand.alpha"), ({"ceiling": 0.8}, "expand.ceiling"),
                                              ({"ceiling": 0.0}, "expand.ceiling")])  # fmt: skip
def test_settings_that_cannot_work_are_refused(
    prepared: Prepared, run: Run, classifier: Weights, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        offset_sampling.expansion(run, prepared.inputs.tagged, classifier, replace(prepared.cfg.expand, **change))


def test_a_classifier_without_a_sampling_layer_is_refused(prepared: Prepared, run: Run) -> None:
    cfg = prepared.cfg.classifier
    plain = replace(cfg, sampler=0, schedule=replace(cfg.schedule, max_images=8))
    weights = classify.train(run, prepared.inputs.tagged, prepared.inputs.pretrained, plain)
    with pytest.raises(DataError, match=r"classifier\.sampler"):
        offset_sampling.expansion(run, prepared.inputs.tagged, weights, prepared.cfg.expand)
    with pytest.raises(DataError, match="found 0 sampling layers"):
        offset_sampling.shrinkage(run, prepared.inputs.tagged, weights, prepared.cfg.shrink)


@pytest.mark.parametrize("kind", ["detached_max", "max", "fixed_max", "local_max", "sigmoid"])
def test_each_form_of_the_area_is_a_share_and_pulls_at_the_offsets(
    prepared: Prepared, twofold: Weights, kind: str
) -> None:
    layers = offset_sampling._layers(twofold)
    both = [layers[0], replace(layers[1], moves=True)]
    model = offset_sampling.with_layers(twofold, prepared.inputs.tagged.classes, both)
    offsets = model.learns(offset_sampling.offsets_of(model, 1))
    images = batch(prepared.inputs.tagged)
    wide = offset_sampling.widened(model, images["images"])
    maps = model.head(model.sampled(wide, 1))
    shares = Shrinking(gap, kind, 0.1, 0.0).shares(model, wide, maps)
    assert (shares >= 0).all()
    assert shares.max() <= 1 + 1e-4  # at zero offsets a fixed maximum is the maximum
    shares[images["tags"]].mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in offsets)


def test_under_its_floor_the_tag_loss_does_not_pull(prepared: Prepared, twofold: Weights) -> None:
    model = offset_sampling.with_layers(twofold, prepared.inputs.tagged.classes, offset_sampling._layers(twofold))
    images = batch(prepared.inputs.tagged)
    for floor, pulls in ((0.0, True), (9.0, False)):
        model.zero_grad()
        Shrinking(gap, "max", 0.0, 0.0, floor).total(model, images).backward()
        assert bool(model.head.bias.grad.any()) == pulls  # type: ignore[union-attr]


def test_negatives_weigh_what_absent_classes_show(prepared: Prepared, twofold: Weights) -> None:
    model = offset_sampling.with_layers(twofold, prepared.inputs.tagged.classes, offset_sampling._layers(twofold))
    images = batch(prepared.inputs.tagged)
    plain, more = (Shrinking(gap, "max", 0.1, weight).total(model, images).item() for weight in (0.0, 1e4))
    with torch.no_grad():
        maps = model.head(model.sampled(offset_sampling.widened(model, images["images"]), 1)).relu().mean((2, 3))
    absent = ~images["tags"]
    assert more - plain == pytest.approx(1e4 * float(((maps * absent).sum(1) / absent.sum(1)).sum()), rel=1e-3)


def test_joint_mode_gives_weights_of_the_same_form(prepared: Prepared, run: Run, expanded: Weights) -> None:
    cfg = joint_sampling.Joint(prepared.cfg.classifier, replace(prepared.cfg.expand, ceiling=0.69))
    weights = joint_sampling.expansion(run, prepared.inputs.tagged, prepared.inputs.pretrained, cfg)
    assert {n: t.shape for n, t in weights.tensors().items()} == {n: t.shape for n, t in expanded.tensors().items()}
    assert weights.meta["samplers"] == expanded.meta["samplers"]
    assert weights.tensors()["samplers.0.offset.weight"].abs().max() > 0
    offset_sampling.second(run, prepared.inputs.tagged, weights, prepared.cfg.second)  # goes on from there


def test_joint_steps_move_either_the_offsets_or_all_else() -> None:
    torch.manual_seed(0)
    model = TagNet(build("small", stride=16), 3, [Layer(8, True)])
    assert isinstance(model.samplers[0].offset, torch.nn.Conv2d)
    torch.nn.init.normal_(model.samplers[0].offset.weight, std=0.01)
    rng = np.random.default_rng(0)
    images = {"images": torch.from_numpy(rng.integers(0, 256, (4, 3, 48, 48), np.uint8)),
              "tags": torch.from_numpy(rng.random((4, 3)) < 0.5)}  # fmt: skip
    turns = joint_sampling.Turns(lambda step: images)
    for step, climbs in ((0, False), (1, True), (2, False)):
        model.zero_grad()
        joint_sampling.InTurn(gap, 0.01, 9.0).total(model, turns(step)).backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == (("offset" in name) == climbs), (step, name)
    model.zero_grad()
    joint_sampling.InTurn(gap, 0.01, 0.0).total(model, turns(1)).backward()
    gradients = [p.grad for n, p in model.named_parameters() if "offset" in n]
    assert all(g is not None and not g.any() for g in gradients)  # over the ceiling nothing climbs


def test_a_frozen_network_stays_in_eval_mode() -> None:
    model = TagNet(build("small", stride=16), 2, [Layer(8, True)])
    assert model.train().backbone.training
    model.learns(offset_sampling.offsets_of(model, 0))
    assert not model.train().backbone.training
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        "samplers.0.offset.weight", "samplers.0.offset.bias"]  # fmt: skip


def test_killed_inside_the_ascent_it_ends_with_the_same_bytes(
    prepared: Prepared, run: Run, expanded: Weights, classifier: Weights, tmp_path: Path
) -> None:
    from tagseg.types import Interrupted

    first = Run(tmp_path, workers=1, stopping=lambda: True)
    with pytest.raises(Interrupted):
        offset_sampling.expansion(first, prepared.inputs.tagged, classifier, prepared.cfg.expand)
    again = offset_sampling.expansion(Run(tmp_path, workers=1), prepared.inputs.tagged, classifier, prepared.cfg.expand)
    assert again.record["outputs"] == expanded.record["outputs"]
