"""The tag losses against hand-worked pixels, their gradients, and every empty region."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tagseg.ops.tag_losses import lse_in, masked, regions_of, weak
from tagseg.types import UsageError


def row(*values: float) -> Tensor:
    """One map of one image, one pixel high."""
    return torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1)


def loss_of(shares: Tensor, tags: Tensor, regions: Tensor, r: float, empty: str = "skip") -> tuple[Tensor, Tensor]:
    """The loss where what is known of an image are its regions, as at full size."""
    return masked(shares, tags, regions, r, regions.any(1), empty)


def everywhere(shares: Tensor) -> Tensor:
    return torch.ones_like(shares, dtype=torch.bool)


def test_priors_s7_01_the_smooth_maximum() -> None:
    for values in ((0.2, 0.8), (0.3, 0.3, 0.3), (0.0, 0.1, 1.0)):
        shares = row(*values)
        for r in (0.5, 5.0, 50.0):
            found, there = lse_in(shares, everywhere(shares), r)
            assert there.all()
            assert shares.mean() - 1e-12 <= found.item() <= shares.max() + 1e-12
    pair = row(0.2, 0.8)
    assert lse_in(pair, everywhere(pair), 1.0)[0].item() == pytest.approx(0.5443, abs=5e-5)
    assert lse_in(pair, everywhere(pair), 5.0)[0].item() == pytest.approx(0.6711, abs=5e-5)
    assert lse_in(pair, everywhere(pair), 1e-6)[0].item() == pytest.approx(0.5, abs=1e-5)
    assert lse_in(pair, everywhere(pair), 1e4)[0].item() == pytest.approx(0.8, abs=1e-3)
    constant = row(0.3, 0.3)
    assert lse_in(constant, everywhere(constant), 5.0)[0].item() == pytest.approx(0.3)
    with pytest.raises(UsageError, match="sharpness"):
        lse_in(pair, everywhere(pair), 0.0)


SHARES = torch.tensor([[0.2, 0.9], [0.7, 0.05], [0.1, 0.05]], dtype=torch.float64).view(1, 3, 1, 2)
TAGS = torch.tensor([[True, False]])
MASK = torch.tensor([[[1, 0]]], dtype=torch.uint8)  # the first pixel is foreground


@pytest.mark.parametrize("r", [0.5, 5.0, 40.0])
@pytest.mark.parametrize("binary", [True, False])
def test_priors_s7_02_two_pixels_by_hand(r: float, binary: bool) -> None:
    loss, missed = loss_of(SHARES, TAGS, regions_of(MASK, TAGS, binary=binary), r)
    expected = -math.log(0.7) - math.log(0.9) - (math.log(0.9) + math.log(0.95)) / 2
    assert expected == pytest.approx(0.54036, abs=5e-6)
    assert loss.item() == pytest.approx(expected)
    assert missed.item() == 0


def test_the_weak_loss_by_hand() -> None:
    pooled = [lse_in(SHARES[:, k : k + 1], everywhere(SHARES[:, :1]), 5.0)[0].item() for k in range(3)]
    expected = -(math.log(pooled[0]) + math.log(pooled[1])) / 2 - math.log(1 - pooled[2])
    assert weak(SHARES, TAGS, torch.ones(1, 1, 2, dtype=torch.bool), 5.0).item() == pytest.approx(expected)
    first = torch.tensor([[[True, False]]])  # only the first pixel belongs to the image
    alone = -(math.log(0.2) + math.log(0.7)) / 2 - math.log(0.9)
    assert weak(SHARES, TAGS, first, 5.0).item() == pytest.approx(alone)


def random_case(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Shares (2,5,6,7) that need a gradient, tags of three of four classes, and labels in which all of them occur."""
    rng = torch.Generator().manual_seed(seed)
    shares = torch.randn(2, 5, 6, 7, generator=rng, dtype=torch.float64).softmax(1).requires_grad_()
    tags = torch.tensor([[True, True, False, False], [False, True, False, True]])
    labels = torch.zeros(2, 6, 7, dtype=torch.uint8)
    labels[0, :2], labels[0, 2:4] = 1, 2
    labels[1, :3, :3], labels[1, 4:] = 2, 4
    return shares, tags, labels


@pytest.mark.parametrize("binary", [True, False])
def test_priors_s7_03_where_the_gradient_goes(binary: bool) -> None:
    shares, tags, labels = random_case()
    loss_of(shares, tags, regions_of(labels, tags, binary=binary), 5.0)[0].sum().backward()
    assert shares.grad is not None
    for image in range(2):
        for k in range(1, 5):
            mine = labels[image] > 0 if binary else labels[image] == k
            gradient = shares.grad[image, k]
            if tags[image, k - 1]:
                assert (gradient[mine] != 0).all()
                assert (gradient[~mine] == 0).all()
            else:
                assert (gradient > 0).all()
        ground = shares.grad[image, 0]
        assert (ground[labels[image] == 0] != 0).all()
        assert (ground[labels[image] != 0] == 0).all()


def test_pixels_that_are_not_known_count_nowhere() -> None:
    shares, tags, labels = random_case()
    labels[:, :, -1] = 255
    whole = loss_of(shares, tags, regions_of(labels, tags, binary=False), 5.0)[0]
    cut = loss_of(shares[..., :-1], tags, regions_of(labels[..., :-1], tags, binary=False), 5.0)[0]
    torch.testing.assert_close(whole, cut)


