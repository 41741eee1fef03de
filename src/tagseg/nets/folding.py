"""Networks rewritten for inference: batch norm and plain activations merged into the convolutions before them.

What may be merged is read from the data flow of one trial pass (its autograd graph), never from names or positions:
the convolution's output must go to the norm, or to the activation, and nowhere else.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tagseg.nets.backbones import FixedBatchNorm

CLOSE = 1e-3  # a rewritten network that differs by more, relative to its largest output, is thrown away
Pair = tuple[nn.Conv2d, nn.Module]


def folded(module: nn.Module, example: Float[Tensor, "n d h w"]) -> nn.Module:
    """A copy in eval mode whose batch norms are merged into the convolutions that feed them; same outputs to rounding.

    A batch norm stays where it is if its input is not the output of one convolution, if that output or the
    convolution's weights are used elsewhere, too, or if it has no stored statistics. An activation that a norm carries
    (timm) is kept. `example` is an input like those to come, of any size; the module handed in is not changed.
    """
    copied = _copy(module)
    pairs, outputs = _trial(copied, example, lambda part: _after(part) is not None)
    for conv, norm in pairs:
        _merge(conv, norm)
        _replace(copied, norm, _after(norm) or nn.Identity())
    return copied if _same(copied, example, outputs) else _copy(module)


def fused(module: nn.Module, example: Float[Tensor, "n d h w"], dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy in eval mode in which ReLU and ReLU6 are computed by the convolution before them, in one pass over memory.

    For a CPU with oneDNN; elsewhere it is not for use. `dtype`: what the copy will be brought to; where this torch and
    this CPU have no such kernel for it, the copy is a plain one. Below float32 convolutions without an activation go
    through that kernel, too, as it takes a bias in float32. Autocast does not bring them anywhere.
    """
    copied = _copy(module)
    if not _kernel_works(dtype):
        return copied
    pairs, outputs = _trial(copied, example, lambda part: type(part) in ACTIVATIONS)
    for conv, activation in pairs:
        if _plain(conv):
            _replace(copied, conv, ConvAct(conv, activation))
            _replace(copied, activation, nn.Identity())
    if dtype is not torch.float32:
        for part in list(copied.modules()):
            if _plain(part):
                _replace(copied, part, ConvAct(part))
    return copied if _same(copied, example, outputs) else _copy(module)


