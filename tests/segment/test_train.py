"""The segmenter's loss over labelled pixels, its heads, and what its weights remember."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from tagseg.artifacts import LabelSet, write_labels
from tagseg.nets.deeplab import DeepLabV3Plus, Segmenter
from tagseg.segment import train
from tagseg.segment.train import PixelLoss, Segment, class_weights, make, undo_weights
from tagseg.store import Run, Work, stage
from tagseg.training.loop import Batch
from tagseg.types import IGNORE, Labels
from tiny import Tiny

TINY = Segment(backbone="small", stride=16, width=16)


def net(outputs: int = 4, head: Literal["v3plus", "largefov"] = "v3plus") -> Segmenter:
    torch.manual_seed(0)
    return make(replace(TINY, head=head), outputs, None).eval()


def batch(low: int = 0) -> Batch:
    rng = np.random.default_rng(0)
    labels = rng.integers(low, 4, (3, 32, 48), np.uint8)
    labels[:, :10] = IGNORE
    images = rng.integers(0, 256, (3, 3, 32, 48), np.uint8)
    return {"images": torch.from_numpy(images), "labels": torch.from_numpy(labels)}


@pytest.mark.parametrize("head", ["v3plus", "largefov"])
def test_an_undecided_network_loses_log_k_at_each_labelled_pixel(head: Literal["v3plus", "largefov"]) -> None:
    model = net(4, head)
    score = [part for part in model.head.modules() if isinstance(part, torch.nn.Conv2d)][-1]
    score = model.head.score if isinstance(model.head, DeepLabV3Plus) else score
    torch.nn.init.zeros_(score.weight)
    loss = PixelLoss(0, torch.ones(4))
    assert loss.count(batch()) == 3 * 22 * 48
    assert loss.total(model, batch()).item() == pytest.approx(loss.count(batch()) * math.log(4), rel=1e-5)


def test_ignored_pixels_do_not_matter() -> None:
    model, one = net(), batch()
    other = {n: t.clone() for n, t in one.items()}
    one["labels"][:, 20:], other["labels"][:, 20:] = IGNORE, IGNORE
    loss = PixelLoss(0, torch.ones(4))
    assert loss.total(model, one).item() == loss.total(model, other).item()
    part = {n: t.clone() for n, t in batch().items()}
    part["labels"][:, :20] = IGNORE
    assert loss.total(model, batch()).item() == pytest.approx(
        loss.total(model, one).item() + loss.total(model, part).item(), rel=1e-5)


def test_labels_that_say_nothing_lose_nothing() -> None:
    empty = batch()
    empty["labels"][:] = IGNORE
    for shift in (0, 1):
        total = PixelLoss(shift, torch.ones(4)).total(net(), empty)
        total.backward()
        assert total.item() == 0.0
        assert PixelLoss(shift, torch.ones(4)).count(empty) == 0


def test_without_a_background_class_one_is_the_first_output() -> None:
    model, shifted, plain = net(), batch(low=1), batch(low=1)
    plain["labels"] = torch.where(plain["labels"] == IGNORE, IGNORE, plain["labels"] - 1)
    with_shift, without = PixelLoss(1, torch.ones(4)), PixelLoss(0, torch.ones(4))
    assert with_shift.total(model, shifted).item() == without.total(model, plain).item()


def test_what_was_trained_is_remembered_and_loads(trained: Tiny) -> None:
    weights, tagged = trained.fitted.model, trained.prepared.inputs.tagged
    assert weights.meta["classes"] == list(tagged.classes)
    assert weights.meta["has_background"] is True
    model = train.load(weights)
    assert not model.training
    assert all(torch.equal(t, weights.tensors()[n]) for n, t in model.state_dict().items())


@stage(LabelSet, version=1)
def painted(work: Work, tagged: object, cfg: Segment) -> None:
    """Labels that are bright pixels = class 1: something that a network can learn in a few steps."""
    def one(i: str) -> Labels:
        image = tagged.source.read(i)  # type: ignore[attr-defined]
        pixels = (image.mean(0) > 128).astype(np.uint8)
        pixels[:4] = IGNORE
        return Labels(i, pixels)

    write_labels(work, tagged.ids, lambda ids: map(one, ids), {})  # type: ignore[attr-defined]


@pytest.mark.parametrize("head", ["v3plus", "largefov"])
def test_it_learns_from_whatever_labels_it_is_given(trained: Tiny, tmp_path: Path, head: str) -> None:
    run, inputs = Run(tmp_path), trained.prepared.inputs
    cfg = trained.prepared.cfg.segmenter
    cfg = replace(cfg, head=head, width=8, schedule=replace(cfg.schedule, max_images=40))
    labels = painted(run, inputs.tagged, cfg)
    weights = train.segmenter(run, inputs.tagged, labels, inputs.pretrained, cfg)
    assert weights.meta["head"] == head
    model, image = train.load(weights), inputs.tagged.source.read(inputs.tagged.ids[0])
    with torch.no_grad():
        out = model(model.backbone.preprocess(torch.from_numpy(image)[None].float() / 255))
    assert out.shape[1] == len(inputs.tagged.classes) + 1
    assert out.mean((0, 2, 3)).argmax() in (0, 1)  # never trained: the other classes


class _Labels:
    """Two label maps by id, as a `LabelSet` gives them."""

    def get(self, sample: str) -> Labels:
        pixels = np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, 2, 255, 255]], np.uint8)
        return Labels(sample, pixels if sample == "a" else np.zeros((3, 4), np.uint8))


def test_rare_classes_weigh_more_and_the_mean_over_pixels_is_one() -> None:
    counts = np.array([9 + 12, 0, 1])  # background, a class that is nowhere, one pixel of class 2
    weights = class_weights(_Labels(), ("a", "b"), 3, 0, True).numpy()  # type: ignore[arg-type]
    assert weights[1] == 0
    assert weights[2] / weights[0] == pytest.approx((21 / 1) ** 0.5)
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1)
    plain = class_weights(_Labels(), ("a", "b"), 3, 0, False).numpy()  # type: ignore[arg-type]
    assert plain.tolist() == [1, 0, 1]


def test_weights_enter_loss_and_normaliser_alike() -> None:
    model, one = net(), batch()
    plain, double = PixelLoss(0, torch.ones(4)), PixelLoss(0, torch.full((4,), 2.0))
    assert double.count(one) == 2 * plain.count(one)
    assert double.total(model, one).item() == pytest.approx(2 * plain.total(model, one).item(), rel=1e-5)


@pytest.mark.parametrize("head", ["v3plus", "largefov"])
def test_the_loss_weights_are_undone_in_the_finished_scores(head: Literal["v3plus", "largefov"]) -> None:
    """A network that sees nothing learns w_k f_k / sum w f from weighted pixels; undone, it gives the shares f_k."""
    shares = torch.tensor([0.9, 0.08, 0.02, 0.0])
    weights = torch.where(shares > 0, shares.clamp(min=1e-9) ** -0.5, 0.0)
    model = net(4, head)
    torch.nn.init.zeros_(model.head.score.weight)
    bias = model.head.score.bias
    assert bias is not None
    learned = torch.tensor([*(weights * shares)[:3].log(), -9.0])
    bias.data.copy_(learned)
    undo_weights(model, weights, 0.5)
    half = bias.detach().clone()
    undo_weights(model, weights, 0.5)
    image = torch.zeros(1, 3, 32, 32)
    found = model(image).softmax(1)[0, :, 0, 0]
    torch.testing.assert_close(found[1:3] / found[0], shares[1:3] / shares[0])
    assert bias[3].item() == -9.0  # no pixel had this label: its bias stays
    torch.testing.assert_close(half, (learned + bias.detach()) / 2)


def test_undoing_moves_the_last_bias_alone(trained: Tiny, tmp_path: Path) -> None:
    run, inputs = Run(tmp_path), trained.prepared.inputs
    cfg = replace(trained.prepared.cfg.segmenter, width=8)
    cfg = replace(cfg, schedule=replace(cfg.schedule, max_images=40))
    labels = painted(run, inputs.tagged, cfg)
    kept, undone = (train.segmenter(run, inputs.tagged, labels, inputs.pretrained, replace(cfg, undo=u)).tensors()
                    for u in (0.0, 1.0))
    assert [name for name in kept if not torch.equal(kept[name], undone[name])] == ["head.score.bias"]