def test_pixels_of_no_region_that_are_known_count_for_absent_classes_alone() -> None:
    """A cell half of one class, half of another is in no region."""
    shares, tags, labels = random_case()
    regions = regions_of(labels, tags, binary=False)
    regions[:, :, :, -1] = False
    every, _ = masked(shares, tags, regions, 5.0, torch.ones_like(labels, dtype=torch.bool))
    some, _ = loss_of(shares, tags, regions, 5.0)
    nowhere = -(1 - shares[:, 1:]).log() * ~tags[:, :, None, None]
    mean = [part.sum((1, 2, 3)) / (~tags).sum(1) / part[0, 0].numel() for part in (nowhere, nowhere[..., :-1])]
    torch.testing.assert_close(every - some, mean[0] - mean[1])


def test_priors_s7_08_empty_regions_are_counted_and_stay_finite() -> None:
    shares, tags, labels = random_case()
    labels[:] = 0
    lost, missed = loss_of(shares, tags, regions_of(labels, tags, binary=True), 5.0)  # no foreground at all
    assert torch.isfinite(lost).all()
    assert missed.tolist() == [2, 2]
    nobody = tags.new_zeros(2, 4)
    only = loss_of(shares, nobody, regions_of(labels, nobody, binary=True), 5.0)
    assert only[1].tolist() == [0, 0]  # an image without tags lacks nothing
    pooled = lse_in(shares, everywhere(shares), 5.0)[0]
    nowhere = -(1 - shares[:, 1:]).log().mean((2, 3))
    torch.testing.assert_close(only[0], -pooled[:, 0].log() + nowhere.mean(1))
    absent = (nowhere * ~tags).sum(1) / (~tags).sum(1)
    torch.testing.assert_close(lost, -pooled[:, 0].log() + absent)  # what has no region is left out, the rest counts
    full, missed = loss_of(shares, tags, regions_of(labels + 1, tags, binary=True), 5.0)  # no background
    assert torch.isfinite(full).all()
    assert missed.tolist() == [1, 1]
    inside = (-pooled[:, 1:].log() * tags).sum(1) / tags.sum(1)
    torch.testing.assert_close(full, inside + absent)  # no term of a background that is not there
    back, _ = loss_of(shares, tags, regions_of(labels + 1, tags, binary=True), 5.0, "fallback")
    torch.testing.assert_close(back, inside + absent - pooled[:, 0].log())
    every = torch.ones_like(tags)
    present, _ = loss_of(shares, every, regions_of(labels + 1, every, binary=True), 5.0)  # no absent class
    assert torch.isfinite(present).all()
    for case in (lost, full, present):
        shares.grad = None
        case.sum().backward()
        assert shares.grad is not None
        assert torch.isfinite(shares.grad).all()
    assert torch.isfinite(weak(shares, every, labels == 0, 5.0)).all()
    nothing = tags.new_zeros(2, 4)
    assert torch.isfinite(weak(shares, nothing, labels == 0, 5.0)).all()


def test_priors_s7_08_a_lost_class_is_pooled_over_the_others_and_then_over_the_image() -> None:
    shares, tags, labels = random_case()
    labels[0][labels[0] == 2] = 0  # class 2 of the first image has no region of its own
    found, missed = loss_of(shares, tags, regions_of(labels, tags, binary=False), 5.0)
    assert missed.tolist() == [1, 0]
    helped = regions_of(labels, tags, binary=False)
    helped[0, 2] = helped[0, 1]
    expected, _ = loss_of(shares, tags, helped, 5.0)
    torch.testing.assert_close(found, expected)
    labels[:] = 0
    skipped, _ = loss_of(shares, tags, regions_of(labels, tags, binary=False), 5.0)
    whole, missed = loss_of(shares, tags, regions_of(labels, tags, binary=False), 5.0, "fallback")
    assert missed.tolist() == [2, 2]
    pooled, _ = lse_in(shares, everywhere(shares), 5.0)
    extra = torch.stack([-(pooled[i, 1:][tags[i]].log()).mean() for i in range(2)])
    torch.testing.assert_close(whole, skipped + extra)


def test_priors_s7_10_certain_pixels_give_finite_losses_and_gradients() -> None:
    _, tags, labels = random_case()
    for value in (0.0, 1.0):
        shares = torch.full((2, 5, 6, 7), value, requires_grad=True)
        losses = [loss_of(shares, tags, regions_of(labels, tags, binary=b), 5.0)[0] for b in (True, False)]
        losses.append(weak(shares, tags, labels < 255, 5.0))
        total = torch.stack(losses).sum()
        assert torch.isfinite(total)
        total.backward()
        assert shares.grad is not None
        assert torch.isfinite(shares.grad).all()


def test_priors_s7_07_with_one_tag_both_losses_are_the_same() -> None:
    shares, _, labels = random_case()
    tags = torch.tensor([[True, False, False, False], [False, False, False, True]])
    labels[0][labels[0] > 0], labels[1][labels[1] > 0] = 1, 4
    both = [loss_of(shares, tags, regions_of(labels, tags, binary=b), 5.0)[0] for b in (True, False)]
    torch.testing.assert_close(both[0], both[1])


def test_priors_s7_12_each_image_counts_for_itself() -> None:
    shares, tags, labels = random_case()
    together, _ = loss_of(shares, tags, regions_of(labels, tags, binary=False), 5.0)
    alone = [loss_of(shares[i : i + 1], tags[i : i + 1], regions_of(labels[i : i + 1], tags[i : i + 1], binary=False),
                    5.0)[0] for i in range(2)]  # fmt: skip
    torch.testing.assert_close(together, torch.cat(alone))
