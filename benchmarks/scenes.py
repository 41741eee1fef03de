"""Images a second of the scene generator, 96x96, one core."""

from __future__ import annotations

from functools import partial

from benchmarks.measure import in_turn, write
from benchmarks.processes import alone
from tagseg.data.scenes import PRESETS, preset, render

IMAGES = 100


def draw(name: str) -> None:
    """Render the first images of a preset."""
    for index in range(IMAGES):
        render(preset(name), 0, index)


def rates() -> dict[str, int]:
    """Images per CPU second of every preset."""
    times = in_turn({name: partial(draw, name) for name in PRESETS}, rounds=5)
    return {name: round(1e3 * IMAGES / t["cpu_ms"]["median"]) for name, t in times.items()}


def main() -> None:
    # In a process on one core: with two, the matrix library's second thread waits beside the first and counts as work
    write("scenes", {"setting": "96x96, images per CPU second on one core, median of 5",
                     "images_per_second": alone(rates)})


if __name__ == "__main__":
    main()
