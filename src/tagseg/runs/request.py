"""What a user asks of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tagseg.data.folder import Reading


@dataclass(frozen=True)
class Request:
    """What a user asks for. Empty `train` means all images, empty `val` no numbers without tags.

    `k_masks`: so many training masks choose the threshold of the `k` point; they are left out of its scores.
    `saliency`: a folder of maps made elsewhere; `saliency_from`: what made them, and from what that had learned.
    `picks`: a file that `tagseg pick` wrote. `aux`: a folder of images with masks of other classes, and its splits.
    `adapt`: a finished run whose model is taught other classes.
    """

    method: str
    data: str
    out: Path
    train: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    backbone: str = "auto"
    weights: str | None = None
    seed: int = 0
    budget: str = "standard"
    config: Path | None = None
    sets: tuple[str, ...] = ()
    cache: Path | None = None
    device: str = "auto"
    precision: str = "auto"
    workers: int = 2
    k_masks: int = 0
    reading: Reading = field(default_factory=Reading)
    command: str = ""
    saliency: Path | None = None
    saliency_from: str | None = None
    picks: Path | None = None
    aux: str | None = None
    aux_splits: tuple[str, ...] = ()
    adapt: Path | None = None
