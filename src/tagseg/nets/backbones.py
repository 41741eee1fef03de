"""Feature networks under one protocol: named taps with channels, stride and offset, whatever library made the layers.

Blocks carry the same names in every network: `block4` and `block5` are the last two stages, earlier stages count
down; `poolK` follows `blockK` where the network has max-pools. `last` is what a classifier reads, `low` the
stride-4 features that a decoder reads, `stride2|4|8` the end of the stage that has this stride.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tagseg.types import DataError, IntegrityError, UsageError

OWN = ("vgg16", "squeezenet1_1", "mobilenet_v2", "small")
TIMM = "timm:"


@dataclass(frozen=True)
class Tap:
    """A named feature map. Cell i is centred at input pixel `stride * i + offset` (pixel centres are integers)."""

    name: str
    channels: int
    stride: int
    offset: float


@dataclass(frozen=True)
class Preprocess:
    """How the network wants its input: RGB in 0..1, minus `mean`, divided by `std`."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # ImageNet
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __call__(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        """Normalise images given in 0..1."""
        return (images - images.new_tensor(self.mean).view(3, 1, 1)) / images.new_tensor(self.std).view(3, 1, 1)


class Chain(nn.Module):
    """Stages run one after the other; the output of each is a tap of the stage's name."""

    def __init__(self, stages: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleDict(stages)

    def forward(self, x: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
        """The wanted taps of x (n, 3, h, w); nothing after the last of them is computed."""
        found: dict[str, Tensor] = {}
        for name, stage in self.stages.items():
            if wanted <= found.keys():
                break
            x = stage(x)
            if name in wanted:
                found[name] = x
        return found


class Backbone(nn.Module):
    """A feature network: give it normalised images, get its named taps.

    `body(x, wanted)` returns a dict of the wanted taps; `taps` runs from the input to the last; `aliases` are second
    names of taps; `min_size` is the smallest side of an image that the network takes.
    """

    def __init__(self, name: str, body: nn.Module, taps: tuple[Tap, ...], aliases: Mapping[str, str], *,
                 min_size: int = 1, preprocess: Preprocess | None = None) -> None:
        super().__init__()
        self.name = name
        self.body = body
        self.taps = taps
        self.aliases = dict(aliases)
        self.min_size = min_size
        self.preprocess = preprocess or Preprocess()

    def tap(self, name: str) -> Tap:
        """Channels, stride and offset of a tap, by name or alias. Raises `UsageError` with the known names."""
        wanted = self.aliases.get(name, name)
        for tap in self.taps:
            if tap.name == wanted:
                return tap
        known = [*(tap.name for tap in self.taps), *self.aliases]
        raise UsageError(f"network {self.name!r}: found no features named {name!r}, expected one of {', '.join(known)}")

    def forward(self, x: Float[Tensor, "n 3 h w"], names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Features by name, each (n, d, h', w'): the ones asked for, or all of them, aliases included."""
        if min(x.shape[2:]) < self.min_size:
            raise DataError(f"network {self.name!r}: found an input of {tuple(x.shape[2:])} pixels, expected at least "
                            f"{self.min_size} on each side; pad or enlarge the image")
        asked = [*(tap.name for tap in self.taps), *self.aliases] if names is None else list(names)
        own = {name: self.tap(name).name for name in asked}
        found = self.body(x, frozenset(own.values()))
        return {name: found[source] for name, source in own.items()}


class FixedBatchNorm(nn.Module):
    """Batch norm that always uses its stored statistics, in train mode too; scale and shift still learn.

    Same numbers and same names in the state as `nn.BatchNorm2d` in eval mode, without `num_batches_tracked`.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, source: nn.BatchNorm2d, act: nn.Module) -> None:
        super().__init__()
        self.eps = source.eps
        self.weight = source.weight
        self.bias = source.bias
        self.register_buffer("running_mean", source.running_mean)
        self.register_buffer("running_var", source.running_var)
        self.act = act

    def forward(self, x: Float[Tensor, "n d h w"]) -> Float[Tensor, "n d h w"]:
        """Normalise, scale and shift each channel."""
        normed = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return self.act(normed)


def freeze_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every batch norm inside, in place, by one whose statistics cannot move; return the module.

    timm's batch norms that carry their activation keep it.
    """
    if isinstance(module, nn.BatchNorm2d):
        if module.running_mean is None:
            raise UsageError("batch norm without stored statistics cannot be fixed; choose another network")
        return FixedBatchNorm(module, getattr(module, "act", nn.Identity()))
    for name, child in module.named_children():
        setattr(module, name, freeze_batch_norm(child))
    return module


def plain_relus(module: nn.Module) -> nn.Module:
    """Make activations inside work out of place, so that taps and their gradients stay what they were."""
    for part in module.modules():
        if getattr(part, "inplace", False):
            part.inplace = False  # type: ignore[assignment]
    return module


def load_strict(module: nn.Module, state: Mapping[str, Tensor], *, net: str, prefix: str = "",
                dropped: tuple[str, ...] = ()) -> None:
    """Copy named tensors into a module; every name and shape must fit.

    `prefix` stands before the module's own names in `state`. Names that begin with one of `dropped` (the classifier)
    and batch-norm counters are left out. Raises `IntegrityError` that lists what is missing, unexpected or misshapen.
    """
    own = {prefix + name: tensor for name, tensor in module.state_dict().items()
           if not name.endswith("num_batches_tracked")}
    given = {name: tensor for name, tensor in state.items()
             if not name.startswith(dropped) and not name.endswith("num_batches_tracked")}
    wrong = [f"{name} {tuple(given[name].shape)} instead of {tuple(own[name].shape)}"
             for name in own.keys() & given.keys() if own[name].shape != given[name].shape]
    faults = [f"{what}: {_some(names)}" for what, names in
              (("missing", own.keys() - given.keys()), ("unexpected", given.keys() - own.keys()), ("shape", wrong))
              if names]
    if faults:
        raise IntegrityError(f"weights for {net!r}: found {'; '.join(faults)}; expected exactly the names and shapes "
                             f"of this network. Give the file that belongs to {net!r}, or name the network it was "
                             "made with")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(given[name])


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:6]) + (f" and {len(listed) - 6} more" if len(listed) > 6 else "")


def require_stride(name: str, stride: int, possible: tuple[int, ...]) -> None:
    """Raise `UsageError` unless the network can be built at this stride."""
    if stride not in possible:
        raise UsageError(f"network {name!r}: found stride {stride}, expected one of {', '.join(map(str, possible))}")


def build(name: str, *, stride: int = 16, weights_state: Mapping[str, Tensor] | None = None) -> Backbone:
    """Make a feature network by name: vgg16, squeezenet1_1, mobilenet_v2, small, or timm:NAME.

    `stride` is that of the last features, reached by dilation where the network goes further. `weights_state` holds
    tensors under torchvision's names (timm's for timm:NAME), classifier included; None leaves random weights from
    torch's default generator. Raises `UsageError` (name, stride) and `IntegrityError` (weights that do not fit).
    """
    # torchvision and timm take seconds to import: only the network that is asked for pays
    if name == "vgg16":
        from tagseg.nets.vgg import vgg16 as make
    elif name == "squeezenet1_1":
        from tagseg.nets.squeezenet import squeezenet1_1 as make
    elif name == "mobilenet_v2":
        from tagseg.nets.mobilenet import mobilenet_v2 as make
    elif name == "small":
        from tagseg.nets.small import small as make
    elif name.startswith(TIMM):
        from tagseg.nets.timm_net import timm_net

        return timm_net(name.removeprefix(TIMM), stride, weights_state)
    else:
        raise UsageError(f"network: found {name!r}, expected one of {', '.join(OWN)} or {TIMM}NAME "
                         f"(nearest: {_nearest(name)})")
    return make(stride, weights_state)


def _nearest(name: str) -> str:
    own = difflib.get_close_matches(name, OWN, 1, 0.5)
    if own:
        return own[0]
    import timm

    known = timm.list_models()
    return TIMM + (difflib.get_close_matches(name, known, 1, 0.0) or ["resnet50"])[0]
