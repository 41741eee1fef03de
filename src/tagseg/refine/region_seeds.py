"""Labels of superpixels: from class maps where these are sure, and back from a segmenter's masks by vote (MCOF)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tagseg.artifacts import LabelSet, MapSet, SuperpixelSet, write_labels
from tagseg.data.index import TaggedSet
from tagseg.ops import regions, superpixels
from tagseg.ops.geometry import enlarge
from tagseg.store import Work, stage
from tagseg.types import Labels, UsageError


@dataclass(frozen=True)
class RegionSeeds:
    """A superpixel is of a class where its mean score reaches `fg`, background where none is above `bg`."""

    fg: float = 0.5
    bg: float = 0.1


@dataclass(frozen=True)
class Vote:
    """`share`: so much of a superpixel's labelled pixels must carry one label."""

    share: float = 0.5


@stage(LabelSet, version=1)
def from_maps(work: Work, tagged: TaggedSet, maps: MapSet, segments: SuperpixelSet, cfg: RegionSeeds) -> None:
    """One label for each superpixel, 255 where the maps do not say enough."""
    if not 0 <= cfg.bg < cfg.fg <= 1:
        raise UsageError(f"seeds: found bg {cfg.bg} and fg {cfg.fg}; expected 0 <= bg < fg <= 1")

    def one(sample: str) -> Labels:
        found, ids = maps.get(sample), segments.get(sample)
        means = superpixels.means(enlarge(found.scores, found.size), ids)  # mcof Eq. 1
        labels = regions.seeds(means, found.classes, fg=cfg.fg, bg=cfg.bg, has_background=tagged.has_background)
        return Labels(sample, labels[ids])  # mcof Eq. 2

    def produce(ids: list[str]) -> Iterator[Labels]:
        yield from work.map(one, ids)

    write_labels(work, tagged.ids, produce, {"classes": list(tagged.classes)})


@stage(LabelSet, version=1)
def voted(work: Work, tagged: TaggedSet, masks: LabelSet, segments: SuperpixelSet, cfg: Vote) -> None:
    """The label that most pixels of a superpixel carry, 255 where they disagree; held to nothing but the masks."""
    if not 0 < cfg.share <= 1:
        raise UsageError(f"vote.share is {cfg.share}; expected a share above 0, at most 1")

    def one(sample: str) -> Labels:
        ids = segments.get(sample)
        return Labels(sample, regions.votes(masks.get(sample).pixels, ids, cfg.share)[ids])  # mcof Eq. 10

    def produce(ids: list[str]) -> Iterator[Labels]:
        yield from work.map(one, ids)

    write_labels(work, tagged.ids, produce, {"classes": list(tagged.classes)})


