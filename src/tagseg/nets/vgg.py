"""VGG-16: five blocks of 3x3 convolutions with max-pools between them; torchvision's weights fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from tagseg.nets.backbones import Backbone, Chain, Tap, load_strict, require_stride


@dataclass(frozen=True)
class Block:
    """Channels of each convolution of a block, and whether batch norm follows them."""

    channels: tuple[int, ...]
    norm: bool = False


VGG16 = (Block((64, 64)), Block((128, 128)), Block((256,) * 3), Block((512,) * 3), Block((512,) * 3))


def vgg16(stride: int, weights_state: Mapping[str, Tensor] | None) -> Backbone:
    """VGG-16 without its fully connected layers, at stride 4, 8, 16 or 32 (native, with the last pool)."""
    return pooled_net("vgg16", VGG16, stride, weights_state)


def pooled_net(name: str, blocks: tuple[Block, ...], stride: int,
               weights_state: Mapping[str, Tensor] | None) -> Backbone:
    """Blocks of convolutions, each followed by a max-pool: 2x2 stride 2 until `stride` is reached.

    A later pool is 3x3 stride 1 (centred, so the grid stays) and the convolutions after it are dilated, so that
    ImageNet weights keep their meaning. The last pool is part of `last` only at the native stride.
    """
    require_stride(name, stride, (4, 8, 16, 32))
    stages: dict[str, nn.Module] = {}
    taps: list[Tap] = []
    before, at, dilation = 3, 1, 1
    for k, block in enumerate(blocks, 1):
        stages[f"block{k}"] = _block(before, block, dilation)
        before = block.channels[-1]
        taps.append(_tap(f"block{k}", before, at))
        halve = at < stride
        stages[f"pool{k}"] = nn.MaxPool2d(2, 2) if halve else nn.MaxPool2d(3, 1, 1)
        at, dilation = (2 * at, dilation) if halve else (at, 2 * dilation)
        taps.append(_tap(f"pool{k}", before, at))
    if weights_state is not None:
        flat = nn.Sequential(*(layer for stage in stages.values()
                               for layer in (stage if isinstance(stage, nn.Sequential) else [stage])))
        load_strict(flat, weights_state, net=name, prefix="features.", dropped=("classifier.",))
    aliases = {"stride2": "block2", "stride4": "block3", "stride8": "block4", "low": "block3",
               "last": "pool5" if stride == 32 else "block5"}
    return Backbone(name, Chain(stages), tuple(taps), aliases, min_size=stride)


def _tap(name: str, channels: int, stride: int) -> Tap:
    return Tap(name, channels, stride, (stride - 1) / 2)  # each 2x2 pool sits between two pixels


def _block(before: int, block: Block, dilation: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in block.channels:
        conv = nn.Conv2d(before, channels, 3, padding=dilation, dilation=dilation)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        layers += [conv, *([nn.BatchNorm2d(channels)] if block.norm else []), nn.ReLU()]
        before = channels
    return nn.Sequential(*layers)
