"""Outputs over views do not depend on workers, neighbours or chunks, and mirrored images give mirrored outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tagseg import inference
from tagseg.inference import Network, Seen, Views, count, net_shape, predict, resized
from tagseg.localize.cam import network_of
from tagseg.localize.classify import TagNet
from tagseg.nets import folding
from tagseg.nets.backbones import build
from tagseg.nets.captured import Captured
from tagseg.nets.folding import ConvAct, folded
from tagseg.store import Run, Work
from tagseg.types import I64, U8

IDS = tuple(f"{i:02d}" for i in range(13))
VIEWS = Views(size=48, scales=(1.0,), flip=True, batch=3)
SHAPES = ((40, 60), (60, 40), (48, 48), (49, 47), (33, 90))


@dataclass(frozen=True)
class Photos:
    """Smooth random photos of five shapes; an id that ends in "m" is the mirrored photo."""

    def size(self, id: str) -> tuple[int, int]:
        return SHAPES[int(id.rstrip("m")) % len(SHAPES)]

    def read(self, id: str) -> U8:
        small = np.random.default_rng(int(id.rstrip("m"))).integers(0, 256, (3, 6, 8), np.uint8)
        photo = resized(small, self.size(id))
        return np.ascontiguousarray(photo[:, :, ::-1]) if id.endswith("m") else photo

    def digest(self, id: str) -> str:
        return id


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return network_of(TagNet(build("small", stride=16), 3))


def run(network: Network, tmp_path: Path, ids: Sequence[str] = IDS, views: Views = VIEWS,
        workers: int = 1, channels: Callable[[str], I64] | None = None) -> list[Seen]:
    work = Work(Run(tmp_path, workers=workers), "toy.predict", tmp_path)
    return list(predict(work, network, Photos(), ids, views, device="cpu", precision="fp32",
                        out_size=lambda size: (size[0] // 2, size[1] // 2), channels=channels))


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-5 * float(b.abs().max()))


@pytest.mark.parametrize("workers", [2, 4])
def test_any_number_of_workers_gives_the_same_bytes(network: Network, tmp_path: Path, workers: int) -> None:
    views = replace(VIEWS, scales=(1.0, 0.75))
    alone, together = run(network, tmp_path, views=views), run(network, tmp_path, views=views, workers=workers)
    assert [s.id for s in together] == list(IDS)
    assert all(torch.equal(a.values, b.values) for a, b in zip(alone, together, strict=True))


def test_each_output_has_the_wanted_size_and_comes_with_its_image(network: Network, tmp_path: Path) -> None:
    for seen in run(network, tmp_path):
        height, width = Photos().size(seen.id)
        assert seen.values.shape == (3, height // 2, width // 2)
        assert seen.values.dtype == torch.float32
        assert np.array_equal(seen.image, Photos().read(seen.id))


@pytest.mark.parametrize("flip", [True, False])
def test_a_mirrored_image_gives_the_mirrored_output_when_both_views_are_merged(network: Network, tmp_path: Path,
                                                                               flip: bool) -> None:
    plain, mirrored = run(network, tmp_path, ["01", "01m"], replace(VIEWS, flip=flip))
    assert close(mirrored.values.flip(2), plain.values) == flip  # without the merge a network is not symmetric


def test_an_output_does_not_depend_on_the_other_images(network: Network, tmp_path: Path) -> None:
    for seen in run(network, tmp_path)[::4]:
        assert close(run(network, tmp_path, [seen.id])[0].values, seen.values)


def test_order_follows_the_list(network: Network, tmp_path: Path) -> None:
    assert [s.id for s in run(network, tmp_path, IDS[::-1])] == list(IDS[::-1])


def test_several_scales_are_the_sum_of_single_ones(network: Network, tmp_path: Path) -> None:
    scales = (1.0, 0.75, 1.5)
    joint = run(network, tmp_path, IDS[:5], replace(VIEWS, scales=scales))
    single = [run(network, tmp_path, IDS[:5], replace(VIEWS, scales=(s,))) for s in scales]
    for i, seen in enumerate(joint):  # batches differ: images must fit at all scales
        assert close(seen.values, single[0][i].values + single[1][i].values + single[2][i].values)
    assert count(replace(VIEWS, scales=scales)) == 6
    assert count(Views(flip=False)) == 1


def test_channels_that_nobody_asks_for_are_left_out_and_change_nothing(network: Network, tmp_path: Path) -> None:
    def asked(id: str) -> I64:
        """All three, one, none; 13 images of five shapes: some batches hold images that ask for different ones."""
        return np.array([[0, 1, 2], [2], [], [2, 0]][int(id) % 4], np.int64)

    views = replace(VIEWS, scales=(1.0, 0.75))
    every = run(network, tmp_path, views=views)
    for whole, some in zip(every, run(network, tmp_path, views=views, channels=asked), strict=True):
        assert some.values.shape == (len(asked(some.id)), *whole.values.shape[1:])
        assert close(some.values, whole.values[asked(some.id)]) if len(asked(some.id)) else True
    nobody = run(network, tmp_path, channels=lambda id: np.zeros(0, np.int64))
    assert [s.values.numel() for s in nobody] == [0] * len(IDS)


def test_small_chunks_change_nothing_but_rounding(network: Network, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(network, tmp_path)
    monkeypatch.setattr(inference, "CHUNK_VALUES", 3 * 24 * 24 * 2)
    for a, b in zip(whole, run(network, tmp_path), strict=True):
        assert a.id == b.id
        assert close(a.values, b.values)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.integers(1, 20), st.integers(100, 10**6))
def test_chunks_are_bounded_and_keep_the_order(images: int, channels: int, most: int) -> None:
    ids = [str(i) for i in range(images)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "CHUNK_VALUES", most)
        chunks = list(inference._chunks(Photos(), ids, lambda id: channels, lambda size: size))
    assert [i for chunk in chunks for i in chunk] == ids
    for chunk in chunks:
        values = sum(channels * h * w + 3 * h * w // 4 for h, w in map(Photos().size, chunk))
        assert len(chunk) == 1 or (values <= most and len(chunk) <= 64)


class Watched(nn.Module):
    """Notes the shapes of what it is shown in inference mode, so not of the trial passes before."""

    shown: ClassVar[list[tuple[int, ...]]] = []

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_inference_mode_enabled():
            self.shown.append(tuple(x.shape))
        return self.inner(x)


@pytest.mark.parametrize(("flip", "views"), [(False, 13), (True, 26)])
def test_batches_hold_images_of_one_shape_and_not_too_many(network: Network, tmp_path: Path, flip: bool,
                                                            views: int) -> None:
    Watched.shown.clear()
    run(replace(network, module=Watched(network.module)), tmp_path, views=replace(VIEWS, flip=flip))
    assert sum(shape[0] for shape in Watched.shown) == views
    assert max(shape[0] for shape in Watched.shown) == (2 if flip else 3)
    assert {shape[2:] for shape in Watched.shown} == {net_shape(s, 48, 1.0, 16) for s in SHAPES}


@torch.no_grad()
def slow(network: Network, id: str, views: Views) -> Tensor:
    """One image, one view after the other, through the module as it was handed in."""
    image, total = Photos().read(id), torch.zeros(())
    size = (image.shape[1], image.shape[2])
    for scale in views.scales:
        shape = net_shape(size, views.size, scale, network.min_size)
        x = network.preprocess(torch.from_numpy(resized(image, shape))[None].float() / 255)
        for mirrored in (False, True):
            grid = network(x.flip(3) if mirrored else x)
            output = network.read(grid, shape, (size[0] // 2, size[1] // 2))[0]
            total = total + (output.flip(2) if mirrored else output)
    return total


def test_the_fast_path_gives_what_the_module_gives(network: Network, tmp_path: Path) -> None:
    views = replace(VIEWS, scales=(1.0, 0.75, 1.5))
    for seen in run(network, tmp_path, views=views):
        assert close(seen.values, slow(network, seen.id, views))


def test_channels_that_no_image_of_a_batch_is_asked_for_are_not_computed(network: Network, tmp_path: Path,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {id: np.array([0, 2] if n % 2 else [], np.int64) for n, id in enumerate(IDS)}
    whole, computed, real = {seen.id: seen.values for seen in run(network, tmp_path)}, list[int](), inference.F.conv2d

    def watched(x: Tensor, rows: Tensor, *args: Any, **more: Any) -> Tensor:
        computed.extend([len(rows)] if rows.shape[2:] == (1, 1) else [])  # the network's others are 3x3
        return real(x, rows, *args, **more)

    monkeypatch.setattr(inference.F, "conv2d", watched)
    for seen in run(network, tmp_path, channels=lambda id: asked[id]):
        assert seen.values.shape[0] == len(asked[seen.id])
        assert not len(seen.values) or close(seen.values, whole[seen.id][asked[seen.id]])
    assert set(computed) == {1, 2}


def test_the_module_handed_in_stays_what_it_was(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = TagNet(build("small", stride=16), 3)
    parts, before = [type(p) for p in model.modules()], copy.deepcopy(model.state_dict())
    run(network_of(model), tmp_path, IDS[:2])
    assert [type(p) for p in model.modules()] == parts
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_the_fast_copy_is_made_once_and_follows_the_weights(network: Network, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    real = inference._rewritten
    monkeypatch.setattr(inference, "_rewritten", lambda *args: (made.append(args[1]), real(*args))[1])
    again = replace(network, module=copy.deepcopy(network.module), rows=copy.deepcopy(network.rows))
    one, two = run(again, tmp_path, IDS[:1]), run(again, tmp_path, IDS[:1])
    assert made == ["cpu"]
    assert torch.equal(one[0].values, two[0].values)
    with torch.no_grad():
        again.rows.mul_(2)
    assert close(run(again, tmp_path, IDS[:1])[0].values, 2 * one[0].values)
    assert made == ["cpu", "cpu"]


def test_in_bf16_filters_keep_their_sums_and_biases_their_precision(network: Network) -> None:
    plain = folded(network.module, torch.randn(1, 3, 32, 48))
    made = inference._rewritten(network, "cpu", "bf16")
    kinds = nn.Conv2d | ConvAct
    pairs = list(zip((p for p in made.modules() if isinstance(p, kinds)),
                     (p for p in plain.modules() if isinstance(p, kinds)), strict=True))  # fmt: skip
    assert len(pairs) == 5
    for a, b in pairs:
        assert a.weight.dtype == torch.bfloat16
        assert a.weight.shape == b.weight.shape
        change = (a.weight.double() - b.weight.double()).sum((1, 2, 3)).abs()
        assert (change <= 1e-3 * b.weight.abs().amax((1, 2, 3))).all()
        assert a.bias is None or a.bias.dtype == torch.bfloat16 or torch.equal(a.bias, b.bias)
        assert isinstance(a, ConvAct) == folding._kernel_works(torch.bfloat16)


def test_bf16_keeps_what_is_left_of_large_filters_and_biases() -> None:
    """Filters of one sign against a bias of the other, as folded norms make them: autocast alone loses what is left."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 64, 3)
    conv.weight.data.uniform_(0, 2)
    conv.bias.data = 0.1 - conv.weight.data.sum((1, 2, 3))
    whole = Network(nn.Sequential(conv, nn.ReLU()).eval(), build("small").preprocess, lambda raw, *_: raw, 64)
    made, x = inference._rewritten(whole, "cpu", "bf16"), torch.ones(1, 3, 16, 16)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        lost, kept = ((module(x).float() - 0.1).abs().mean() for module in (whole.module, made))
    rounding = (conv.bias.bfloat16().float() - conv.bias).abs().mean()  # torch's own convolution rounds the bias, too
    assert kept < 0.01 + (0.0 if folding._kernel_works(torch.bfloat16) else rounding)
    assert lost > 0.03