def _plain(part: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether it is a convolution of the kind that oneDNN's kernel takes."""
    return type(part) is nn.Conv2d and part.padding_mode == "zeros" and not isinstance(part.padding, str)


ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {  # oneDNN's name and arguments
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
}


class ConvAct(nn.Module):
    """A convolution and its activation in one oneDNN kernel, on a CPU, in its weights' precision, for inference.

    The bias may stay in float32.
    """

    def __init__(self, conv: nn.Conv2d, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self.kind, self.arguments = ACTIVATIONS[type(activation)] if activation else ("none", [])

    def forward(self, x: Float[Tensor, "n d h w"]) -> Float[Tensor, "n e h2 w2"]:
        """Convolve, then activate."""
        kernel = torch.ops.mkldnn._convolution_pointwise  # what torch.compile calls on a CPU; `_kernel_works` tries it
        rounded = x.to(self.weight.dtype)
        done: Tensor = kernel(rounded, self.weight, self.bias, *self.geometry, self.kind, self.arguments, "")
        return done


@cache
def _kernel_works(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this torch has oneDNN's fused convolution in the form that is known here, for this CPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    conv, x = nn.Conv2d(2, 2, 3), torch.arange(-36.0, 36).view(1, 2, 6, 6) / 36
    try:
        with torch.no_grad():
            tried = ConvAct(conv, nn.ReLU6())
            wanted = F.relu6(conv(x))
            tried.weight.data = tried.weight.to(dtype)
            return torch.allclose(tried(x).float(), wanted, atol=16 * torch.finfo(dtype).eps)
    except (AttributeError, RuntimeError, TypeError):  # an internal name of torch: it may move
        return False


def _after(part: nn.Module) -> nn.Module | None:
    """What is left of a batch norm once it is merged: the activation that it carries; None if it cannot be merged."""
    if getattr(part, "running_mean", None) is None:
        return None
    if type(part) is nn.BatchNorm2d:
        return nn.Identity()
    if isinstance(part, FixedBatchNorm):
        return part.act
    children = dict(part.named_children())
    if isinstance(part, nn.BatchNorm2d) and children.keys() == {"drop", "act"}:  # timm
        return nn.Sequential(children["drop"], children["act"])
    return None


def _merge(conv: nn.Conv2d, norm: Any) -> None:
    """Scale the convolution's weights by the norm and add its shift to the bias, computed in float64."""
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    gain = torch.rsqrt(variance + norm.eps) * (1 if norm.weight is None else norm.weight.detach().double())
    bias = 0 if conv.bias is None else conv.bias.detach().double()
    shift = (bias - mean) * gain + (0 if norm.bias is None else norm.bias.detach().double())
    kept = conv.weight.dtype
    conv.weight = nn.Parameter((conv.weight.detach().double() * gain.view(-1, 1, 1, 1)).to(kept), requires_grad=False)
    conv.bias = nn.Parameter(shift.to(kept), requires_grad=False)


def _trial(module: nn.Module, example: Tensor, wanted: Callable[[nn.Module], bool]) -> tuple[list[Pair], list[Tensor]]:
    """The convolutions whose output goes to one module that is `wanted` and nowhere else, each with that module.

    Both are called once in a pass, whose outputs come second. In the autograd graph every use of a value is an edge to
    the step that made it; a value changed in place belongs to another step, and computed weights are not a parameter.
    """
    made: dict[Any, nn.Conv2d] = {}  # step -> convolution
    given: list[tuple[Any, nn.Module]] = []

    def note_output(part: nn.Module, _: Any, output: Any) -> None:
        if isinstance(part, nn.Conv2d):
            made[output.grad_fn] = part

    def note_input(part: nn.Module, inputs: tuple[Any, ...]) -> None:
        given.append((getattr(inputs[0], "grad_fn", None) if inputs else None, part))

    hooks = [part.register_forward_hook(note_output) for part in module.modules()]
    hooks += [part.register_forward_pre_hook(note_input) for part in module.modules() if wanted(part)]
    with torch.inference_mode(False), torch.enable_grad():
        outputs = list(_tensors(module.requires_grad_(True)(example.clone())))  # without gradients there is no graph
    uses, weights = _uses(outputs)
    module.requires_grad_(False)
    for hook in hooks:
        hook.remove()
    calls = Counter(part for _, part in given)
    return [
        (made[step], part)
        for step, part in given
        if step in made and calls[part] == 1 and uses[step] == 1 and weights[step] is made[step].weight
    ], [output.detach() for output in outputs]


def _uses(outputs: list[Tensor]) -> tuple[Counter[Any], dict[Any, Tensor | None]]:
    """How often the value of each step is used, outputs included, and the weight that only this step uses."""
    uses: Counter[Any] = Counter(output.grad_fn for output in outputs)
    waiting, seen = list(uses), set(uses)
    parents: dict[Any, list[Any]] = {}
    while waiting:
        step = waiting.pop()
        parents[step] = [parent for parent, _ in getattr(step, "next_functions", ())]
        for parent in parents[step]:
            uses[parent] += 1
            if parent is not None and parent not in seen:
                seen.add(parent)
                waiting.append(parent)
    return uses, {step: _own_weight(found, uses) for step, found in parents.items()}


def _own_weight(parents: list[Any], uses: Counter[Any]) -> Tensor | None:
    """The second argument of a step (a convolution's weights) if it is a parameter that nothing else uses."""
    leaf = parents[1] if len(parents) > 1 else None
    return getattr(leaf, "variable", None) if uses[leaf] == 1 else None


def _tensors(found: Any) -> Iterator[Tensor]:
    """All tensors of an output: a tensor, or dicts, lists and tuples of them."""
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, dict):
        yield from _tensors(list(found.values()))
    elif isinstance(found, (list, tuple)):
        for part in found:
            yield from _tensors(part)


@torch.inference_mode(False)
def _copy(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).eval().requires_grad_(False)


def _replace(module: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if child is old:
                setattr(parent, name, new)


@torch.no_grad()
def _same(rewritten: nn.Module, example: Tensor, outputs: list[Tensor]) -> bool:
    """Whether the rewritten network gives what it gave before: some uses of a value autograd does not see."""
    return all(
        float((found - before).abs().max()) <= CLOSE * float(before.abs().max())
        for found, before in zip(_tensors(rewritten(example)), outputs, strict=True)
    )
