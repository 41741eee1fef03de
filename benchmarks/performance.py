"""docs/performance.md from the rows in benchmarks/out: `python -m benchmarks.performance`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.measure import OUT, STOLEN
from benchmarks.targets import TARGETS, Row, target_of

DOCS = Path(__file__).resolve().parents[1] / "docs"
INTRO = """# Performance

Made by `make bench`; `python -m benchmarks JOB...` makes single rows. Each row is one run in which the peer and tagseg
did the same work in turn, each in a process of its own: medians of CPU time on one core give the ratio, and how far the
results agree is measured in the same run. Rounds in which the host of a virtual machine gave more than a tenth of its
time to others are made again; where all were like that, it says so. On two cores tagseg works in two threads, the peer
in two processes; that ratio is of wall time. Memory is the peak of a side's first whole call above what its process
held before, in MB; what it had been given, and what a small call to import and compile had left, are not in it.
Absolute times depend on the machine and are only in the rows' files. Goals are for one core. Growth: "differs by"
compares what an image more costs from 4x to 16x with the same from 1x to 4x (what a stage costs once is left out), or
128 classes with 8. All sizes are run in turn, forwards and backwards; what counts is the median of the turns'
differences, their range stands beside it. Memory is judged from 4x to 16x, because 1x does not fill the two chunks that
are held; it is the median of three processes of their own for each size, because what a later run needs depends on what
those before it have left.
"""
COLOURS = ("#0072B2", "#D55E00", "#009E73")


def rows() -> list[Row]:
    """All rows, those with a target first and in its order."""
    found = [json.loads(path.read_text()) for path in sorted(OUT.glob("*.json"))]
    place = {job: k for k, job in enumerate(TARGETS)}
    return sorted(found, key=lambda row: (place.get(row["job"], len(place)), row["job"]))


def verdict(row: Row) -> str:
    target = target_of(row)
    return "-" if target.text == "-" else target.verdict(row)


def comparisons(found: list[Row]) -> str:
    heads = ("job", "peer", "setting", "target", "CPU time", "wall", "two cores", "agreement", "MB: tagseg / peer",
             "verdict", "commit")
    lines = [
        (row["job"], row["peer"], row["setting"], target_of(row).text, ratio(row), _times(row.get("ratio_wall")),
         _times((row.get("two_cores") or {}).get("ratio_wall")), agreement(row),
         f"{_number(row.get('peak_mb_ours'))} / {_number(row.get('peak_mb_peer'))}", verdict(row), row["commit"])
        for row in found
    ]  # fmt: skip
    return table(heads, lines)


def ratio(row: Row) -> str:
    """Median ratio, and the range that the spread of both sides allows."""
    text = _times(row.get("ratio_cpu"))
    if "times" not in row or "1" not in row["times"]:
        return text
    ours, peer = (row["times"]["1"][side]["cpu_ms"] for side in ("ours", "peer"))
    low, high = peer["low"] / max(ours["high"], 1e-3), peer["high"] / max(ours["low"], 1e-3)
    stolen = row["times"]["1"]["ours"].get("stolen_percent", {}).get("median", 0.0)
    told = f"; the host took {stolen:.0f} %" if stolen > 100 * STOLEN else ""
    return f"{text} (one round{told})" if row.get("rounds") == 1 else f"{text} ({low:.3g}-{high:.3g}{told})"


def agreement(row: Row) -> str:
    """In percent, never rounded up: 100 means all."""
    value = row.get("agreement")
    bound = f", error bound {row['error_bound']:.1e}" if "error_bound" in row else ""
    return "-" if value is None else f"{math.floor(1e5 * value) / 1e3:g} % {row.get('agreement_of', '')}{bound}".strip()


def growths(found: list[Row]) -> str:
    heads = ("job", "setting", "target", "images x classes: CPU ms an image", "differs by", "MB at each", "verdict",
             "commit")  # fmt: skip
    lines = [
        (row["job"], row["setting"], target_of(row).text,
         ", ".join(f"{p['images']}x{p['classes']}: {p['cpu_ms_an_image']:.1f}" for p in row["points"]),
         differs(row), ", ".join(_number(p["peak_mb"]) for p in row["points"]), verdict(row),
         row["commit"])
        for row in found
    ]  # fmt: skip
    return table(heads, lines)


def differs(row: Row) -> str:
    """The median difference in percent, and the range over the turns."""
    text, turns = f"{100 * row['deviation']:.1f} %", row.get("deviations")
    return f"{text} ({100 * turns[0]:.0f} to {100 * turns[-1]:.0f})" if turns else text


def phases(row: Row) -> str:
    """CPU milliseconds of each phase on each photo, or of each way."""
    photos = row["phases"]
    names = list(next(iter(photos.values()))["cpu_ms"])
    heads = (row.get("unit", "CPU ms"), *(f"photo {name}, {found['vertices']} vertices" if "vertices" in found else name
                         for name, found in photos.items()))  # fmt: skip
    lines = [(name, *(_three(found["cpu_ms"][name]) for found in photos.values())) for name in names]
    return f"`{row['job']}`: {row['setting']}.\n\n{table(heads, lines)}"


def table(heads: tuple[str, ...], lines: list[tuple[Any, ...]]) -> str:
    text = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join(text + ["| " + " | ".join(str(c) for c in line) + " |" for line in lines])


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}x"


def _three(value: float) -> str:
    """Three digits, and no exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def plot_ratios(found: list[Row], path: Path) -> None:
    """Bars of the CPU ratios on a logarithmic axis, the target of each as a line across."""
    shown = [row for row in found if row.get("ratio_cpu")]
    figure = Figure(figsize=(8, 0.6 + 0.3 * len(shown)))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.axvline(1, color="#555555", lw=0.8)
    axes.barh(range(len(shown)), [row["ratio_cpu"] for row in shown], color=COLOURS[0], height=0.6, label="measured")
    goals = [(k, target_of(row).ratio) for k, row in enumerate(shown) if target_of(row).ratio]
    axes.scatter([g for _, g in goals], [k for k, _ in goals], marker="|", s=160, lw=2.5, color=COLOURS[1],
                 label="target", zorder=3)  # fmt: skip
    axes.set_xscale("log")
    axes.set_yticks(range(len(shown)), [row["job"] for row in shown])
    axes.invert_yaxis()
    axes.set_xlabel("CPU time of the peer / CPU time of tagseg, one core")
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def plot_growth(found: list[Row], path: Path) -> None:
    """CPU seconds and peak memory over the number of images, both from one row each."""
    figure = Figure(figsize=(8, 3))
    FigureCanvasAgg(figure)
    seconds, memory = figure.subplots(1, 2)
    curves = [row for row in found if row["job"].startswith("growth-") and "points" in row]
    for row, colour in zip(curves, COLOURS, strict=False):
        images, name = [p["images"] for p in row["points"]], row["job"].removeprefix("growth-")
        seconds.plot(images, [n * p["cpu_ms_an_image"] / 1e3 for n, p in zip(images, row["points"], strict=True)],
                     marker="o", color=colour, label=name)  # fmt: skip
        memory.plot(images, [p["peak_mb"] for p in row["points"]], marker="o", color=colour, label=name)
    seconds.set_ylabel("CPU seconds")
    memory.set_ylabel("peak MB")
    for axes in (seconds, memory):
        axes.set_xlabel("images")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, bbox_inches="tight", metadata={"Software": None})