@dataclass(frozen=True)
class Counted(Photos):
    """Photos that note which were decoded."""

    reads: list[str] = field(default_factory=list)

    def read(self, id: str) -> U8:
        self.reads.append(id)
        return super().read(id)


def test_each_image_is_decoded_once_and_at_most_one_chunk_ahead(network: Network, tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "CHUNK_VALUES", 1)  # chunks of one image
    photos = Counted()
    work = Work(Run(tmp_path, workers=1), "toy.predict", tmp_path)
    views = replace(VIEWS, scales=(1.0, 0.75))
    for place, _ in enumerate(predict(work, network, photos, IDS, views, device="cpu", precision="fp32"), 1):
        assert photos.reads == list(IDS[:place + 1])
    assert photos.reads == list(IDS)


@dataclass(frozen=True)
class Broken(Photos):
    """Photo 03 cannot be decoded."""

    def read(self, id: str) -> U8:
        if id == "03":
            raise ValueError(f"{id} is broken")
        return super().read(id)


def test_an_image_that_cannot_be_read_ends_the_pass(network: Network, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "CHUNK_VALUES", 1)
    work = Work(Run(tmp_path, workers=2), "toy.predict", tmp_path)
    seen = predict(work, network, Broken(), IDS, VIEWS, device="cpu", precision="fp32")
    assert [next(seen).id, next(seen).id] == list(IDS[:2])  # 02 is begun when 03 is read
    with pytest.raises(ValueError, match="03 is broken"):
        next(seen)


