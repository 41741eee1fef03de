"""Masks from the segmenter: tags play no part, codes follow the set's background, the CRF keeps its floor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tagseg.artifacts import Weights, write_weights
from tagseg.ops import regions
from tagseg.ops.geometry import resample
from tagseg.segment import predict, train
from tagseg.segment.predict import EdgeCrf, PredictTagged, sharpened
from tagseg.segment.train import Segment
from tagseg.store import Run, Work, stage
from tiny import Tiny


def test_tags_are_not_looked_at(trained: Tiny, tmp_path: Path) -> None:
    tagged, cfg = trained.prepared.inputs.tagged, trained.prepared.cfg.post
    shuffled = replace(tagged, tags=np.roll(tagged.tags, 1, axis=0))
    bare = tagged.without_tags()
    made = [predict.labels(Run(tmp_path), images, trained.fitted.model, cfg) for images in (tagged, shuffled, bare)]
    assert len({labels.key for labels in made}) == 3  # three stages, and yet
    assert made[0].record["outputs"] == made[1].record["outputs"] == made[2].record["outputs"]


def test_masks_by_plain_arithmetic(trained: Tiny, tmp_path: Path) -> None:
    tagged, cfg = trained.prepared.inputs.tagged.limit(3), trained.prepared.cfg.predict
    model = train.load(trained.fitted.model)
    for found in predict.labels(Run(tmp_path), tagged, trained.fitted.model, cfg):
        pixels = torch.from_numpy(tagged.source.read(found.id))[None].float() / 255
        with torch.no_grad():
            logits = model(model.backbone.preprocess(pixels))
        probability = resample(logits, stride=model.stride, offset=model.offset, in_size=(48, 48),
                               out_size=(48, 48)).softmax(1)[0]
        assert np.array_equal(found.pixels, probability.argmax(0).numpy())
        assert found.confidence is not None
        assert np.abs(found.confidence - 255 * probability.max(0).values.numpy()).max() <= 0.51


@pytest.mark.parametrize("tags", ["bayes", "allow"])
def test_known_tags_enter_the_masks_by_plain_arithmetic(trained: Tiny, tmp_path: Path, tags: regions.Tags) -> None:
    tagged, run = trained.prepared.inputs.tagged, Run(tmp_path)
    model, some = train.load(trained.fitted.model), tagged.limit(6)
    cfg = PredictTagged(**vars(trained.prepared.cfg.predict), tags=tags)
    plain = predict.labels(run, some, trained.fitted.model, trained.prepared.cfg.predict)
    changed = 0
    for found in predict.restricted(run, some, trained.fitted.model, cfg):
        present = tagged.tags_of(found.id)
        pixels = torch.from_numpy(tagged.source.read(found.id))[None].float() / 255
        with torch.no_grad():
            logits = model(model.backbone.preprocess(pixels))
        probability = resample(logits, stride=model.stride, offset=model.offset, in_size=(48, 48),
                               out_size=(48, 48)).softmax(1)[0].numpy()
        share = tagged.tags.mean(0) if tags == "bayes" else np.ones(len(present))  # of all, not of these
        allowed = np.concatenate([[1], np.where(present, 1 / share.clip(1e-6), 0)])
        assert np.array_equal(found.pixels, (probability * allowed[:, None, None]).argmax(0))
        changed += int((found.pixels != plain.get(found.id).pixels).sum())
    assert changed


def test_masks_have_the_images_size_whatever_the_view(trained: Tiny, tmp_path: Path) -> None:
    tagged, cfg = trained.prepared.inputs.tagged.limit(2), trained.prepared.cfg.predict
    cfg = replace(cfg, views=replace(cfg.views, size=64, scales=(1.0, 0.5), flip=True))
    for found in predict.labels(Run(tmp_path), tagged, trained.fitted.model, cfg):
        assert found.pixels.shape == tagged.source.size(found.id)


@dataclass(frozen=True)
class Nothing:
    """A stage without settings."""


@stage(Weights, version=1)
def untrained(work: Work, cfg: Nothing) -> None:
    """A segmenter of three classes without background, from random numbers."""
    torch.manual_seed(0)
    meta = {"backbone": "small", "stride": 16, "head": "v3plus", "width": 8, "size": 48, "crop": [48, 48],
            "classes": ["a", "b", "c"], "has_background": False}
    model = train.make(Segment(backbone="small", stride=16, width=8), 3, None)
    torch.nn.init.normal_(model.head.score.weight)  # type: ignore[union-attr,arg-type]
    write_weights(work, model.state_dict(), meta)


@pytest.mark.parametrize("iterations", [0, 1])
def test_a_set_without_background_gets_classes_only(trained: Tiny, tmp_path: Path, iterations: int) -> None:
    run, images = Run(tmp_path), trained.prepared.inputs.tagged.limit(6).without_tags()
    weights = untrained(run, Nothing())
    cfg = replace(trained.prepared.cfg.predict, crf=EdgeCrf(iterations=iterations))
    values = {int(v) for found in predict.labels(run, images, weights, cfg) for v in np.unique(found.pixels)}
    assert values <= {1, 2, 3}
    assert len(values) > 1


def test_labels_under_the_floor_everywhere_are_left_out_of_the_crf() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (3, 20, 20), np.uint8)
    probability = np.stack([np.full((20, 20), p, np.float32) for p in (0.57, 0.4, 0.03)])
    found = sharpened(image, probability, EdgeCrf(iterations=2, floor=0.05))
    assert (found[2] == 0).all()
    assert np.allclose(found.sum(0), 1, atol=1e-4)
    low = sharpened(image, probability, EdgeCrf(iterations=2, floor=0.01))
    assert (low[2] > 0).any()


def test_a_single_label_above_the_floor_needs_no_crf() -> None:
    probability = np.stack([np.full((8, 8), p, np.float32) for p in (0.97, 0.03)])
    image = np.zeros((3, 8, 8), np.uint8)
    assert np.array_equal(sharpened(image, probability, EdgeCrf(iterations=3, floor=0.05)), probability)


def test_the_crf_after_prediction_is_off_unless_asked_for(trained: Tiny) -> None:
    assert trained.prepared.cfg.predict.crf.iterations == 0
    assert trained.prepared.cfg.post.crf.iterations > 0


@pytest.mark.parametrize("workers", [2, 4])
def test_any_number_of_workers_gives_the_same_bytes(trained: Tiny, tmp_path: Path, workers: int) -> None:
    images, cfg = trained.prepared.inputs.tagged.without_tags(), trained.prepared.cfg.post
    one = predict.labels(Run(tmp_path / "1", workers=1), images, trained.fitted.model, cfg)
    many = predict.labels(Run(tmp_path / "n", workers=workers), images, trained.fitted.model, cfg)
    assert one.record["outputs"] == many.record["outputs"]
