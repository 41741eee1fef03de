"""Joint mode: even steps learn the tags, odd ones send the offsets against them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tagseg.artifacts import Weights
from tagseg.localize import joint_expansion, shrinkage
from tagseg.localize.classify import Layer, TagNet
from tagseg.localize.joint_expansion import InTurn, Joint, Turns
from tagseg.nets.backbones import build
from tagseg.nets.sampler import Offsets, Sampler
from tagseg.ops.pooling import gap
from tagseg.runs.setup import Prepared
from tagseg.store import Run
from tagseg.training.loop import Batch
from tagseg.types import Interrupted, UsageError


def toy() -> tuple[TagNet, Batch]:
    torch.manual_seed(0)
    model = TagNet(build("small", stride=16), 3, [Layer(8, True)])
    sampler = model.samplers[0]
    assert isinstance(sampler, Sampler)
    assert isinstance(sampler.offset, Offsets)
    torch.nn.init.normal_(sampler.offset.weight, std=0.01)
    rng = np.random.default_rng(0)
    return model, {"images": torch.from_numpy(rng.integers(0, 256, (4, 3, 48, 48), np.uint8)),
                   "tags": torch.from_numpy(rng.random((4, 3)) < 0.5)}  # fmt: skip


def test_steps_move_either_the_offsets_or_all_else() -> None:
    model, images = toy()
    turns = Turns(lambda step: images)
    for step, climbs in ((0, False), (1, True), (2, False)):
        model.zero_grad()
        InTurn(gap, 9.0, 0.7).total(model, turns(step)).backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == (("offset" in name) == climbs), (step, name)


@pytest.mark.parametrize("given", [0.0, None])
def test_over_its_ceiling_an_image_does_not_climb(given: float | None) -> None:
    model, images = toy()
    # worse than guessing without offsets, and worse still with them: the guard, too, holds
    InTurn(gap, given, 0.0).total(model, Turns(lambda step: images)(1))
    climbing = [p for n, p in model.named_parameters() if "offset" in n]
    turn = InTurn(gap, given, 0.0)
    with torch.no_grad():
        f = model.backbone(model.backbone.preprocess(images["images"].float() / 255), ["last"])["last"]
        sampler = model.samplers[0]
        assert isinstance(sampler, Sampler)
        moved, still = (turn.losses(model, x.relu(), images["tags"]) for x in (sampler(f), sampler.plain(f)))
    over = torch.ones(4, dtype=torch.bool) if given == 0.0 else moved > still
    for image in range(4):
        model.zero_grad()
        one = {name: tensor[image : image + 1] for name, tensor in images.items()}
        turn.total(model, Turns(lambda step, one=one: one)(1)).backward()  # type: ignore[misc]
        assert any(bool(p.grad is not None and p.grad.any()) for p in climbing) != bool(over[image])


def test_the_weights_have_the_form_of_the_other_mode(prepared: Prepared, run: Run, expanded: Weights) -> None:
    cfg = joint_expansion.joint(prepared.cfg.classifier, prepared.cfg.expand)
    weights = joint_expansion.expanded(run, prepared.inputs.tagged, prepared.inputs.pretrained, cfg)
    assert {n: t.shape for n, t in weights.tensors().items()} == {n: t.shape for n, t in expanded.tensors().items()}
    assert weights.meta["samplers"] == expanded.meta["samplers"]
    assert weights.tensors()["samplers.0.offset.weight"].any()
    assert not weights.record["events"]
    shrinkage.second(run, prepared.inputs.tagged, weights, prepared.cfg.second)  # goes on from there


def test_offsets_that_never_moved_are_told(prepared: Prepared, run: Run) -> None:
    cfg = short(prepared, ceiling=1e-9)
    weights = joint_expansion.expanded(run, prepared.inputs.tagged, prepared.inputs.pretrained, cfg)
    assert weights.record["events"] == ["the offsets did not move: every tag loss was over its ceiling, in every step"]


def short(prepared: Prepared, ceiling: float) -> Joint:
    cfg = joint_expansion.joint(prepared.cfg.classifier, prepared.cfg.expand)
    schedule = replace(cfg.classifier.schedule, max_images=32)
    return replace(cfg, ceiling=ceiling, classifier=replace(cfg.classifier, schedule=schedule))


def stops_at(tick: int) -> Callable[[], bool]:
    count = iter(range(10_000))
    return lambda: next(count) >= tick


@pytest.mark.parametrize("tick", [0, 1, 2, 3, 4, 5])
def test_killed_in_an_even_or_odd_step_it_ends_with_the_same_bytes(
    prepared: Prepared, tmp_path: Path, tick: int
) -> None:
    cfg, inputs = short(prepared, 0.69), prepared.inputs
    whole = joint_expansion.expanded(Run(tmp_path / "whole", workers=1), inputs.tagged, inputs.pretrained, cfg)
    with pytest.raises(Interrupted):
        joint_expansion.expanded(Run(tmp_path / "cut", workers=1, stopping=stops_at(tick)), inputs.tagged,
                                 inputs.pretrained, cfg)  # fmt: skip
    again = joint_expansion.expanded(Run(tmp_path / "cut", workers=1), inputs.tagged, inputs.pretrained, cfg)
    assert again.record["outputs"] == whole.record["outputs"]


def test_what_joint_mode_cannot_do_is_refused(prepared: Prepared) -> None:
    for change in ({"area": 0.3}, {"head": "train"}):
        with pytest.raises(UsageError, match="no effect with mode=joint"):
            joint_expansion.joint(prepared.cfg.classifier, replace(prepared.cfg.expand, **change))
