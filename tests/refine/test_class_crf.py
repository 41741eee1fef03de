"""Each class by itself against background, then the surest: by hand, and what may be labelled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tagseg.ops import crf
from tagseg.refine.class_crf import decided, own_foregrounds
from tagseg.refine.crf import Crf

CUT = Crf(iterations=0)


def image(h: int = 8, w: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, h, w), dtype=np.uint8)


def test_transfernet_s7_12_one_tag_labels_it_or_background_and_nothing_is_background() -> None:
    shares = np.random.default_rng(1).random((1, 8, 8)).astype(np.float32)
    found = decided("a", image(), shares, np.array([3]), CUT)
    assert np.array_equal(found.pixels, np.where(shares[0] > 0.5, 3, 0))
    nothing = decided("a", image(), 0.4 * np.ones((2, 8, 8), np.float32), np.array([1, 2]), CUT)
    assert not nothing.pixels.any()
    assert found.confidence is not None
    assert found.confidence.min() >= 127


def test_the_surest_class_of_those_that_their_own_crf_calls_foreground_wins() -> None:
    shares = np.array([[[0.9, 0.6, 0.55, 0.2]], [[0.7, 0.8, 0.3, 0.45]]], np.float32)
    found = decided("a", image(1, 4), shares, np.array([2, 5]), CUT)
    assert found.pixels.tolist() == [[2, 5, 2, 0]]
    unsure = decided("a", image(1, 4), shares, np.array([2, 5]), Crf(iterations=0, unsure_below=0.6))
    assert unsure.pixels.tolist() == [[2, 5, 255, 0]]


def test_the_crf_draws_each_class_to_the_edges() -> None:
    picture = np.zeros((3, 16, 16), np.uint8)
    picture[:, :, 8:] = 255
    share = np.full((16, 16), 0.35, np.float32)
    share[:, 6:] = 0.9
    assert own_foregrounds(picture, share[None], CUT)[0, :, 6:].all()
    drawn = own_foregrounds(picture, share[None], Crf(3.0, 3.0, 20.0, 3.0, 5.0, 10))[0]
    assert drawn[:, 8:].all()
    assert not drawn[:, :4].any()


def test_on_another_device_the_same_is_drawn() -> None:
    rng = np.random.default_rng(3)
    picture, shares = np.repeat(rng.integers(0, 256, (3, 6, 6), np.uint8), 4, axis=2), rng.random((2, 6, 24))
    crf = Crf(3.0, 3.0, 20.0, 3.0, 5.0, 10)
    expected = own_foregrounds(picture, shares.astype(np.float32), crf)
    elsewhere = own_foregrounds(picture, shares.astype(np.float32), replace(crf, device="cpu:0"))  # not "cpu": by torch
    assert expected.any()
    assert not expected.all()
    assert (elsewhere == expected).mean() >= 0.99


def test_the_kernels_of_an_image_are_made_once_for_all_its_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    picture, shares = image(24, 32), np.random.default_rng(4).random((3, 24, 32)).astype(np.float32)
    known = np.ascontiguousarray(picture.transpose(1, 2, 0))
    lengths = {"sxy_gaussian": 3.0, "sxy_bilateral": 20.0, "srgb": 3.0}
    alone = [crf.dense_crf(known, np.stack([1 - share, share]), **lengths, compat_gaussian=3.0, compat_bilateral=5.0)
             for share in shares]  # fmt: skip
    made: list[tuple[int, ...]] = []
    kernels = crf.kernels
    monkeypatch.setattr(crf, "kernels", lambda photo, **more: made.append(photo.shape) or kernels(photo, **more))
    found = own_foregrounds(picture, shares, Crf(3.0, 3.0, 20.0, 3.0, 5.0, 10))
    assert np.array_equal(found, [background < foreground for background, foreground in alone])
    assert found.any()
    assert not found.all()
    assert made == [(24, 32, 3)]
