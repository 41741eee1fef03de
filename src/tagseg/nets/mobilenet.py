"""MobileNetV2: torchvision's layers and weights, at stride 8, 16 or 32; the pixel grid starts at pixel 0."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from tagseg.nets.backbones import (
    Backbone,
    Chain,
    Tap,
    freeze_batch_norm,
    load_strict,
    plain_relus,
    require_stride,
)

# Where torchvision's sequence of layers is cut: channels and native stride there. `last` is the 1x1 convolution that
# the classifier reads (ReLU6, non-negative); the blocks end in linear bottlenecks, their features have both signs.
CUTS = (("block1", 2, 16, 2), ("block2", 4, 24, 4), ("block3", 7, 32, 8), ("block4", 14, 96, 16),
        ("block5", 18, 320, 32), ("last", 19, 1280, 32))


def mobilenet_v2(stride: int, weights_state: Mapping[str, Tensor] | None) -> Backbone:
    """MobileNetV2 without its classifier, batch norm fixed, symmetric padding as in torchvision."""
    from torchvision.models.mobilenetv2 import MobileNetV2

    require_stride("mobilenet_v2", stride, (8, 16, 32))
    layers = plain_relus(freeze_batch_norm(MobileNetV2().features))
    if weights_state is not None:
        load_strict(layers, weights_state, net="mobilenet_v2", prefix="features.", dropped=("classifier.",))
    _dilate(layers, stride)
    stages: dict[str, nn.Module] = {}
    start = 0
    for name, end, _, _ in CUTS:
        stages[name] = nn.Sequential(*list(layers.children())[start:end])
        start = end
    taps = tuple(Tap(name, channels, min(native, stride), 0.0) for name, _, channels, native in CUTS)
    aliases = {"stride2": "block1", "stride4": "block2", "stride8": "block3", "low": "block2"}
    return Backbone("mobilenet_v2", Chain(stages), taps, aliases)


def _dilate(layers: nn.Module, stride: int) -> None:
    """From `stride` on, halvings become dilation: the same values as before lie on every second cell."""
    at, dilation = 1, 1
    for conv in layers.modules():
        if not isinstance(conv, nn.Conv2d) or conv.kernel_size == (1, 1):
            continue
        conv.dilation = conv.padding = (dilation, dilation)
        if conv.stride == (1, 1):
            continue
        if at < stride:
            at *= 2
        else:
            conv.stride = (1, 1)
            dilation *= 2
