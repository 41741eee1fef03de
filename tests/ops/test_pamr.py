"""Pixel-adaptive mask refinement against a loop over pixels, and the properties that a mean over neighbours has."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tagseg.ops.pamr import affinity, pamr
from tagseg.types import DataError, UsageError


def slow(image: np.ndarray, masks: np.ndarray, iterations: int, dilations: tuple[int, ...]) -> np.ndarray:
    """The definition, pixel by pixel in float64: image (3,h,w), masks (k,h,w)."""
    h, w = image.shape[1:]
    window = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]

    def at(y: int, x: int) -> tuple[int, int]:
        return min(max(y, 0), h - 1), min(max(x, 0), w - 1)

    weights = {}
    for y in range(h):
        for x in range(w):
            everyone = [at(y + d * dy, x + d * dx) for d in dilations for dy, dx in window]
            around = [at(y + d * dy, x + d * dx) for d in dilations for dy, dx in window if dy or dx]
            logits = np.zeros(len(around))
            for channel in image:
                deviation = np.std([channel[p] for p in everyone], ddof=1)
                logits += [-abs(channel[p] - channel[y, x]) / (1e-8 + 0.1 * deviation) / 3 for p in around]
            share = np.exp(logits - logits.max())
            weights[y, x] = list(zip(around, share / share.sum(), strict=True))
    for _ in range(iterations):
        masks = np.array([[[sum(s * m[p] for p, s in weights[y, x]) for x in range(w)] for y in range(h)]
                          for m in masks])
    return masks


def scene(n: int = 2, k: int = 2, h: int = 9, w: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(n, 3, h, w, generator=generator) * 0.2
    images[:, :, :, w // 2 :] += 0.6
    return images, torch.rand(n, k, h, w, generator=generator)


@pytest.mark.parametrize("dilations", [(1,), (1, 2, 4), (3, 24)])
@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_it_is_the_definition(dilations: tuple[int, ...], iterations: int) -> None:
    images, masks = scene()
    found = pamr(images, masks, iterations, dilations)
    assert found.dtype == torch.float32
    for image, mask, one in zip(images, masks, found, strict=True):
        expected = slow(image.double().numpy(), mask.double().numpy(), iterations, dilations)
        assert one.numpy() == pytest.approx(expected, abs=2e-6)


def test_the_weights_of_a_pixel_sum_to_one() -> None:
    images, _ = scene()
    weights = affinity(images)
    assert weights.shape == (2, 48, 9, 11)
    assert torch.allclose(weights.sum(1), torch.ones(2, 9, 11), atol=1e-6)
    assert weights.min() >= 0


def test_a_constant_map_stays_and_the_range_is_kept() -> None:
    images, masks = scene()
    masks[:, 0] = 0.3
    found = pamr(images, masks)
    assert torch.allclose(found[:, 0], torch.full_like(found[:, 0], 0.3), atol=1e-6)
    assert found[:, 1].min() >= masks[:, 1].min() - 1e-6
    assert found[:, 1].max() <= masks[:, 1].max() + 1e-6


def test_the_result_is_linear_in_the_masks_and_brightness_does_not_count() -> None:
    images, masks = scene()
    both = pamr(images, 0.25 * masks[:, :1] + 0.5 * masks[:, 1:])
    parts = pamr(images, masks)
    assert torch.allclose(both, 0.25 * parts[:, :1] + 0.5 * parts[:, 1:], atol=1e-6)
    assert torch.allclose(pamr(images * 255, masks), parts, atol=1e-4)


def test_a_batch_gives_what_its_images_give_alone() -> None:
    images, masks = scene(n=3)
    alone = torch.cat([pamr(images[i : i + 1], masks[i : i + 1]) for i in range(3)])
    assert torch.allclose(pamr(images, masks), alone, atol=1e-6)


def test_scores_stop_at_an_edge_of_the_image() -> None:
    image = torch.zeros(1, 3, 24, 24)
    image[..., 12:] = 1
    mask = torch.zeros(1, 1, 24, 24)
    mask[..., :9] = 1  # three columns short of the edge
    found = pamr(image, mask, dilations=(1, 2, 4))[0, 0]
    assert (found[:, :12] > 0.5).all()
    assert (found[:, 12:] < 0.1).all()


def test_an_even_image_averages_plainly() -> None:
    mask = torch.zeros(1, 1, 5, 5)
    mask[..., 2, 2] = 8
    found = pamr(torch.full((1, 3, 5, 5), 0.3), mask, 1, (1,))[0, 0]
    expected = torch.zeros(5, 5)
    expected[1:4, 1:4] = 1
    expected[2, 2] = 0  # a pixel is no neighbour of its own
    assert torch.allclose(found, expected, atol=1e-6)


def test_inputs_are_left_alone() -> None:
    images, masks = scene()
    before = images.clone(), masks.clone()
    pamr(images, masks, 2)
    assert torch.equal(images, before[0])
    assert torch.equal(masks, before[1])


def test_errors_name_what_was_found() -> None:
    images, masks = scene()
    with pytest.raises(DataError, match=r"masks \(2, 2, 8, 11\).*same n, h and w"):
        pamr(images, masks[:, :, 1:])
    with pytest.raises(DataError, match=r"same n, h and w"):
        pamr(images, masks[:1])
    for iterations, dilations in ((-1, (1,)), (1, ()), (1, (0, 1))):
        with pytest.raises(UsageError, match=r"expected 0 or more"):
            pamr(images, masks, iterations, dilations)