def sections(found: list[Row]) -> list[tuple[str, str]]:
    """Title and text of each part of the page; empty parts are left out."""
    measured = [row for row in found if "not_measured" not in row]
    compared = [row for row in measured if "points" not in row and "agreement" in row]
    grown = [row for row in measured if "points" in row]
    split = [row for row in measured if "phases" in row]
    rates = [row for row in measured if "images_per_second" in row]
    costs = [row for row in measured if "seconds_an_image" in row]
    missing = dict.fromkeys(TARGETS, "no row yet")
    missing |= {r["job"]: r["not_measured"] for r in found if r not in measured}
    missing = {job: why for job, why in missing.items() if job not in {r["job"] for r in measured}}
    missed = [f"- `{row['job']}`: {verdict(row)} (target {target_of(row).text})" for row in measured
              if verdict(row).startswith("MISSED")]  # fmt: skip
    parts: list[tuple[str, list[Any], Callable[[list[Any]], str]]] = [
        ("Missed goals", missed, "\n".join),
        ("Against peers", compared, lambda r: f"{comparisons(r)}\n\n![ratios](img/performance-ratios.png)"),
        ("Where the time goes", split, lambda r: "\n\n".join(map(phases, r))),
        ("Growth", grown, lambda r: f"{growths(r)}\n\n![growth](img/performance-growth.png)"),
        ("Not measured", [f"- `{job}`: {why}" for job, why in missing.items()], "\n".join),
        ("Rates", [f"- `{r['job']}`: {r.get('setting', '')}: {r.get('images_per_second')}" for r in rates], "\n".join),
        ("A method beside cam", [cost(row) for row in costs], "\n".join),
        ("Machine", sorted({machine(row) for row in found}), lambda lines: "\n".join(f"- {line}" for line in lines)),
    ]
    return [(title, write(lines)) for title, lines, write in parts if lines]


def cost(row: Row) -> str:
    """Time up to the maps over that of `cam`, for sets of some sizes, and the seconds that it is made of."""
    sets = ", ".join(f"{ratio}x on {images} images" for images, ratio in row["ratio"].items())
    each = ", ".join(f"{name} {seconds}" for name, seconds in row["seconds_an_image"].items())
    return f"- `{row['job']}`: {sets} ({row['setting']}; commit {row['commit']}). Seconds an image: {each}"


def machine(row: Row) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in row.get("versions", {}).items())
    return f"{row.get('machine', 'unknown')}; {versions}"


def main(docs: Path = DOCS) -> None:
    found = rows()
    if any(row.get("ratio_cpu") for row in found):
        plot_ratios(found, docs / "img" / "performance-ratios.png")
    if any("points" in row for row in found):
        plot_growth(found, docs / "img" / "performance-growth.png")
    text = "\n\n".join(f"## {title}\n\n{body}" for title, body in sections(found))
    (docs / "performance.md").write_text(f"{INTRO}\n{text}\n")
    print(f"{docs / 'performance.md'}: {len(found)} rows")


if __name__ == "__main__":
    main()
