"""Classifiers whose sampling layers learn apart from the rest: built from one another, written, looked at (ESOL)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tagseg.artifacts import Scores, Weights, write_scores, write_weights
from tagseg.data.index import TaggedSet
from tagseg.data.loader import Draws
from tagseg.inference import net_shape, resized
from tagseg.localize.cam import Cam
from tagseg.localize.classify import Layer, TagNet, load, tag_loss
from tagseg.nets.backbones import build
from tagseg.ops.flattening import area, by_peak
from tagseg.store import Work, stage
from tagseg.training.schedule import Schedule
from tagseg.types import DataError, IntegrityError, UsageError

Pool = Callable[[Tensor], Tensor]
WINDOW = 8  # batches that a loss or an area is the mean of


@dataclass(frozen=True)
class Clip:
    """How the output of a sampling layer is flattened, for each image and channel: at `beta` times its maximum over
    pixels ("channel_max"), at its `quantile` ("channel_quantile"), or not at all.
    """

    kind: Literal["channel_max", "channel_quantile", "none"] = "channel_max"
    beta: float = 0.5
    quantile: float = 0.9


def descent(rate: float, **more: Any) -> Schedule:
    """Plain descent at one rate from the first step to the last, no decay: it would pull offsets back to zero."""
    return Schedule(**{"min_images": 0, "optimiser": "sgd", "lr": rate, "head_lr": rate, "weight_decay": 0.0,
                       "warmup": 0.0, "power": 0.0, **more})  # fmt: skip


def moving(layer: Layer, clip: Clip | None, limit: float | None) -> Layer:
    """The layer with taps that move, flattened as `clip` says, or as it was."""
    moved = replace(layer, moves=True, limit=limit)
    if clip is None:
        return moved
    return replace(moved, clip=clip.kind, beta=clip.quantile if clip.kind == "channel_quantile" else clip.beta)


def check_offsets(where: str, limit: float | None, decay: float | str, clip: Clip | None = None) -> None:
    """Settings with which offsets cannot be learned are refused before anything is."""
    if limit is not None and not limit > 0:
        raise UsageError(f"{where}.limit: found {limit}, expected a length above 0 in cells, or null for none")
    if decay != 0:
        raise UsageError(f"{where}.schedule.weight_decay: found {decay}, expected 0: decay pulls offsets back to zero")
    if clip and not (0 < clip.beta <= 1 and 0 < clip.quantile <= 1):
        raise UsageError(f"{where}.clip: found beta {clip.beta}, quantile {clip.quantile}, expected both in (0, 1]")


def offsets_of(model: TagNet, number: int) -> list[nn.Parameter]:
    """The two tensors of a layer's offsets."""
    layer: Any = model.samplers[number]
    return list(layer.offset.parameters())


def layers_of(weights: Weights, count: int) -> list[Layer]:
    """The sampling layers that weights say they have; `DataError` unless so many."""
    layers = [Layer(**layer) for layer in weights.meta["samplers"]]
    if len(layers) != count:
        raise DataError(
            f"{weights.path}: found {len(layers)} sampling layers, expected {count}; a classifier has one if "
            "classifier.sampler names its channels, the second comes from the stage `shrinkage.second`"
        )
    return layers


def with_layers(weights: Weights, classes: tuple[str, ...], layers: list[Layer], new: tuple[str, ...] = ()) -> TagNet:
    """The network of `weights` with these sampling layers, in eval mode.

    Only offsets, which start at zero, and tensors whose names begin with one of `new` may be new.
    """
    before, meta = load(weights, classes).state_dict(), weights.meta
    model = TagNet(build(meta["backbone"], stride=meta["stride"]), len(classes), layers)
    own = model.state_dict()
    fresh = {n for n in own if n.startswith(new) or (".offset." in n and n not in before)} if new else {
        n for n in own if ".offset." in n and n not in before}  # fmt: skip
    known = {n: t for n, t in before.items() if n not in fresh}
    if known.keys() != own.keys() - fresh:
        raise IntegrityError(f"{weights.path}: its tensors are not those of the layers that it names")
    model.load_state_dict({**own, **known})
    return model.eval()


def write(work: Work, model: TagNet, before: Weights, more: Mapping[str, Any]) -> None:
    """Weights that say which layers they have, and all else that the classifier before them said."""
    layers = [asdict(layer) for layer in model.layers]
    write_weights(work, model.state_dict(), {**before.meta, "samplers": layers, **more})


@contextmanager
def _looking(model: TagNet, device: str) -> Iterator[None]:
    model.to(device).eval()
    with torch.no_grad():
        yield


def mean_tag_loss(model: TagNet, draws: Draws, pooled: Pool, device: str) -> float:
    """The tag loss of a model as it stands, on the first `WINDOW` batches."""
    losses = []
    with _looking(model, device):
        for batch in (draws(step) for step in range(WINDOW)):
            maps = model(model.backbone.preprocess(batch["images"].to(device).float() / 255))
            loss = tag_loss(model.head.logits(maps.float(), pooled), batch["tags"].to(device))
            losses.append(float(loss) / len(batch["tags"]))
    return float(np.mean(losses))


def mean_area(model: TagNet, draws: Draws, device: str) -> float:
    """The mean area of the maps of present classes on the first `WINDOW` batches; images without a tag do not count."""
    areas = []
    with _looking(model, device):
        for batch in (draws(step) for step in range(WINDOW)):
            maps, tags = model(model.backbone.preprocess(batch["images"].to(device).float() / 255)), batch["tags"]
            areas.append(area(by_peak(maps.float()), tags.to(device))[tags.any(1)].cpu())
    found = torch.cat(areas)
    return float(found.mean()) if len(found) else 0.0


@stage(Scores, version=1)
def reach(work: Work, tagged: TaggedSet, weights: Weights, cfg: Cam) -> None:
    """Where the last layer's taps go on each image as shown at scale 1: for pictures.

    By id: `offsets` (18,h,w) in cells, (dy, dx) tap by tap; `shown` (H,W), the image's size as the network saw it;
    `stride` and `offset` of the cells there.
    """
    model = load(weights, tagged.classes)
    found = {}
    for sample in tagged.ids:
        image = tagged.source.read(sample)
        size = net_shape((image.shape[1], image.shape[2]), cfg.views.size, 1.0, model.backbone.min_size)
        x = torch.from_numpy(resized(image, size))[None].float() / 255
        with torch.no_grad():
            f = model.backbone(model.backbone.preprocess(x), ["last"])["last"]
            layer: Any = model.samplers[-1]
            moved = layer.offsets(model.sampled(f, 0, len(model.layers) - 1))
        still = torch.zeros(1, 18, *f.shape[2:])
        found[sample] = {
            "offsets": np.round((still if moved is None else moved)[0].numpy().astype(np.float64), 3).tolist(),
            "shown": list(size),
            "stride": model.tap.stride,
            "offset": model.tap.offset,
        }
    write_scores(work, found)
