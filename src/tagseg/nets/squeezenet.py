"""SqueezeNet 1.1: 1.2 M parameters with max-pools; torchvision's weights fit. Stem and pools are not padded."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from tagseg.nets.backbones import Backbone, Chain, Tap, load_strict, plain_relus, require_stride

# Where torchvision's sequence of layers is cut, with the channels there. No block has stride 1.
CUTS = (("block2", 2, 64), ("pool2", 3, 64), ("block3", 5, 128), ("pool3", 6, 128), ("block4", 8, 256),
        ("pool4", 9, 256), ("block5", 13, 512))


def squeezenet1_1(stride: int, weights_state: Mapping[str, Tensor] | None) -> Backbone:
    """SqueezeNet 1.1 without its classifier, at stride 8 or 16 (native); all taps are non-negative."""
    from torchvision.models.squeezenet import SqueezeNet

    require_stride("squeezenet1_1", stride, (8, 16))
    layers = plain_relus(SqueezeNet("1_1").features)
    if weights_state is not None:
        load_strict(layers, weights_state, net="squeezenet1_1", prefix="features.", dropped=("classifier.",))
    if stride == 8:
        _dilate(layers)
    return _wrap(layers, stride)


def _wrap(layers: nn.Module, stride: int) -> Backbone:
    stages: dict[str, nn.Module] = {}
    taps: list[Tap] = []
    start, at = 0, 2
    for name, end, channels in CUTS:
        stages[name] = nn.Sequential(*list(layers.children())[start:end])
        at = min(2 * at, stride) if name.startswith("pool") else at
        taps.append(Tap(name, channels, at, float(at - 1)))  # centred: 3x3 stride 2 without padding adds one cell
        start = end
    aliases = {"stride2": "block2", "stride4": "block3", "stride8": "block4", "low": "block3", "last": "block5"}
    return Backbone("squeezenet1_1", Chain(stages), tuple(taps), aliases, min_size=stride + 1)


def _dilate(layers: nn.Module) -> None:
    """Third pool at stride 1 with padding 1, the 3x3 convolutions after it dilated by 2."""
    parts = list(layers.children())
    pool = parts[8]
    pool.stride, pool.padding, pool.ceil_mode = 1, 1, False  # type: ignore[assignment]
    for fire in parts[9:]:
        conv = fire.expand3x3
        conv.dilation, conv.padding = (2, 2), (2, 2)  # type: ignore[union-attr]
