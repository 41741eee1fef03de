"""The grid of every network measured by mirror images, dilation against the native network, weights name by name."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from tagseg.nets import timm_net
from tagseg.nets.backbones import Backbone, FixedBatchNorm, Preprocess, build, freeze_batch_norm
from tagseg.types import DataError, IntegrityError, UsageError

NETS = ["vgg16", "squeezenet1_1", "mobilenet_v2", "small", "timm:resnet18", "timm:convnext_atto",
        "timm:efficientnet_b0"]
EXPECTED = {("vgg16", 16): 7.5, ("vgg16", 8): 3.5, ("small", 16): 7.5, ("small", 8): 3.5,
            ("squeezenet1_1", 16): 15.0, ("squeezenet1_1", 8): 7.0, ("mobilenet_v2", 16): 0.0,
            ("mobilenet_v2", 8): 0.0, ("timm:resnet18", 16): 0.0, ("timm:resnet18", 8): 0.0}
_BUILT: dict[tuple[str, int], Backbone] = {}


def symmetric(name: str, stride: int) -> Backbone:
    """The network with kernels that equal their mirror image: mirrored pictures must give mirrored features."""
    if (name, stride) not in _BUILT:
        torch.manual_seed(0)
        net = build(name, stride=stride).eval()
        for part in net.modules():
            if isinstance(part, nn.Conv2d):
                part.weight.data = (part.weight.data + part.weight.data.flip(3)) * 2**-0.5
        _BUILT[name, stride] = net
    return _BUILT[name, stride]


def mirror_errors(net: Backbone, taps: tuple[str, ...], shift: float = 0.0) -> list[float]:
    """How far the features of a mirrored picture are from the mirrored features, relative to their spread.

    Pixel x goes to width - 1 - x, so cell i must go to cell m - i with m = (width - 1 - 2 offset) / stride. The width
    is chosen so that m is whole for the last tap, if its offset (here moved by `shift`) is right.
    """
    last = net.tap(taps[-1])
    width = round(96 + 2 * (last.offset + shift) + 1)
    x = torch.randn(1, 3, 33, width, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        straight, mirrored = net(x, taps), net(x.flip(3), taps)
    errors = []
    for tap in map(net.tap, taps):
        m = (width - 1 - 2 * (tap.offset + shift)) / tap.stride
        assert m == int(m), f"{tap} does not lie on the grid of {last}"
        cells = torch.arange(int(m) + 1)[int(m) // 4: int(m) - int(m) // 4 + 1]  # borders: padding may be one-sided
        one, other = straight[tap.name][..., cells], mirrored[tap.name][..., int(m) - cells]
        errors.append(float((one - other).abs().max() / one.std()))
    return errors


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("name", ["vgg16", "squeezenet1_1", "mobilenet_v2", "small", "timm:resnet18"])
def test_every_tap_is_centred_where_it_says(name: str, stride: int) -> None:
    net = symmetric(name, stride)
    last = net.tap("last")
    assert (last.stride, last.offset) == (stride, EXPECTED[name, stride])
    taps = tuple(net.tap(n).name for n in ("stride2", "stride4", "stride8", "block4", "block5", "last"))
    assert max(mirror_errors(net, taps)) < 1e-3
    for shift in (-0.5, 0.5, stride / 2):
        assert mirror_errors(net, (last.name,), shift)[0] > 0.05


def test_networks_with_pools_reach_stride_4_on_the_same_grid() -> None:
    net = symmetric("small", 4)
    assert (net.tap("last").stride, net.tap("last").offset) == (4, 1.5)
    assert max(mirror_errors(net, ("block3", "block4", "block5"))) < 1e-3
    assert mirror_errors(net, ("block5",), 0.5)[0] > 0.05


def test_measured_grids_of_timm_networks_with_even_kernels() -> None:
    net = symmetric("timm:convnext_atto", 16)
    assert [(tap.name, tap.stride, tap.offset) for tap in net.taps[:2]] == [("block2", 4, 1.5), ("block3", 8, 3.5)]
    for tap in net.taps:  # the dilated 2x2 kernels after stride 16 lie to the right of their cell
        assert mirror_errors(net, (tap.name,))[0] < 1e-3
        assert mirror_errors(net, (tap.name,), -0.5)[0] > 0.05


def test_gates_do_not_disturb_the_measured_grid() -> None:
    net = symmetric("timm:efficientnet_b0", 16)
    assert {tap.offset for tap in net.taps} == {0.0}


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("name", ["vgg16", "squeezenet1_1", "mobilenet_v2", "timm:resnet18"])
def test_a_picture_moved_by_the_stride_moves_the_features_by_one_cell(name: str, stride: int) -> None:
    net = symmetric(name, stride)
    x = torch.randn(1, 3, 33, 512 + stride, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        here, there = (net(part, ["last"])["last"] for part in (x[..., :512], x[..., stride:]))
    middle = 256 // stride
    torch.testing.assert_close(here[..., middle + 1], there[..., middle], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("name", "fine", "coarse"), [("squeezenet1_1", 8, 16), ("mobilenet_v2", 16, 32),
                                                     ("mobilenet_v2", 8, 32)])
def test_a_dilated_network_holds_the_native_values(name: str, fine: int, coarse: int) -> None:
    torch.manual_seed(0)
    dilated, native = build(name, stride=fine), build(name, stride=coarse)
    native.load_state_dict(dilated.state_dict())
    x = torch.randn(1, 3, 81, 119)
    with torch.no_grad():
        a, b = dilated(x, ["last"])["last"], native(x, ["last"])["last"]
    step = coarse // fine
    first = round((native.tap("last").offset - dilated.tap("last").offset) / fine)
    torch.testing.assert_close(a[..., first::step, first::step], b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NETS)
def test_taps_tell_the_truth_about_channels_and_sizes(name: str) -> None:
    net = symmetric(name, 8 if name != "timm:convnext_atto" else 16)
    x = torch.randn(2, 3, 64, 97)
    with torch.no_grad():
        found = net(x)
        for key, feature in found.items():
            tap = net.tap(key)
            assert feature.shape[:2] == (2, tap.channels)
            assert abs(feature.shape[3] - 97 / tap.stride) <= 1
        assert {"low", "last", "block4", "block5", "stride4", "stride8"} <= found.keys()
        assert torch.equal(net(x, ["low"])["low"], found["low"])


@pytest.mark.parametrize("name", ["vgg16", "squeezenet1_1", "mobilenet_v2", "small", "timm:resnet18"])
def test_the_smallest_image_works_and_a_smaller_one_is_refused(name: str) -> None:
    net = symmetric(name, 16)
    assert net(torch.zeros(1, 3, net.min_size, net.min_size), ["last"])["last"].shape[2:].numel() >= 1
    if net.min_size > 1:
        with pytest.raises(DataError, match=f"at least {net.min_size}"):
            net(torch.zeros(1, 3, net.min_size - 1, 50))


def test_taps_are_not_changed_by_later_layers_and_gradients_reach_them() -> None:
    net = symmetric("squeezenet1_1", 16)
    found = net(torch.randn(1, 3, 65, 65, requires_grad=True))
    kept = {key: feature.detach().clone() for key, feature in found.items()}
    gradient, = torch.autograd.grad(found["last"].sum(), found["pool2"])
    assert gradient.abs().sum() > 0
    assert all(torch.equal(kept[key], feature) for key, feature in found.items())


# --- batch norm


@pytest.mark.parametrize("name", ["mobilenet_v2", "timm:resnet18", "timm:efficientnet_b0"])
def test_training_never_moves_the_statistics(name: str) -> None:
    net = copy.deepcopy(symmetric(name, 16))
    x = torch.randn(4, 3, 48, 48) * 3 + 1
    before = {key: buffer.clone() for key, buffer in net.named_buffers()}
    resting = net.eval()(x)["last"]
    training = net.train()(x)["last"]
    training.sum().backward()
    assert len(before) > 10
    assert torch.equal(resting, training)
    assert all(torch.equal(before[key], buffer) for key, buffer in net.named_buffers())
    assert not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in net.modules())


def test_fixed_batch_norm_equals_torch_in_eval_mode_and_still_learns() -> None:
    source = nn.BatchNorm2d(5, eps=1e-3)
    with torch.no_grad():
        for tensor in source.state_dict().values():
            if tensor.ndim:
                tensor.uniform_(0.5, 2)
    x = torch.randn(3, 5, 4, 4)
    expected = copy.deepcopy(source).eval()(x)
    fixed = next(freeze_batch_norm(nn.Sequential(source)).children())
    assert isinstance(fixed, FixedBatchNorm)
    assert torch.equal(fixed.train()(x), expected)
    assert [key for key, _ in fixed.named_parameters()] == ["weight", "bias"]
    assert set(fixed.state_dict()) == {"weight", "bias", "running_mean", "running_var"}


# --- names and weights


def test_unknown_names_and_strides_are_answered_with_what_exists() -> None:
    with pytest.raises(UsageError, match="nearest: mobilenet_v2"):
        build("mobilenetv2")
    with pytest.raises(UsageError, match="nearest: timm:resnet50"):
        build("resnet50")
    with pytest.raises(UsageError, match="nearest: timm:resnet50"):
        build("timm:resnet500")
    with pytest.raises(UsageError, match="stride 4, expected one of 8, 16"):
        build("squeezenet1_1", stride=4)


@pytest.mark.parametrize("name", ["vgg16", "vit_tiny_patch16_224"])
def test_a_timm_network_without_dilation_says_why(name: str) -> None:
    with pytest.raises(UsageError, match=r"cannot give features at stride 16 \(.*(without a message|unexpected key)"):
        build(f"timm:{name}")


def test_a_timm_network_whose_grid_moves_with_the_image_is_refused() -> None:
    with pytest.raises(UsageError, match="changes with the image size"):
        build("timm:tf_efficientnet_b0")


def test_weights_must_fit_name_by_name() -> None:
    from torchvision.models import squeezenet1_1

    state = squeezenet1_1().state_dict()
    net = build("squeezenet1_1", weights_state=state)
    torch.testing.assert_close(net.state_dict()["body.stages.block2.0.weight"], state["features.0.weight"])
    lacking = {key: tensor for key, tensor in state.items() if key != "features.3.squeeze.bias"}
    with pytest.raises(IntegrityError, match=r"missing: features\.3\.squeeze\.bias"):
        build("squeezenet1_1", weights_state=lacking)
    with pytest.raises(IntegrityError, match=r"unexpected: features\.99\.weight"):
        build("squeezenet1_1", weights_state={**state, "features.99.weight": torch.zeros(1)})
    with pytest.raises(IntegrityError, match=r"shape: features\.0\.weight \(1, 3, 3, 3\) instead of \(64, 3, 3, 3\)"):
        build("squeezenet1_1", weights_state={**state, "features.0.weight": torch.zeros(1, 3, 3, 3)})
    with pytest.raises(IntegrityError, match=r"missing: .* and 4[0-9] more"):
        build("squeezenet1_1", weights_state={})


def test_vgg_weights_load_under_torchvisions_names() -> None:
    from torchvision.models.vgg import cfgs, make_layers

    theirs = make_layers(cfgs["D"]).eval()
    net = build("vgg16", stride=32, weights_state={f"features.{k}": v for k, v in theirs.state_dict().items()})
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(net(x, ["last"])["last"], theirs(x))


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv2_100"])
def test_timm_classifier_weights_reach_the_feature_network(name: str) -> None:
    import timm

    whole: Any = timm.create_model(name, output_stride=16).eval()
    state = {key: tensor + 0.01 * torch.randn_like(tensor) if tensor.is_floating_point() else tensor
             for key, tensor in whole.state_dict().items()}
    whole.load_state_dict(state)
    net = build(f"timm:{name}", weights_state=state).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        theirs = whole.forward_intermediates(x, intermediates_only=True)
        torch.testing.assert_close(net(x, ["last"])["last"], theirs[-1], atol=1e-4, rtol=1e-4)
    first = next(iter(state))
    with pytest.raises(IntegrityError, match="missing"):
        build(f"timm:{name}", weights_state={k: v for k, v in state.items() if k != first})


def test_random_weights_follow_torchs_seed() -> None:
    torch.manual_seed(3)
    first = build("small").state_dict()
    torch.manual_seed(3)
    assert all(torch.equal(first[key], tensor) for key, tensor in build("small").state_dict().items())


def test_importing_the_networks_does_not_import_torchvision_or_timm() -> None:
    code = ("import sys, tagseg.nets.backbones, tagseg.nets.vgg, tagseg.nets.squeezenet, tagseg.nets.mobilenet, "
            "tagseg.nets.timm_net, tagseg.nets.small, tagseg.nets.deeplab, tagseg.nets.tag_head; "
            "sys.exit(bool({'torchvision', 'timm'} & sys.modules.keys()))")
    folder = str(Path(timm_net.__file__).parents[2])
    result = subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {folder!r}); {code}"], check=False)
    assert result.returncode == 0


# --- the real weights


def picture(shared: Path, name: str) -> Tensor:
    with Image.open(shared / "data" / "things" / "images" / f"{name}.jpg") as image:
        pixels = np.asarray(image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR), np.float32) / 255
    return Preprocess()(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])


@pytest.mark.data
@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_1"])
def test_real_weights_recognise_and_our_features_are_torchvisions(name: str, shared: Path) -> None:
    import torchvision

    file = shared / "weights" / f"{name}.safetensors"
    if not file.is_file():
        pytest.skip(f"weights: no {file.name} in the weights folder of the shared data")
    state = load_file(file)
    theirs = torchvision.models.get_model(name, weights=None).eval()
    theirs.load_state_dict(state)
    native = 32 if name == "mobilenet_v2" else 16
    ours = build(name, stride=native, weights_state=state)
    for file_name, category in (("000000000154", "zebra"), ("000000002149", "Granny Smith")):
        x = picture(shared, file_name)
        with torch.no_grad():
            scores = theirs(x).softmax(1)[0]
            torch.testing.assert_close(ours(x, ["last"])["last"], theirs.features(x), atol=1e-4, rtol=1e-4)
        best = torchvision.models.get_model_weights(name).DEFAULT.meta["categories"][int(scores.argmax())]
        assert best == category
        assert scores.max() > 0.9
    assert (ours(x, ["last"])["last"] >= 0).all()
