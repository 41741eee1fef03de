"""Images a second of the scene generator, 96x96, one core."""

from __future__ import annotations

from functools import partial

from benchmarks.measure import in_turn, write
from tagseg.data.scenes import PRESETS, preset, render

IMAGES = 100


def draw(name: str) -> None:
    """Render the first images of a preset."""
    for index in range(IMAGES):
        render(preset(name), 0, index)


def main() -> None:
    jobs = {name: partial(draw, name) for name in PRESETS}
    times = in_turn(jobs, rounds=5)
    rates = {name: round(1e3 * IMAGES / t["cpu_ms"]["median"]) for name, t in times.items()}
    write("scenes", {"setting": "96x96, images per CPU second, median of 5", "images_per_second": rates})


if __name__ == "__main__":
    main()
