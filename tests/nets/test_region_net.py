"""RegionNet: means of features against pixels enlarged and averaged, boxes against a plain reading of the geometry."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tagseg.nets.backbones import Tap, build
from tagseg.nets.region_net import SIDE, BoxHead, MeanHead, RegionNet
from tagseg.ops import regions


def described(net: RegionNet, ids: np.ndarray, count: int) -> list[Tensor]:
    if net.form == "roi_mask":
        found = regions.boxed(ids, count, in_size=ids.shape, side=SIDE)
    else:
        with torch.no_grad():
            grid = net.body(torch.zeros(1, 3, *ids.shape)).shape[2:]
        found = regions.pooled(ids, count, stride=net.tap.stride, offset=net.tap.offset, in_size=ids.shape,
                               grid=(grid[0], grid[1]))
    return [torch.from_numpy(part)[None] for part in found]


def quarters(h: int = 64, w: int = 96) -> np.ndarray:
    ids = np.zeros((h, w), np.int32)
    ids[:, w // 2 :] += 1
    ids[h // 2 :] += 2
    return ids


@pytest.mark.parametrize("form", ["mean_pool", "roi_mask"])
@pytest.mark.parametrize("name", ["small", "squeezenet1_1", "mobilenet_v2"])
def test_logits_of_every_region_and_gradients_for_every_parameter(form: str, name: str) -> None:
    torch.manual_seed(0)
    net = RegionNet(build(name), 4, form=form, width=16, reduced=8).eval()  # type: ignore[arg-type]
    out = net(torch.randn(1, 3, 64, 96), *described(net, quarters(), 4))
    assert out.shape == (1, 4, 4)
    out.square().sum().backward()
    read = [*net.head.parameters(), *net.body.reduce.parameters()]
    assert read
    assert all(p.grad is not None for p in read)
    assert any(p.grad.abs().sum() > 0 for p in net.body.backbone.parameters() if p.grad is not None)


@pytest.mark.parametrize("form", ["mean_pool", "roi_mask"])
def test_a_region_is_told_by_its_own_features(form: str) -> None:
    tap = Tap("last", 3, 8, 3.5)
    torch.manual_seed(0)
    head = MeanHead(3, 2, 8) if form == "mean_pool" else BoxHead(tap, 3, 2, 8)
    head.eval()
    ids = quarters()
    parts = (regions.pooled(ids, 4, stride=8, offset=3.5, in_size=(64, 96), grid=(8, 12)) if form == "mean_pool"
             else regions.boxed(ids, 4, in_size=(64, 96), side=SIDE))
    rows = [torch.from_numpy(part)[None] for part in parts]
    features = torch.randn(1, 3, 8, 12)
    changed = features.clone()
    changed[:, :, :3, :5] += 5  # well inside of region 0
    moved = (head(changed, *rows) - head(features, *rows))[0].abs().sum(1)
    assert moved[0] > 1e-3
    assert moved[1:].max() < 1e-5


@pytest.mark.parametrize(("stride", "offset"), [(16, 7.5), (16, 0.0), (16, 15.0), (8, 3.5)])
def test_boxes_are_read_where_the_cells_lie(stride: int, offset: float) -> None:
    """On a ramp every cell of a box is its own centre: features hold their place in the image."""
    tap = Tap("last", 1, stride, offset)
    head = BoxHead(tap, 1, 1, 4)
    seen: list[Tensor] = []
    head.layers = torch.nn.Sequential(torch.nn.Identity())
    head.layers.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    cells = torch.arange(12, dtype=torch.float32) * stride + offset
    features = cells.view(1, 1, 1, -1).expand(1, 1, 12, 12).contiguous()
    left, right = 4.0 * stride, 7.0 * stride  # pixels 4·stride to 7·stride - 1
    box = torch.tensor([[[left, 3.0 * stride, right, 6.0 * stride]]])
    head(features, torch.zeros(1, 1, 0), box, torch.ones(1, 1, SIDE, SIDE))
    read = seen[0].view(2, SIDE, SIDE)[0, 0]
    centres = left - 0.5 + (torch.arange(SIDE) + 0.5) * (right - left) / SIDE
    torch.testing.assert_close(read, centres, atol=1e-3, rtol=0)


def test_what_lies_outside_of_the_region_is_zeroed_in_the_second_half_of_a_box() -> None:
    tap = Tap("last", 1, 4, 1.5)
    head = BoxHead(tap, 1, 1, 4)
    seen: list[Tensor] = []
    head.layers = torch.nn.Sequential(torch.nn.Identity())
    head.layers.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    ids = np.full((28, 28), 1, np.int32)
    ids[:, :14], ids[:14, :] = 0, 0  # an L; its box is the whole image
    found = regions.boxed(ids, 2, in_size=(28, 28), side=SIDE)
    head(torch.ones(1, 1, 7, 7), torch.zeros(1, 2, 0), *(torch.from_numpy(p)[None] for p in found[1:]))
    whole, own = seen[0][0].view(2, SIDE, SIDE)
    assert torch.all(whole == 1)
    np.testing.assert_allclose(own.numpy(), found.masks[0], atol=1e-6)
    assert own[:3, :3].min() == 1
    assert own[4:, 4:].max() == 0


def test_an_image_without_regions_gives_no_logits_and_no_error() -> None:
    for form in ("mean_pool", "roi_mask"):
        net = RegionNet(build("small"), 3, form=form, width=8, reduced=4).eval()
        rows = [torch.zeros(1, 0, 16), torch.zeros(1, 0, 4), torch.zeros(1, 0, SIDE, SIDE)]
        assert net(torch.randn(1, 3, 64, 64), *rows).shape == (1, 0, 3)
