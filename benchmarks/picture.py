"""A picture for README and docs from a finished run: `python -m benchmarks.picture RUN OUT.jpg [GROUP:ROWS ...]`.

With `--columns NAME,NAME` other panels of the run's gallery than the usual ones.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tagseg.report.pictures import contact_sheet

LARGEST = 300_000  # bytes of a picture in docs/img
COLUMNS = ("photo", "truth", "map", "pseudo mask", "prediction")


def main(run: Path, out: Path, groups: dict[str, int], columns: tuple[str, ...] = COLUMNS) -> None:
    gallery = json.loads((run / "report.json").read_text())["gallery"]
    chosen = [row for group, rows in groups.items() for row in [r for r in gallery if r["group"] == group][:rows]]
    pictures = [[np.asarray(Image.open(run / dict(row["panels"])[name])) for name in columns] for row in chosen]
    saved(Image.fromarray(contact_sheet(pictures, columns, side=200)), out)


def saved(sheet: Image.Image, out: Path) -> None:
    """Write a picture as a JPEG that is small enough for docs/img."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for quality in (85, 80, 75, 70):
        sheet.save(out, quality=quality, optimize=True)
        if out.stat().st_size < LARGEST:
            break
    print(f"{out}: {sheet.width}x{sheet.height}, {out.stat().st_size // 1000} kB")


if __name__ == "__main__":
    words = sys.argv[1:]
    at = words.index("--columns") if "--columns" in words else len(words)
    shown = tuple(words[at + 1].split(",")) if at < len(words) else COLUMNS
    given = [word.rsplit(":", 1) for word in words[2:at]] or [["best", "2"], ["worst", "1"], ["least sure", "1"]]
    main(Path(words[0]), Path(words[1]), {group: int(rows) for group, rows in given}, shown)
