"""What each measurement should reach, and whether a row does: ratios in one run, never absolute times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """A goal for the rows of one job; what is None is not asked. `text` says it in words.

    `ratio` is the least ratio of CPU time on one core, `floor` the ratio under which a job is not done; `agreement`
    and `peak_mb` are the least agreement and the most memory; `deviation` is the most that an image's cost may differ,
    `memory_growth` the most that memory may grow from 4x to 16x images, `share` the least of a card's peak.
    """

    text: str
    ratio: float | None = None
    floor: float | None = None
    agreement: float | None = None
    peak_mb: float | None = None
    deviation: float | None = None
    memory_growth: float | None = None
    share: float | None = None

    def verdict(self, row: Row) -> str:
        """"met", or "MISSED" with what was not reached."""
        missed = [
            name
            for name, wanted, found, enough in (
                ("speed", self.ratio, row.get("ratio_cpu"), lambda f, w: f >= w),
                ("agreement", self.agreement, row.get("agreement"), lambda f, w: f >= w),
                ("memory", self.peak_mb, row.get("peak_mb_ours"), lambda f, w: f <= w),
                ("cost of an image", self.deviation, row.get("deviation"), lambda f, w: f <= w),
                ("share of peak", self.share, row.get("share_of_peak"), lambda f, w: f >= w),
                ("constant memory", self.memory_growth, row.get("memory_growth"), lambda f, w: f <= w),
            )
            if wanted is not None and (found is None or not enough(found, wanted))
        ]
        if not missed:
            return "met"
        under = self.floor is not None and (row.get("ratio_cpu") or 0) < self.floor
        return f"MISSED: {', '.join(missed)}" + (f", under the floor of {self.floor:g}x" if under else "")


LINEAR = Target("linear in images, memory constant, within 10 % (memory: and 4 MB)", deviation=0.1, memory_growth=0.1)
TARGETS = {
    "crf-3": Target("≥ 5x, 99.99 % of labels", 5.0, 3.0, 0.9999),
    "crf-21": Target("≥ 3x, 99.99 % of labels", 3.0, 2.0, 0.9999),
    "crf-21-floor": Target("≥ 8x where labels under .05 everywhere are dropped, 99.9 %", 8.0, agreement=0.999),
    "walk-dense-47x63": Target("≥ 40x", 40.0, agreement=0.9999),
    "walk-dense-94x125": Target("≥ 500x (dense extrapolated)", 500.0, agreement=0.9999),
    "walk-chebyshev-94x125": Target("≥ 4x the exact form, 99.99 % of labels", 4.0, agreement=0.9999),
    "walk-2048": Target("under 2 GB", peak_mb=2048.0, agreement=0.9999),
    "cam": Target("≥ 2x where the CPU has no bf16, 99.9 % of cells", 2.0, agreement=0.999),  # else `FAST`
    "cam-trained": Target("mIoU within .1", agreement=0.999),
    "whole": Target("≥ 5x, 99 % of labels", 5.0, agreement=0.99),
    "whole-full-size": Target("99 % of labels in a run's precision", agreement=0.99),
    "whole-fp32": Target("≥ 5x, 99.9 % of labels in fp32", 5.0, agreement=0.999),
    "whole-no-walk": Target("≥ 5x, 99 % of labels", 5.0, agreement=0.99),
    "miou": Target("≥ 50x, equal IoU", 50.0, agreement=1.0),
    "miou-torchmetrics": Target("≥ 50x, equal IoU", 50.0, agreement=1.0),
    "loader": Target("≥ 5x, pixels equal within resize rounding", 5.0, agreement=0.999),
    "superpixels-felzenszwalb": Target("not slower (5 % for noise)", 0.95, agreement=1.0),
    "superpixels-slic": Target("not slower (5 % for noise)", 0.95, agreement=1.0),
    "crf-gpu": Target("≥ 50x the images a second of pydensecrf2 on one core, 99.9 % of labels", 50.0, agreement=0.999),
    "walk-gpu": Target("batched on a card, 99.9 % of labels", agreement=0.999),
    "cam-gpu": Target("≥ 40 % of peak bf16", share=0.4),
    **dict.fromkeys(("growth-cam", "growth-crf", "growth-walk"), LINEAR),
    **dict.fromkeys(("absent-cam", "absent-crf", "absent-walk"),
                    Target("absent classes cost nothing (10 %)", deviation=0.1)),
}
# Cells with random weights are nearly ties, which rounding turns; what bf16 does to trained ones is `cam-trained`'s.
FAST = Target("≥ 4x where the CPU has bf16, 99 % of cells", 4.0, agreement=0.99)


def target_of(row: Row) -> Target:
    """The goal of a row's job; that of `cam` is another where the processor has bf16."""
    fast = row["job"] == "cam" and ", bf16" in row.get("machine", "")
    return FAST if fast else TARGETS.get(row["job"], Target("-"))
