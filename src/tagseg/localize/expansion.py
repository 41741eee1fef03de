"""Widen class maps: offsets that make the classifier do worse look where it did not need to look (ESOL, stage 1)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from tagseg.artifacts import Weights
from tagseg.data.index import TaggedSet
from tagseg.data.loader import Augment, Draws, drawn_from, prefetched
from tagseg.localize.classify import TagNet, pooling_of, tag_loss
from tagseg.localize.sampling_layers import (
    WINDOW,
    Clip,
    Pool,
    check_offsets,
    descent,
    layers_of,
    mean_area,
    mean_tag_loss,
    moving,
    offsets_of,
    with_layers,
    write,
)
from tagseg.store import Work, stage
from tagseg.training.loop import Batch, Task, fit
from tagseg.training.schedule import Schedule, Training, optimiser, steps
from tagseg.types import UsageError

CHANCE = float(np.log(2))
SHARE = 0.2  # how far from knowing to guessing the ascent may go
EVERY = 5  # steps between two looks at the area


@dataclass(frozen=True)
class Expand(Training):
    """Ascent of the tag loss by the offsets alone: what counts is `alpha` times the rate.

    `ceiling`: the ascent stops where the tag loss goes over it; "guard" is `guard_ceiling`. `area`: it also stops where
    the mean area of the maps has reached this share of the image. `limit`: the longest offset in cells. `head`:
    "train" lets the head flee, too, and is there to show that it collapses.
    """

    alpha: float = 0.01
    clip: Clip = field(default_factory=Clip)
    ceiling: float | Literal["guard"] = "guard"
    area: float | None = None
    limit: float | None = None
    head: Literal["frozen", "train"] = "frozen"
    augment: Augment = field(default_factory=Augment)
    schedule: Schedule = field(default_factory=lambda: descent(0.1, epochs=1.0, max_images=4000))

    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {"augment": Augment(size=96, colour=0.1), "schedule": descent(0.1, epochs=1.0, batch=32)},
        "paper": {
            "augment": Augment(size=512, scale=(0.6, 1.25)),
            "schedule": descent(0.1, epochs=1.0, max_images=10**9),
        },
    }


@stage(Weights, version=1)
def expanded(work: Work, tagged: TaggedSet, classifier: Weights, cfg: Expand) -> None:
    """The classifier with offsets in its sampling layer that were led to where it does worse."""
    check(cfg)
    (layer,) = layers_of(classifier, 1)
    model = with_layers(classifier, tagged.classes, [moving(layer, cfg.clip, cfg.limit)])
    offsets = offsets_of(model, 0)
    head = list(model.head.parameters()) if cfg.head == "train" else []
    model.learns([*offsets, *head])
    images, pooled = tagged.training(), pooling_of(classifier)
    draws = drawn_from(images, cfg.augment, cfg.schedule.batch, int(cfg.seed))
    start = mean_tag_loss(model, draws, pooled, cfg.device)
    ceiling = guard_ceiling(start, images.tags) if cfg.ceiling == "guard" else float(cfg.ceiling)
    ends = Ends(model, draws, ceiling, cfg)
    with prefetched(draws) as batches:
        task = Task(
            model,
            optimiser(scaled(cfg.schedule, cfg.alpha), offsets, head),
            batches,
            Ascent(pooled),
            steps(cfg.schedule, len(images)) if cfg.alpha and start < ceiling else 0,
            int(cfg.seed),
            cfg.device,
            cfg.precision,
            draws.names,
            ends,
        )
        fit(work, task, cfg.schedule)
    end = mean_tag_loss(model, draws, pooled, cfg.device)
    if cfg.alpha and start >= ceiling:
        work.event(f"no step was made: the tag loss is {start:.3f} before the first, its ceiling {ceiling:.3f}")
    elif end > ceiling and not work.events:  # the ascent was too short for the running mean to see it
        work.event(ends.over(end))
    write(work, model, classifier, {"tag_loss_at_start": start, "tag_loss_at_end": end, "ceiling": ceiling})


def check(cfg: Expand) -> None:
    """Settings with which the ascent cannot work are refused before it begins."""
    check_offsets("expand", cfg.limit, cfg.schedule.weight_decay, cfg.clip)
    if cfg.alpha < 0:
        raise UsageError(f"expand.alpha: found {cfg.alpha}, expected 0 or more (below 0 would train the classifier)")
    if cfg.area is not None and not 0 < cfg.area <= 1:
        raise UsageError(f"expand.area: found {cfg.area}, expected a share of the image in (0, 1], or null")
    if cfg.ceiling != "guard" and not 0 < float(cfg.ceiling) <= CHANCE:
        raise UsageError(
            f"expand.ceiling: found {cfg.ceiling}, expected guard or a tag loss in (0, {CHANCE:.3f}]: over the loss of "
            "guessing the maps have nothing left to show"
        )


def scaled(schedule: Schedule, alpha: float) -> Schedule:
    """The rates times `alpha`: plain descent on -alpha L at a rate is descent on -L at alpha times that rate, and so
    the recorded losses keep their digits.
    """
    return replace(schedule, lr=alpha * float(schedule.lr), head_lr=alpha * float(schedule.head_lr))  # esol Eq. 5


def guard_ceiling(start: float, tags: np.ndarray) -> float:
    """Where the ascent must end: a fifth of the way from the loss at its start to that of guessing, 5 times the start
    at most.

    Guessing: the entropy of how often each class is tagged (N,C). The specification's guard, min(.2 ln 2, 5 start), is
    this where the start is near 0 and tags are even; a classifier that stands above .14 could not move at all by it.
    """
    return min(start + SHARE * max(guessing(tags) - start, 0.0), 5 * start)


def guessing(tags: np.ndarray) -> float:
    """The tag loss of who knows only how often each class is tagged (N,C)."""
    share = np.clip(tags.mean(0), 1e-6, 1 - 1e-6)
    return float(-(share * np.log(share) + (1 - share) * np.log(1 - share)).mean())


@dataclass(frozen=True)
class Ascent:
    """Minus the tag loss; alpha is in the rate."""

    pool: Pool

    def count(self, batch: Batch) -> float:
        return len(batch["images"])

    def total(self, model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, TagNet)
        maps = model(model.backbone.preprocess(batch["images"].float() / 255))
        return -tag_loss(model.head.logits(maps.float(), self.pool), batch["tags"])  # esol Eq. 4


@dataclass(frozen=True)
class Ends:
    """Why an ascent, whose loss knows no upper bound, must end: the last batches' tag loss, or the area wanted."""

    model: TagNet
    draws: Draws
    ceiling: float
    cfg: Expand

    def __call__(self, history: list[list[float]]) -> str | None:
        if len(history) >= 2:  # one batch alone says little
            now = -float(np.mean([row[1] for row in history[-WINDOW:]]))
            if now > self.ceiling:
                return self.over(now)
        if self.cfg.area is None or not history or len(history) % EVERY:
            return None
        wide = mean_area(self.model, self.draws, self.cfg.device)
        return f"the mean area of the maps is {wide:.3f}, wanted {self.cfg.area}" if wide >= self.cfg.area else None

    def over(self, loss: float) -> str:
        """The guard's words."""
        return (
            f"the tag loss is {loss:.3f}, over its ceiling {self.ceiling:.3f}, with alpha {self.cfg.alpha}; for a "
            "longer ascent lower expand.alpha or the rate, not the guard: maps collapse beyond it"
        )
