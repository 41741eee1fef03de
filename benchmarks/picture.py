"""A picture for README and docs from a finished run: `python -m benchmarks.picture RUN OUT.jpg [GROUP:ROWS ...]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tagseg.report.pictures import contact_sheet

COLUMNS = ("photo", "truth", "map", "pseudo mask", "prediction")


def main(run: Path, out: Path, groups: dict[str, int]) -> None:
    gallery = json.loads((run / "report.json").read_text())["gallery"]
    chosen = [row for group, rows in groups.items() for row in [r for r in gallery if r["group"] == group][:rows]]
    pictures = [[np.asarray(Image.open(run / dict(row["panels"])[name])) for name in COLUMNS] for row in chosen]
    sheet = Image.fromarray(contact_sheet(pictures, COLUMNS, side=200))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, quality=85, optimize=True)
    print(f"{out}: {sheet.width}x{sheet.height}, {out.stat().st_size // 1000} kB, {len(chosen)} rows")


if __name__ == "__main__":
    given = [word.rsplit(":", 1) for word in sys.argv[3:]] or [["best", "2"], ["worst", "1"], ["least sure", "1"]]
    main(Path(sys.argv[1]), Path(sys.argv[2]), {group: int(rows) for group, rows in given})
