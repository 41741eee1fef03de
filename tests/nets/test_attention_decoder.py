"""Attention, densification and decoder: hand-worked cells, and that no class reaches the decoder but by attention."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tagseg.nets.attention_decoder import (
    AttendedClassifier,
    Attention,
    Decoder,
    GroupNorm,
    Shape,
    TransferNet,
    Transposed,
    check_up,
    densified,
    levels_of,
    shared_switches,
    switches_of,
)
from tagseg.nets.backbones import build
from tagseg.nets.deconvnet import unpool
from tagseg.types import UsageError

FORMS = ("conv", "fc", "fc_pooled")
GRID = (6, 8)


def attention(form: str = "conv", **more: object) -> Attention:
    torch.manual_seed(0)
    return Attention(16, 5, Shape(attention=form, width=12, **more), GRID)  # type: ignore[arg-type]


def features(rows: int = 4) -> Tensor:
    return torch.rand(rows, 16, *GRID, generator=torch.Generator().manual_seed(1))


def one_hot(*classes: int, among: int = 5) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes), among).bool()


@pytest.mark.parametrize("form", FORMS)
def test_transfernet_s7_01_attention_is_a_share_of_cells(form: str) -> None:
    a = features()
    alpha, z = attention(form)(a, one_hot(0, 1, 2, 2))
    assert alpha.shape == (4, *GRID)
    assert (alpha >= 0).all()
    torch.testing.assert_close(alpha.sum((1, 2)), torch.ones(4), atol=1e-6, rtol=0)
    assert (z >= a.amin((2, 3)) - 1e-6).all()
    assert (z <= a.amax((2, 3)) + 1e-6).all()


def test_transfernet_s7_02_densified_by_hand() -> None:
    a = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).T.view(1, 2, 1, 2)  # cells (1,0) and (1,1)
    for alpha, z, s in (((0.25, 0.75), (1, 0.75), (1, 1.75)), ((1.0, 0.0), (1, 0), (1, 1))):
        attended = torch.einsum("p,dp->d", torch.tensor(alpha), a[0, :, 0])
        torch.testing.assert_close(attended, torch.tensor(z, dtype=torch.float32))
        torch.testing.assert_close(densified(a, attended[None])[0, 0, 0], torch.tensor(s, dtype=torch.float32))
    a, weights = features(1), torch.rand(1, GRID[0] * GRID[1])
    flat = a.flatten(2)[0]
    gram = flat.T @ flat
    found = densified(a, (flat @ weights[0])[None]).flatten()
    torch.testing.assert_close(found, gram @ weights[0])
    assert (found >= 0).all()
    torch.testing.assert_close(densified(a, 3 * (flat @ weights[0])[None]).flatten(), 3 * found)
    others = torch.rand(GRID[0] * GRID[1], generator=torch.Generator().manual_seed(4))
    both = densified(a, (flat @ (weights[0] + others))[None]).flatten()
    torch.testing.assert_close(both, found + densified(a, (flat @ others)[None]).flatten())


def decoder(up: str = "switch", **more: object) -> tuple[Decoder, Tensor, dict[str, Tensor], Tensor]:
    """A decoder for the small network, an image of 64x96, its features, and features of the last tap."""
    torch.manual_seed(0)
    backbone = build("small", stride=16).eval()
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    found = backbone(x, ["last", *(tap.name for tap in levels_of(backbone))])
    return Decoder(levels_of(backbone), Shape(up=up, **more)), x, found, found["last"]  # type: ignore[arg-type]


def test_transfernet_s7_03_the_decoder_has_no_place_for_a_class() -> None:
    torch.manual_seed(0)
    many = 37  # a number of classes that no layer has by chance
    model = TransferNet(build("small", stride=16), many, Shape(width=12)).eval()
    assert list(inspect.signature(Decoder.forward).parameters) == ["self", "dense", "switches", "size"]
    assert all(many not in p.shape for p in model.decoder.parameters())
    assert any(many in p.shape for p in model.attention.parameters())
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    rows = model.encode(x)

    def drawn(k: int) -> Tensor:
        _, dense, _ = model(rows, one_hot(k, k, among=many))
        return model.draw(dense, rows)

    assert not torch.allclose(drawn(0), drawn(20))  # while attention may look where it wants
    with torch.no_grad():
        model.attention.out.weight.zero_()  # attention held fixed, whatever the class
    assert torch.equal(drawn(0), drawn(20))


def test_an_encoder_that_nobody_draws_from_gives_features_alone() -> None:
    model = TransferNet(build("small", stride=16), 5, Shape(width=12)).eval()
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    whole, bare = model.encode(x), model.encode(x, switches=False)
    assert torch.equal(whole.features, bare.features)
    assert len(whole.switches) == len(model.levels)
    assert bare.switches == []


@pytest.mark.parametrize("form", FORMS)
def test_transfernet_s7_04_classes_by_another_number_change_nothing(form: str) -> None:
    first, second, order = attention(form), attention(form), [3, 0, 4, 1, 2]
    with torch.no_grad():
        second.name.weight.copy_(first.name.weight[:, order])
    a, y = features(), one_hot(0, 1, 2, 4)
    for one, other in zip(first(a, y), second(a, y[:, order]), strict=True):
        torch.testing.assert_close(one, other)
    torch.manual_seed(0)
    model = TransferNet(build("small", stride=16), 5, Shape(attention=form, width=12), (4, 6)).eval()  # type: ignore[arg-type]
    rows = model.encode(torch.randn(4, 3, 64, 96, generator=torch.Generator().manual_seed(2)))
    (alpha, dense, _), logits = (found := model(rows, y)), model.draw(found[1], rows)
    with torch.no_grad():
        model.attention.name.weight.copy_(model.attention.name.weight[:, order].clone())
    alpha_, dense_, _ = model(rows, y[:, order])
    for one, other in ((alpha, alpha_), (dense, dense_), (logits, model.draw(dense_, rows))):
        torch.testing.assert_close(one, other)


def test_transfernet_s7_08_rows_name_one_class_each() -> None:
    several = one_hot(0, 1, 2, 3)
    several[1, 4] = True
    with pytest.raises(UsageError, match="expected one in each"):
        attention()(features(), several)
    several[1] = False
    with pytest.raises(UsageError, match="expected one in each"):
        attention()(features(), several)


@pytest.mark.parametrize("up", ["switch", "switch_shared", "bilinear"])
def test_transfernet_s7_10_the_output_is_as_large_as_the_image(up: str) -> None:
    model, _, found, last = decoder(up)
    logits = model(densified(last, last.mean((2, 3))), switches_of(found, model.levels, last, up), (64, 96))  # type: ignore[arg-type]
    assert logits.shape == (2, 2, 64, 96)
    made = switches_of(found, model.levels, last, up)  # type: ignore[arg-type]
    assert made[-1].size == (64, 96)  # of itself: nothing is enlarged in the end


@pytest.mark.parametrize("form", ["conv", "fc_pooled"])
@pytest.mark.parametrize("size", [(64, 96), (32, 48), (112, 80)])
def test_transfernet_s7_10_one_network_draws_at_any_multiple_of_16(form: Any, size: tuple[int, int],
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = TransferNet(build("small", stride=16), 5, Shape(attention=form, width=12, up="switch")).eval()
    rows = model.encode(torch.randn(1, 3, *size))
    alpha, dense, _ = model(rows, one_hot(2))
    monkeypatch.setattr(F, "interpolate", None)  # its own unpooling comes out at the image's size
    assert alpha.shape == (1, size[0] // 16, size[1] // 16)
    assert model.draw(dense, rows).shape == (1, 2, *size)


@pytest.mark.parametrize("up", ["switch", "switch_shared", "bilinear"])
def test_transfernet_s7_09_odd_sizes_keep_their_place(up: str) -> None:
    backbone = build("small", stride=16).eval()
    x = torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(2))
    levels = levels_of(backbone)
    found = backbone(x, ["last", *(tap.name for tap in levels)])
    switches = switches_of(found, levels, found["last"], up)  # type: ignore[arg-type]
    assert [s.size for s in switches] == [tuple(found[t.name].shape[2:]) for t in levels]
    for made, tap in zip(switches, levels, strict=True):
        if made.where is None:
            continue
        level = found[tap.name].relu()
        where = made.where.expand(-1, level.shape[1], -1, -1)
        values = level.flatten(2).gather(2, where.flatten(2)).view(where.shape)
        back = unpool(values, made.where, made.size)
        kept = back != 0
        assert torch.equal(back[kept], level[kept])  # each value where it came from
        if up == "switch":
            torch.testing.assert_close(F.max_pool2d(back, 2, 2), F.max_pool2d(level, 2, 2))
    model = Decoder(levels, Shape(up=up))  # type: ignore[arg-type]
    coarse = torch.rand(1, levels[0].channels, *found["last"].shape[2:]) + 1
    large = model._enlarged(coarse, switches[0])
    if switches[0].where is None:
        torch.testing.assert_close(large, F.interpolate(coarse, switches[0].size, mode="bilinear"))
    else:  # the decoder's own way up puts each value where the encoder's came from, and nothing elsewhere
        assert int((large != 0).sum()) == coarse.numel()
        where = switches[0].where.expand_as(coarse)
        torch.testing.assert_close(large.flatten(2).gather(2, where.flatten(2)).view_as(coarse), coarse)
    assert model(densified(found["last"], found["last"].mean((2, 3))), switches, (65, 97)).shape[2:] == (65, 97)


def test_transfernet_s7_10_fc_names_both_grids() -> None:
    with pytest.raises(UsageError, match=r"found features of 5x8 cells, expected \(6, 8\)"):
        attention("fc")(features()[:, :, :5], one_hot(0, 1, 2, 3))
    with pytest.raises(UsageError, match="found no grid"):
        Attention(16, 5, Shape(attention="fc"))
    attention("conv")(features()[:, :, :5], one_hot(0, 1, 2, 3))


@pytest.mark.parametrize("form", FORMS)
def test_transfernet_s7_11_without_scores_attention_is_cams_average(form: str) -> None:
    model, a = attention(form), features()
    with torch.no_grad():
        model.out.weight.zero_()
    alpha, z = model(a, one_hot(0, 1, 2, 3))
    torch.testing.assert_close(alpha, torch.full_like(alpha, 1 / (GRID[0] * GRID[1])))
    torch.testing.assert_close(z, a.mean((2, 3)))


@pytest.mark.parametrize(("init", "norm", "draws"), [("kaiming", "none", True), ("kaiming", "gn", True),
                                                    ("gaussian", "none", False), ("gaussian", "gn", True)])
def test_transfernet_s7_13_a_fresh_decoder_draws_something(init: str, norm: str, draws: bool) -> None:
    model, _, found, last = decoder("switch", init=init, norm=norm)
    dense = densified(last, last.mean((2, 3)))
    spread = model(dense, switches_of(found, model.levels, last, "switch"), (64, 96)).std((2, 3)).max()
    assert (spread > 1e-4) == draws  # a norm mends what the sourced initialisation lacks
    if not draws:
        assert spread < 1e-7  # next to nothing at all


def test_one_layer_more_or_less_changes_attention_and_the_classifier_sees_z_alone() -> None:
    assert len(list(attention(combine_layer=False).parameters())) < len(list(attention().parameters()))
    a, y = features(), one_hot(0, 1, 2, 3)
    assert not torch.allclose(attention(combine_layer=False)(a, y)[0], attention()(a, y)[0])
    assert AttendedClassifier(16, 5)(attention()(a, y)[1]).shape == (4, 5)


def test_overlapping_pools_have_no_switches_of_their_own() -> None:
    backbone = build("squeezenet1_1", stride=16).eval()
    levels = levels_of(backbone)
    found = backbone(torch.randn(1, 3, 96, 96), ["last", *(tap.name for tap in levels)])
    with pytest.raises(UsageError, match="choose up=switch_shared or bilinear"):
        check_up(backbone, "switch")
    check_up(build("small", stride=16), "switch")
    for up in ("switch_shared", "bilinear"):
        check_up(backbone, up)  # type: ignore[arg-type]
        made = switches_of(found, levels, found["last"], up)  # type: ignore[arg-type]
        logits = Decoder(levels, Shape(up=up))(densified(found["last"], found["last"].mean((2, 3))), made, (96, 96))  # type: ignore[arg-type]
        assert logits.shape == (1, 2, 96, 96)


@given(h=st.integers(1, 6), w=st.integers(1, 6), more=st.tuples(st.integers(-1, 1), st.integers(-1, 1)))
def test_one_switch_for_all_channels_is_in_its_window_alone(h: int, w: int, more: tuple[int, int]) -> None:
    size = (2 * h + more[0] * (h > 1), 2 * w + more[1] * (w > 1))
    length = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(h * 7 + w))
    found = shared_switches(length, (h, w))
    assert found.shape == (2, 1, h, w)
    for one in range(2):
        for y in range(h):
            for x in range(w):
                window = length[one, 0, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
                row, column = divmod(int(found[one, 0, y, x]), size[1])
                assert (row // 2, column // 2) == (y, x)
                assert length[one, 0, row, column] == window.max()
    back = unpool(torch.ones(2, 3, h, w), found, size)
    assert back.sum() == 2 * 3 * h * w  # no two cells at one place


def test_any_way_up_is_the_networks_own_pools_or_one_switch_for_all_channels() -> None:
    for name, expected in (("small", "switch"), ("squeezenet1_1", "switch_shared"), ("mobilenet_v2", "switch_shared")):
        model = TransferNet(build(name, stride=16), 3, Shape(width=8))
        assert model.up == expected
        rows = model.encode(torch.randn(1, 3, 65, 97))
        alpha, dense, _ = model(rows, one_hot(1, among=3))
        assert model.draw(dense, rows).shape[2:] == (65, 97)
        assert alpha.shape == dense.shape[:1] + dense.shape[2:]


def test_what_attention_sums_over_cells_is_in_full_precision() -> None:
    torch.manual_seed(0)
    model = TransferNet(build("small", stride=16), 3, Shape(width=8)).eval()
    with torch.no_grad():
        model.attention.out.weight.normal_(std=30)  # a scores' error shows in alpha as many times
    x = torch.randn(2, 3, 96, 96)
    with torch.autocast("cpu", torch.bfloat16):
        rows = model.encode(x)
        alpha, dense, _ = model(rows, one_hot(0, 2, among=3))
    assert alpha.dtype == dense.dtype == torch.float32
    torch.testing.assert_close(alpha.sum((1, 2)), torch.ones(2), atol=1e-6, rtol=0)
    features = rows.features.double()
    z = torch.einsum("rhw,rdhw->rd", alpha.double(), features)
    torch.testing.assert_close(dense.double(), densified(features, z), rtol=1e-5, atol=1e-6)


def test_the_decoders_layers_are_transposed_convolutions() -> None:
    torch.manual_seed(0)
    layer, x = Transposed(4, 6).double(), torch.randn(2, 4, 7, 5).double()
    assert torch.allclose(layer(x), nn.ConvTranspose2d.forward(layer, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("channels", [16, 64])
def test_the_norm_is_group_norm_however_channels_lie(channels: int) -> None:
    torch.manual_seed(0)
    norm, plain = GroupNorm(8, channels), torch.nn.GroupNorm(8, channels)
    for layer in (norm, plain):
        torch.nn.init.uniform_(layer.weight, generator=torch.Generator().manual_seed(1))
        torch.nn.init.uniform_(layer.bias, generator=torch.Generator().manual_seed(2))
    x = torch.randn(2, channels, 9, 11)
    found, given = [], torch.randn(2, channels, 9, 11)
    for layer, form in ((norm, torch.channels_last), (plain, torch.contiguous_format)):
        here = x.clone().contiguous(memory_format=form).requires_grad_()
        out = layer(here)
        out.backward(given)
        found.append((out.detach(), here.grad, layer.weight.grad, layer.bias.grad))
        assert out.is_contiguous(memory_format=form)
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
