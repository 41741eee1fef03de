"""Deformable sampling, forward and backward to features, offsets and weights, against torchvision's operator."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.measure import compare
from benchmarks.processes import Job

SHAPES = {"mobilenet_v2": (16, 1280, 256, 16), "small": (32, 128, 128, 12)}  # images, channels in, out, side


def sides(name: str) -> dict[str, Job]:
    from tagseg.nets.sampler import mixed_first, on_card

    n, d, e, side = SHAPES[name]
    torch.manual_seed(0)
    inputs = [torch.randn(n, d, side, side), 0.5 * torch.randn(n, 18, side, side), 0.01 * torch.randn(e, d, 3, 3)]

    def step(operator: object) -> list[Tensor]:
        given = [t.clone().requires_grad_() for t in inputs]
        out = operator(*given)  # type: ignore[operator]
        return [out.detach(), *torch.autograd.grad(out.square().mean(), given)]

    return {"ours": partial(step, mixed_first), "peer": partial(step, on_card)}


def agreement(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """One minus the largest difference of values and gradients, each relative to its largest value."""
    return 1 - max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))


def main() -> None:
    for name, (n, d, e, side) in SHAPES.items():
        compare(f"sampler-{name}", peer="torchvision.ops.deform_conv2d",
                setting=f"{n} images, {d} to {e} channels, {side}x{side}, 3x3, forward and backward", build=sides,
                args=(name,), agree=agreement, agreement_of="values and gradients", rounds=3)


if __name__ == "__main__":
    main()
