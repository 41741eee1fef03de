"""Affinity training: which pairs count and how much, the largest boundary on a path, and that borders are learned."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagseg.artifacts import LabelSet, MapSet, Weights, write_labels, write_maps
from tagseg.data.index import TaggedSet
from tagseg.data.loader import Augment
from tagseg.data.weights import Pretrained
from tagseg.inference import Views
from tagseg.localize import affinity
from tagseg.localize.affinity import (
    APART,
    BOTH_BACKGROUND,
    SAME_CLASS,
    Affinity,
    Paired,
    PairLoss,
    astray,
    kinds,
    path_affinity,
)
from tagseg.nets.affinity_net import EdgeNet, affinity_net
from tagseg.nets.backbones import build
from tagseg.ops import affinity as ops
from tagseg.ops.geometry import align, enlarge, resample, resize_labels
from tagseg.refine import affinity as walks
from tagseg.store import Run, Work, stage
from tagseg.training.loop import Batch
from tagseg.training.schedule import Schedule
from tagseg.types import IGNORE, ClassMaps, Interrupted, Labels
from tiny import Tiny

RATES = Schedule(0.0, 320, 320, batch=8, optimiser="adamw", lr=3e-3, head_lr=3e-3, weight_decay=1e-2)
CFG = Affinity("small", 8, width=16, radius=5, augment=Augment(size=96, scale=(0.9, 1.2), colour=0.1),
               schedule=RATES, seed=0, device="cpu", precision="fp32")
SHORT = replace(CFG, schedule=replace(RATES, min_images=16, max_images=16))


# ---- pairs ----

@pytest.mark.parametrize(("radius", "size"), [(5, (9, 12)), (10, (12, 11)), (5, (3, 8)), (2, (4, 4))])
def test_the_largest_boundary_of_a_path_and_its_gradient(radius: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    raw = rng.random((2, *size)).astype(np.float32)
    boundary = torch.from_numpy(raw).requires_grad_()
    found = path_affinity(boundary, radius)
    plain, gradient = torch.zeros(found.shape), torch.zeros(2, *size)
    inside = torch.zeros(found.shape, dtype=torch.bool)
    for f, (dy, dx) in enumerate(ops.offsets(radius)):
        for y in range(size[0] - dy):
            for x in range(max(0, -dx), size[1] - max(0, dx)):
                cells = [(y + r, x + c) for r, c in ops.path(dy, dx)]
                for n in range(2):
                    best = max(cells, key=lambda cell: raw[n][cell])
                    plain[n, f, y, x], inside[n, f, y, x] = 1 - float(raw[n][best]), True
                    gradient[n][best] -= f + 1
    torch.testing.assert_close(found[inside], plain[inside])
    for n in range(2):
        walked = torch.from_numpy(ops.path_affinity(raw[n], radius))  # what the walk will see
        torch.testing.assert_close(found[n][inside[n]], walked[inside[n]], atol=1e-6, rtol=0)
    (found * inside * torch.arange(1, found.shape[1] + 1).view(-1, 1, 1)).sum().backward()
    assert boundary.grad is not None
    torch.testing.assert_close(boundary.grad, gradient)


def test_kinds_of_pairs_one_by_one() -> None:
    rng = np.random.default_rng(1)
    labels = rng.choice([0, 0, 1, 2, IGNORE], (2, 7, 9)).astype(np.uint8)
    found = kinds(torch.from_numpy(labels), 4)
    for f, (dy, dx) in enumerate(ops.offsets(4)):
        for y in range(7):
            for x in range(9):
                wanted = [0, 0]
                if y + dy < 7 and 0 <= x + dx < 9:
                    for n in range(2):
                        a, b = int(labels[n, y, x]), int(labels[n, y + dy, x + dx])
                        same = BOTH_BACKGROUND if a == 0 else SAME_CLASS
                        wanted[n] = 0 if IGNORE in (a, b) else APART if a != b else same
                assert found[:, f, y, x].tolist() == wanted


def some_batch(step: int) -> Batch:
    rng = np.random.default_rng(step)
    labels = rng.choice([0, 1, 3, IGNORE], (4, 8, 8)).astype(np.uint8).repeat(4, 1).repeat(4, 2)
    labels[0] = IGNORE  # an image of which nothing is known
    return {"images": torch.from_numpy(rng.integers(0, 256, (4, 3, 32, 32), np.uint8)),
            "labels": torch.from_numpy(labels)}


def test_each_kind_counts_as_a_whole_whatever_its_number() -> None:
    batch = Paired(some_batch, 4, 3)(0)
    pairs, shares = batch["pairs"], batch["shares"]
    assert torch.equal(pairs, kinds(resize_labels(some_batch(0)["labels"], (8, 8)), 3))
    for kind, whole in ((BOTH_BACKGROUND, 0.25), (SAME_CLASS, 0.25), (APART, 0.5)):
        assert (pairs == kind).sum() * shares[0, kind - 1] == pytest.approx(whole)
    assert not pairs[0].any()


# ---- the loss ----

def net(displacement: bool = False) -> EdgeNet:
    torch.manual_seed(0)
    model = affinity_net("irn", build("small"), align=align, width=8, displacement=displacement)
    assert isinstance(model, EdgeNet)
    return model.eval()


def test_the_loss_of_one_boundary_everywhere_by_hand() -> None:
    model = net()
    nn.init.zeros_(model.score.weight)
    assert model.score.bias is not None
    nn.init.constant_(model.score.bias, 1.0)
    p = 1 / (1 + math.exp(-1))
    batch = Paired(some_batch, 4, 4)(0)
    loss = PairLoss(4).total(model, batch).item()
    assert loss == pytest.approx(-0.5 * math.log(1 - p) - 0.5 * math.log(p), rel=1e-4)


@pytest.mark.parametrize("displacement", [False, True])
def test_splitting_a_batch_changes_nothing(displacement: bool) -> None:
    model, loss = net(displacement), PairLoss(4)
    batch = Paired(some_batch, 4, 4)(0)
    halves = [{n: t[part] for n, t in batch.items()} for part in (slice(0, 2), slice(2, 4))]
    whole = loss.total(model, batch).item()
    assert whole == pytest.approx(sum(loss.total(model, half).item() for half in halves), rel=1e-5)
    assert loss.count(batch) == loss.count(halves[0]) == 1


def test_displacements_that_point_at_the_centre_are_right() -> None:
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    centred = torch.stack([4 - y, 4 - x])[None]  # each cell's way to the centre (4, 4)
    pairs = kinds(torch.ones(1, 9, 9, dtype=torch.uint8), 4)
    off = astray(centred, pairs, 4)
    assert off[pairs == SAME_CLASS].abs().max() == 0
    background = kinds(torch.zeros(1, 9, 9, dtype=torch.uint8), 4)
    same = background == BOTH_BACKGROUND
    assert astray(torch.ones_like(centred), background, 4)[same].abs().max() == 0
    assert astray(centred, background, 4)[same].min() >= 1
    wrong = astray(torch.zeros_like(centred), pairs, 4)
    for f, (dy, dx) in enumerate(ops.offsets(4)):
        assert wrong[0, f, 0, 4] == abs(int(dy)) + abs(int(dx))


# ---- training ----

@stage(LabelSet, version=1)
def sure(work: Work, tagged: TaggedSet, truth: object, cfg: Affinity) -> None:
    """Labels as good as truth, unsure within two pixels of every border, as confident labels are."""
    def one(sample: str) -> Labels:
        mask = torch.from_numpy(truth.mask(sample))  # type: ignore[attr-defined]
        near = F.max_pool2d(mask[None].float(), 5, 1, 2)[0] != -F.max_pool2d(-mask[None].float(), 5, 1, 2)[0]
        return Labels(sample, torch.where(near, IGNORE, mask).to(torch.uint8).numpy())

    write_labels(work, tagged.ids, lambda ids: map(one, ids), {})


@pytest.fixture(scope="module")
def labels(trained: Tiny, tmp_path_factory: pytest.TempPathFactory) -> LabelSet:
    prepared = trained.prepared
    return sure(Run(tmp_path_factory.mktemp("labels")), prepared.inputs.tagged, prepared.truth, CFG)


def learned(trained: Tiny, labels: LabelSet, folder: Path, cfg: Affinity = SHORT,
            pretrained: Pretrained | None = None) -> Weights:
    inputs = trained.prepared.inputs
    return affinity.train(Run(folder), inputs.tagged, labels, pretrained or inputs.pretrained, cfg)


def boundaries(weights: Weights, image: np.ndarray) -> Tensor:
    """The boundary (24,24) of an image of 48 pixels shown at 96."""
    meta = weights.meta
    model = affinity_net(meta["form"], build(meta["backbone"], stride=meta["stride"]), align=align,
                         width=meta["width"], displacement=meta["displacement"])
    model.load_state_dict(weights.tensors())
    large = F.interpolate(torch.from_numpy(image)[None].float() / 255, size=(96, 96), mode="bilinear")
    with torch.no_grad():
        raw = model.eval()(model.preprocess(large))
    tap = model.tap
    out = resample(raw, stride=tap.stride, offset=tap.offset, in_size=(96, 96), out_size=(24, 24))
    return torch.sigmoid(out[0, 0])


def test_the_loss_falls_and_borders_are_seen(trained: Tiny, labels: LabelSet, tmp_path: Path) -> None:
    weights = learned(trained, labels, tmp_path, CFG)
    history = [loss for _, loss, _ in json.loads((weights.path / "history.json").read_text())]
    assert len(history) == 40
    assert np.mean(history[-5:]) < 0.9 * np.mean(history[:5])
    truth, tagged = trained.prepared.truth, trained.prepared.inputs.tagged
    assert truth is not None
    at, off = [], []
    for sample in tagged.ids:
        found = boundaries(weights, tagged.source.read(sample))
        mask = torch.from_numpy(truth.mask(sample))[None].float()
        spread = F.max_pool2d(mask, 3, 1, 1) + F.max_pool2d(-mask, 3, 1, 1)  # 0 where the neighbourhood agrees
        border = F.max_pool2d((spread != 0).float(), 2)[0] > 0
        far = F.max_pool2d(border[None].float(), 5, 1, 2)[0] == 0
        at.append(found[border])
        off.append(found[far])
    assert torch.cat(at).mean() > 1.5 * torch.cat(off).mean()
    few = replace(CFG, schedule=replace(RATES, min_images=8, max_images=8))  # one step: boundaries of no meaning
    blind = learned(trained, labels, tmp_path, few)
    assert contrast(trained, tmp_path, weights) > contrast(trained, tmp_path, blind) + 0.1


@stage(MapSet, version=1)
def cores(work: Work, tagged: TaggedSet, truth: object, cfg: Affinity) -> None:
    """Maps that are 1 inside each object, away from its border."""
    def one(sample: str) -> ClassMaps:
        mask = torch.from_numpy(truth.mask(sample))  # type: ignore[attr-defined]
        classes = np.flatnonzero(tagged.tags_of(sample)) + 1
        other = mask != torch.from_numpy(classes)[:, None, None]
        inside = 1 - F.max_pool2d(other[None].float(), 7, 1, 3)[0] if len(classes) else torch.zeros(0, 48, 48)
        return ClassMaps(sample, classes, inside.numpy(), tagged.source.size(sample))

    write_maps(work, tagged.ids, lambda ids: map(one, ids), {})


def contrast(trained: Tiny, folder: Path, weights: Weights) -> float:
    """Mean score of the walk from the cores inside objects, minus outside."""
    tagged, truth, run = trained.prepared.inputs.tagged, trained.prepared.truth, Run(folder)
    assert truth is not None
    cfg = walks.Walk(views=Views(size=96), device="cpu", precision="fp32")
    inside, outside = [], []
    for maps in walks.maps(run, tagged, cores(run, tagged, truth, CFG), weights, cfg):
        for c, scores in zip(maps.classes, enlarge(maps.scores, maps.size), strict=True):
            inside.append(scores[truth.mask(maps.id) == c])
            outside.append(scores[truth.mask(maps.id) != c])
    return float(np.concatenate(inside).mean() - np.concatenate(outside).mean())


def test_a_pretrained_backbone_is_left_as_it_came(trained: Tiny, labels: LabelSet, tmp_path: Path) -> None:
    torch.manual_seed(5)
    source = build("small", stride=8)
    parts = [layer for stage in source.body.stages.values()
             for layer in (stage if isinstance(stage, nn.Sequential) else [stage])]
    state = {f"features.{n}": t for n, t in nn.Sequential(*parts).state_dict().items()}
    weights = learned(trained, labels, tmp_path, pretrained=Pretrained("small", "a test", "1" * 64, state))
    kept = {n: t for n, t in weights.tensors().items() if n.startswith("stages.") and "num_batches" not in n}
    own = source.state_dict()
    assert kept
    assert all(torch.equal(t, own[n.removeprefix("stages.backbone.")]) for n, t in kept.items())
    free = learned(trained, labels, tmp_path)
    assert any(not torch.equal(t, kept[n]) for n, t in free.tensors().items() if n in kept)


@pytest.mark.parametrize("change", [
    {"form": "psa"}, {"displacement": True}, {"radius": 3}, {"width": 8}, {"seed": 1}, {"positives": 0.0}])
def test_each_setting_gives_other_weights(trained: Tiny, labels: LabelSet, tmp_path: Path,
                                          change: dict[str, object]) -> None:
    cfg = replace(SHORT, **change)  # type: ignore[arg-type]
    plain, other = learned(trained, labels, tmp_path), learned(trained, labels, tmp_path, cfg)
    assert plain.key != other.key
    same = [torch.equal(t, other.tensors()[n]) for n, t in plain.tensors().items()
            if n in other.tensors() and t.shape == other.tensors()[n].shape]
    if "positives" not in change:  # every image of this set holds a tag: nothing to repeat
        assert not all(same) or len(same) != len(plain.tensors())
    assert all(math.isfinite(loss) for _, loss, _ in json.loads((other.path / "history.json").read_text()))


def test_the_radius_is_the_forms_own(trained: Tiny, labels: LabelSet, tmp_path: Path) -> None:
    for form, wanted in (("irn", 10), ("psa", 5)):
        cfg = replace(SHORT, radius=None, form=form)  # type: ignore[arg-type]
        assert learned(trained, labels, tmp_path, cfg).meta["radius"] == wanted


def test_interrupted_it_goes_on_to_the_same_bytes(trained: Tiny, labels: LabelSet, tmp_path: Path) -> None:
    cfg = replace(CFG, schedule=replace(RATES, min_images=48, max_images=48))
    whole = learned(trained, labels, tmp_path / "whole", cfg)
    done: list[int] = []
    inputs = trained.prepared.inputs
    run = Run(tmp_path / "cut", progress=lambda *told: done.append(told[1]), stopping=lambda: len(done) == 3)
    with pytest.raises(Interrupted):
        affinity.train(run, inputs.tagged, labels, inputs.pretrained, cfg)
    resumed = learned(trained, labels, tmp_path / "cut", cfg)
    assert 0 < len(done) < 6
    assert resumed.record["outputs"] == whole.record["outputs"]
