"""Any timm network that can give features at a chosen stride; where its cells lie is measured, not assumed."""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tagseg.nets.backbones import (
    TIMM,
    Backbone,
    Preprocess,
    Tap,
    freeze_batch_norm,
    load_strict,
    plain_relus,
    require_stride,
)
from tagseg.types import UsageError

PROBE = (32, 1024)  # rows, columns of the input on which the grid is measured; receptive fields fit into the columns
STAGES = 5


class TimmBody(nn.Module):
    """A timm feature network, its list of features by name."""

    def __init__(self, net: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.net = net
        self.names = names

    def forward(self, x: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
        """The wanted taps of x (n, 3, h, w). timm computes all of them in any case."""
        return {name: out for name, out in zip(self.names, self.net(x), strict=True) if name in wanted}


def timm_net(name: str, stride: int, weights_state: Mapping[str, Tensor] | None) -> Backbone:
    """The timm network `name` (without "timm:"): batch norm fixed, taps blockK up to block5, which is also `last`.

    `weights_state` has timm's names, classifier included. Raises `UsageError` where timm cannot build features at
    this stride or where the cells of the network do not lie on one fixed grid.
    """
    require_stride(TIMM + name, stride, (8, 16, 32))
    net = _create(name, stride, features_only=True)
    if weights_state is not None:
        _load(net, name, stride, weights_state)
    plain_relus(freeze_batch_norm(net))
    info = net.feature_info
    channels, strides = list(info.channels()), list(info.reduction())
    first = STAGES + 1 - len(channels)
    names = tuple(f"block{first + i}" for i in range(len(channels)))
    offsets = grid_offsets(net, name, channels, strides)
    taps = tuple(Tap(*values) for values in zip(names, channels, strides, offsets, strict=True))
    return Backbone(TIMM + name, TimmBody(net, names), taps, _aliases(taps), min_size=32, preprocess=_preprocess(net))


def _create(name: str, stride: int, *, features_only: bool) -> Any:
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 1, 0.0)
        raise UsageError(f"network {TIMM + name!r}: timm knows no such name (nearest: {TIMM}{''.join(near)})")
    try:
        return timm.create_model(name, pretrained=False, output_stride=stride, features_only=features_only)
    except (AssertionError, TypeError, ValueError, RuntimeError, NotImplementedError) as fault:
        why = str(fault) or f"{type(fault).__name__} without a message: the network has no dilated form"
        raise UsageError(f"network {TIMM + name!r}: timm cannot give features at stride {stride} ({why}); expected a "
                         "convolutional network with dilation, such as timm:resnet50, or tagseg's own vgg16, "
                         "squeezenet1_1, mobilenet_v2") from fault


def _load(net: nn.Module, name: str, stride: int, state: Mapping[str, Tensor]) -> None:
    """Load into the whole classifier, where every name must fit, and copy the shared part into the feature network."""
    whole = _create(name, stride, features_only=False)
    heads = whole.default_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    skipped = {key: tensor for key, tensor in whole.state_dict().items() if _under(key, heads)}
    given = {key: tensor for key, tensor in state.items() if not _under(key, heads)}
    load_strict(whole, {**given, **skipped}, net=TIMM + name)
    # the feature network's names differ in their separators alone: stages.0.x is stages_0.x there
    same = {key.replace(".", "_"): tensor for key, tensor in whole.state_dict().items()}
    parts = {key: same[key.replace(".", "_")] for key in net.state_dict() if key.replace(".", "_") in same}
    load_strict(net, parts, net=TIMM + name)


def _under(key: str, heads: tuple[str, ...]) -> bool:
    return any(key.startswith(head + ".") for head in heads)


def _aliases(taps: tuple[Tap, ...]) -> dict[str, str]:
    """`last`, `low` (stride 4, else the finest), and strideN for the first tap that has this stride."""
    by_stride: dict[int, str] = {}
    for tap in taps:
        by_stride.setdefault(tap.stride, tap.name)
    named = {f"stride{s}": by_stride[s] for s in (2, 4, 8) if s in by_stride}
    return {**named, "low": by_stride.get(4, taps[0].name), "last": taps[-1].name}


def _preprocess(net: Any) -> Preprocess:
    return Preprocess(tuple(net.default_cfg["mean"]), tuple(net.default_cfg["std"]))


def grid_offsets(net: nn.Module, name: str, channels: list[int], strides: list[int]) -> list[float]:
    """The pixel at which cell 0 of each feature map is centred, for a network of convolutions and pools.

    A copy of the network is made linear with even weights; then the centre of the input gradient of a cell is the
    mean centre of all paths to that cell. Quarter pixels; raises `UsageError` where there is no fixed grid.
    """
    moving = [type(part).__name__ for part in net.modules()
              if type(part).__name__.endswith("Same") and part.stride not in (1, (1, 1), [1, 1])]
    if moving:
        raise UsageError(f"network {TIMM + name!r}: found {moving[0]} layers, whose padding, and so the place of every "
                         "cell, changes with the image size; expected fixed padding (the same network without `tf_`)")
    x = torch.zeros(1, 3, *PROBE, requires_grad=True)
    with torch.enable_grad():
        found = _linear(copy.deepcopy(net)).eval()(x)
        shapes = [tuple(f.shape) for f in found]
        if [shape[:2] for shape in shapes] != [(1, c) for c in channels]:
            raise UsageError(f"network {TIMM + name!r}: found features of shapes {shapes}, expected "
                             f"(n, channels, h, w) with channels {channels}; choose a convolutional network")
        offsets = [_offset(f, x, stride) for f, stride in zip(found, strides, strict=True)]
    if not all(map(math.isfinite, offsets)):
        raise UsageError(f"network {TIMM + name!r}: found layers through which the place of the cells cannot be "
                         "measured; expected a network of convolutions and pools, such as timm:resnet50")
    return [round(4 * offset) / 4 for offset in offsets]


def _offset(feature: Tensor, x: Tensor, stride: int) -> float:
    column = PROBE[1] // 2 // stride
    gradient, = torch.autograd.grad(feature[0, :, :, column].sum(), x, retain_graph=True)
    mass = gradient[0].sum((0, 1)).double()
    return float((mass * torch.arange(PROBE[1])).sum() / mass.sum()) - stride * column


def _linear(net: nn.Module) -> nn.Module:
    """Even positive weights, averages for maxima, no biases, norms or activations: only the geometry is left.

    On an input of zeros the gates (squeeze-and-excitation) are then constants, which leave the centre where it is.
    """
    for name, part in list(net.named_children()):
        if isinstance(part, nn.Conv2d):
            part.weight = nn.Parameter(torch.full_like(part.weight, 1 / part.weight[0].numel()), requires_grad=False)
            part.bias = None
        elif isinstance(part, nn.MaxPool2d):
            setattr(net, name, nn.AvgPool2d(part.kernel_size, part.stride, part.padding, part.ceil_mode))
        elif _shapeless(part):
            setattr(net, name, nn.Identity())
        else:
            _linear(part)
    return net


def _shapeless(part: nn.Module) -> bool:
    """A norm or an activation: it moves nothing in space. Sigmoids stay: a gate must not become 0."""
    layers = any(isinstance(inner, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)) for inner in part.modules())
    kind = type(part).__name__
    return not layers and ("Norm" in kind or ("activation" in type(part).__module__ and "igmoid" not in kind))