@pytest.mark.parametrize(("size", "area", "scale", "least", "expected"), [
    ((300, 300), 256, 1.0, 32, (256, 256)),
    ((300, 400), 256, 1.0, 32, (224, 288)),
    ((300, 400), 256, 0.5, 32, (112, 144)),
    ((10, 1000), 64, 1.0, 32, (32, 640)),  # 6.4 x 640
    ((5, 5), 16, 0.5, 0, (16, 16)),
])
def test_input_sizes(size: tuple[int, int], area: int, scale: float, least: int, expected: tuple[int, int]) -> None:
    assert net_shape(size, area, scale, least) == expected


def test_threads_are_put_back(network: Network, tmp_path: Path) -> None:
    torch.set_num_threads(2)
    work = Work(Run(tmp_path, workers=1), "toy.predict", tmp_path)
    for _ in predict(work, network, Photos(), IDS[:1], VIEWS, device="cpu", precision="fp32"):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_a_resized_image_of_the_same_size_is_the_image() -> None:
    photo = Photos().read("03")
    assert np.array_equal(resized(photo, (49, 47)), photo)
    assert resized(photo, (20, 30)).shape == (3, 20, 30)
    flat = np.full((3, 40, 50), 77, np.uint8)
    assert (resized(flat, (13, 17)) == 77).all()


def test_recorded_passes_change_nothing(network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a card, but for what records; threads share the recordings of 13 images' shapes."""
    plain = run(network, tmp_path)
    made: list[Captured] = []

    def ready(*given: Any) -> Any:
        found = whole(*given)
        made.append(Captured(found.module, lambda call: (out := call().clone(), lambda: out.copy_(call()))))
        return found._replace(module=made[0])

    whole = inference._ready
    monkeypatch.setattr(inference, "_ready", ready)
    for workers in (1, 4):
        for a, b in zip(plain, run(network, tmp_path, workers=workers), strict=True):
            assert torch.equal(a.values, b.values)
    assert len(made[0].held) == 4


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("rewrite", [False, True])
def test_passes_are_recorded_on_a_card_alone_and_where_it_is_asked_for(
    device: str, captured: bool, rewrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "_rewritten", lambda network, *_: network.module)
    given = Network(nn.Conv2d(3, 2, 1), build("small", stride=16).preprocess, lambda x, *_: x, 2, rewrite=rewrite)
    ready = inference._ready(given, device, "fp32", captured)
    assert isinstance(ready.module, Captured) == (captured and rewrite and device != "cpu")
