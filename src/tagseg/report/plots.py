"""Curves, bars and matrices as inline SVG: text stays text, colours follow the page's theme, same input same bytes."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tagseg.report.wording import clean, finite, listed, percent, ratio

# Colours nobody else uses; in the finished SVG each becomes a variable of the page's style sheet.
INK, MUTED, LINE, PAPER, ACCENT = "#010201", "#010202", "#010203", "#010204", "#010205"
SERIES = {"seed": "#010206", "pseudo": "#010207", "val": "#010208", "val_post": "#010209", "seed_val": MUTED}
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", PAPER: "paper", ACCENT: "accent"} | {
    colour: name for name, colour in SERIES.items() if colour != MUTED
}
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "tagseg", "svg.fonttype": "none", "text.parse_math": False, "font.size": 11,
    "text.color": INK, "axes.labelcolor": MUTED, "axes.edgecolor": LINE, "axes.grid": True, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "grid.color": LINE,
    "grid.linewidth": 0.8, "xtick.color": MUTED, "ytick.color": MUTED, "xtick.major.size": 0, "ytick.major.size": 0,
    "ytick.minor.size": 0, "xtick.minor.size": 0, "figure.facecolor": "none", "axes.facecolor": "none",
    "legend.frameon": False, "legend.fontsize": 10, "axes.unicode_minus": True,
}  # fmt: skip
_DASHES = ("-", "--", ":", "-.")
_ROUND_COLOURS = (SERIES["seed"], SERIES["pseudo"], ACCENT, SERIES["val_post"], MUTED)
_INCH = 72.0  # SVG units
_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
MANY = 26  # classes from which on names are written small, and charts take the whole width of the page
_ROWS = 28  # classes in one chart of bars
_POINTS = 300  # points in one loss curve
ElementTree.register_namespace("", _SVG[1:-1])
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


def threshold_curve(name: str, curve: Mapping[str, Any], expected: Mapping[str, Any] | None = None) -> str:
    """mIoU over the threshold with `auto` and `oracle` marked and the flat range shaded; "" if there are no points.

    `expected` is what the rule believed without seeing truth: {"thresholds", "evidence_left"}.
    """
    x, y = _numbers(curve.get("thresholds")), 100 * _numbers(curve.get("miou"))
    if not _drawable(x, y):
        return ""
    with _drawing(460, 285) as (figure, axes):
        if len(flat := [v for v in map(finite, listed(curve.get("flat"))) if v is not None]) == 2:
            axes.axvspan(*flat, color=SERIES.get(name, ACCENT), alpha=0.13, lw=0, label="within 1 point of the best")
        axes.plot(x, y, color=SERIES.get(name, ACCENT), lw=2.4, label="measured")
        if expected is not None:
            _expected(axes, expected)
        axes.set(xlabel="threshold", ylabel="mIoU, %", xlim=(x.min(), max(x.max(), x.min() + 1e-3)))
        axes.set_ylim(0, 1.12 * max(*axes.dataLim.intervaly[1:], 1.0))
        _mark(axes, x, y, curve)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3, columnspacing=1.4, handlelength=1.5)
        auto, oracle = ratio(curve.get("auto")), ratio(curve.get("oracle"))
        return _svg(figure, f"curve-{name}", f"mIoU of {name} over the threshold; auto at {auto}, oracle at {oracle}")


def confusion_matrix(name: str, labels: Sequence[str], counts: Sequence[Sequence[float]]) -> str:
    """Row-normalised confusion: row = truth, column = prediction, the last column "unsure" where it holds anything."""
    rows = np.array([[finite(v) or 0.0 for v in row] for row in counts], float)
    if rows.ndim != 2 or len(rows) != len(labels) or rows.shape[1] < len(labels):
        return ""
    columns = [*labels, "unsure"][: rows.shape[1]]
    if len(columns) > len(labels) and not rows[:, len(labels)].any():
        rows, columns = rows[:, : len(labels)], list(labels)
    share = rows / np.maximum(rows.sum(axis=1, keepdims=True), 1e-12)
    side = float(np.clip(46 * len(columns), 150, 560 if len(columns) <= MANY else 760))
    size = 11.0 if len(columns) <= MANY else max(0.72 * side / len(columns), 4.0)
    margin = 0.62 * size * min(max(len(c) for c in columns), 18) + 34
    with _drawing(side + margin, side * len(rows) / len(columns) + margin) as (figure, axes):
        _matrix(axes, share, columns, list(labels), size)
        return _svg(figure, f"confusion-{name}", f"row-normalised confusion matrix of {name}")


def class_bars(series: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Horizontal bars of IoU for each class, one bar for each of the series; long lists give several charts."""
    names = list(dict.fromkeys(c for values in series.values() for c in values))
    charts = -(-len(names) // _ROWS)
    size = -(-len(names) // max(charts, 1))
    parts = [names[i : i + size] for i in range(0, len(names), size)] if names else []
    return [_bars(f"bars-{i}", part, series) for i, part in enumerate(parts)]


def loss_curve(name: str, history: Sequence[Sequence[Any]]) -> str:
    """Loss over steps from [step, loss, rate] rows, thinned and smoothed for the eye; the learning rate below it."""
    rows = [[finite(v) for v in listed(row)[:3]] for row in history]
    kept = np.array([r for r in rows if len(r) == 3 and None not in r], float).reshape(-1, 3)
    if len(kept) == 0:
        return ""
    step, loss, rate = _thinned(kept).T
    with _drawing(460, 250) as (figure, axes):
        axes.plot(step, loss, color=ACCENT, lw=1, alpha=0.4, marker="o" if len(step) == 1 else None)
        axes.plot(step, _smooth(loss), color=ACCENT, lw=2.2, label="loss, smoothed")
        axes.set(xlabel="step", xlim=(step.min(), max(step.max(), step.min() + 1)))
        axes.set_ylim(min(0.0, float(loss.min())), None)
        if rate.max() > 0:
            _rate(axes, step, rate)
        axes.legend(loc="upper right")
        return _svg(figure, f"loss-{re.sub(r'[^a-z0-9]+', '-', name.lower())}", f"training loss of {name}")


def round_curves(rows: Sequence[Mapping[str, Any]]) -> str:
    """mIoU over the rounds, a line for each kind of labels and for the segmenter on val; "" where nothing has truth."""
    known = [(str(r.get("what")), r.get("images"), finite(r.get("round")) or 0.0, v) for r in rows
             if (v := finite(r.get("miou"))) is not None]  # fmt: skip
    if not known:
        return ""
    kinds = list(dict.fromkeys((what, images) for what, images, _, _ in known))
    with _drawing(560, 300) as (figure, axes):
        for number, (what, images) in enumerate(kinds):
            x, y = zip(*[(at, 100 * v) for w, i, at, v in known if (w, i) == (what, images)], strict=True)
            on_val = images == "val"
            axes.plot(x, y, marker="o", lw=2.6 if on_val else 1.6, ls=_DASHES[0 if on_val else number % len(_DASHES)],
                      color=SERIES["val"] if on_val else _ROUND_COLOURS[number % len(_ROUND_COLOURS)],
                      label=f"{what}, {images}")  # fmt: skip
        axes.set(xlabel="round", ylabel="mIoU, %", xticks=sorted({at for _, _, at, _ in known}))
        axes.set_ylim(0, None)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return _svg(figure, "rounds", "mean IoU by round")


def finding_curves(kind: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each source of maps. `kind` "froc": objects found over false points an image; "roc": of pixels."""
    lines = {name: np.array([[finite(v) for v in listed(point)[:2]] for point in listed(scores.get(f"{kind}_curve"))],
                            float) for name, scores in found.items()}  # fmt: skip
    lines = {name: line for name, line in lines.items() if line.ndim == 2 and line.shape[1] == 2}
    if not lines:
        return ""
    with _drawing(460, 300) as (figure, axes):
        for number, (name, line) in enumerate(lines.items()):
            axes.plot(line[:, 0], 100 * line[:, 1], lw=2.2, label=name,
                      drawstyle="steps-post" if kind == "froc" else "default",
                      color=_ROUND_COLOURS[number % len(_ROUND_COLOURS)], ls=_DASHES[number % len(_DASHES)])
        if kind == "roc":
            axes.plot([0, 1], [0, 100], color=MUTED, lw=1, ls=(0, (4, 3)), label="chance")
            axes.set(xlabel="share of empty pixels taken for an object", ylabel="object pixels found, %", xlim=(0, 1))
        else:
            axes.set(xlabel="false points an image", ylabel="objects found, %", xlim=(0, None))
        axes.set_ylim(0, 102)
        axes.legend(loc="lower right")
        words = {"froc": "objects found over false points an image", "roc": "pixels found over pixels falsely taken"}
        return _svg(figure, f"finding-{kind}", words[kind])


@contextlib.contextmanager
def _drawing(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure of this many SVG units under our style alone, whatever the user's matplotlibrc says."""
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has the font, matplotlib need not
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        figure = Figure(figsize=(width / _INCH, height / _INCH), layout="constrained")
        yield figure, figure.add_subplot()


def _rate(axes: Axes, step: np.ndarray, rate: np.ndarray) -> None:
    """The learning rate as a shade at the foot of the chart: its form matters, and its largest value is written."""
    beside = axes.twinx()
    beside.set(ylim=(0, 4 * rate.max()), yticks=[])
    beside.spines[:].set_visible(False)
    beside.fill_between(step, rate, color=MUTED, alpha=0.16, lw=0)
    axes.fill_between([], [], color=MUTED, alpha=0.16, lw=0, label=f"learning rate, at most {rate.max():.2g}")


def _expected(axes: Axes, expected: Mapping[str, Any]) -> None:
    x, y = _numbers(expected.get("thresholds")), 100 * _numbers(expected.get("evidence_left"))
    if _drawable(x, y):
        axes.plot(x, y, color=MUTED, lw=1.6, ls=(0, (4, 3)), label="evidence left when painted over")


def _mark(axes: Axes, x: np.ndarray, y: np.ndarray, curve: Mapping[str, Any]) -> None:
    """A line and a named dot at `auto` and `oracle`; names lean away from each other."""
    places = {point: at for point in ("auto", "oracle") if (at := finite(curve.get(point))) is not None}
    first = min(places, key=lambda point: places[point], default="")
    for point, at in places.items():
        value = float(np.interp(at, x, y))
        axes.axvline(at, color=INK, lw=1.1, ls="-" if point == "auto" else (0, (4, 3)), alpha=0.65)
        axes.plot([at], [value], "o", ms=7, color=INK if point == "auto" else PAPER, mec=INK, mew=1.6, zorder=5)
        left = point == first and (at - x.min()) > 0.25 * np.ptp(x)
        axes.annotate(f"{point} {at:.2f}", (at, axes.get_ylim()[1]), (-6 if left else 6, -4), weight="bold",
                      textcoords="offset points", ha="right" if left else "left", va="top", fontsize=10.5)


def _matrix(axes: Axes, share: np.ndarray, columns: list[str], rows: list[str], size: float) -> None:
    blue = np.empty((*share.shape, 4))
    blue[...] = (0.11, 0.42, 0.78, 0.0)
    blue[..., 3] = 0.03 + 0.97 * np.clip(share, 0, 1) ** 0.8
    axes.imshow(blue, interpolation="none", aspect="equal")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    many = len(columns) > MANY
    axes.set_xticks(range(len(columns)), [_short(c) for c in columns], fontsize=size, rotation=90 if many else 45,
                    ha="center" if many else "left", rotation_mode="default" if many else "anchor")
    axes.set_yticks(range(len(rows)), [_short(r) for r in rows], fontsize=size)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, pad=3)
    axes.set(xlabel="prediction", ylabel="truth")
    if len(columns) > 14:
        return
    for (r, c), value in np.ndenumerate(share):
        if value >= 0.005:
            axes.text(c, r, f"{100 * value:.0f}", ha="center", va="center", color="#ffffff" if value > 0.5 else INK)


def _bars(ident: str, names: Sequence[str], series: Mapping[str, Mapping[str, Any]]) -> str:
    shown = {s: values for s, values in series.items() if values}
    thick = 0.78 / max(len(shown), 1)
    row = 15 + 6 * len(shown)
    with _drawing(460, row * len(names) + 58) as (figure, axes):
        for i, (name, values) in enumerate(shown.items()):
            at = np.arange(len(names)) + (i - (len(shown) - 1) / 2) * thick
            width = [100 * (finite(values.get(c)) or 0.0) for c in names]
            axes.barh(at, width, 0.86 * thick, color=SERIES.get(name, ACCENT), label=name)
        for c, klass in enumerate(names):
            if all(finite(values.get(klass)) is None for values in shown.values()):
                axes.text(1, c, "not in these images", color=MUTED, va="center", fontsize=9.5)
        axes.set_yticks(range(len(names)), [_short(n) for n in names], color=INK)
        axes.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, 100), xlabel="IoU, %")
        axes.grid(axis="y", visible=False)
        handles, texts = axes.get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside upper right", ncols=4, handlelength=1.0, columnspacing=1.2)
        listing = "; ".join(f"{n}: {' / '.join(percent(v.get(n)) for v in shown.values())}" for n in names)
        return _svg(figure, ident, f"IoU in percent ({', '.join(shown)}). {listing}")


def _numbers(values: object) -> np.ndarray:
    """A list of numbers as floats; what is not a number is NaN, which leaves a hole in a line."""
    return np.array([np.nan if (v := finite(value)) is None else v for value in listed(values)], float)


def _drawable(x: np.ndarray, y: np.ndarray) -> bool:
    return len(x) == len(y) and bool(np.isfinite(y).any()) and bool(np.isfinite(x).all())


def _thinned(rows: np.ndarray) -> np.ndarray:
    """At most `_POINTS` rows: means of neighbours."""
    parts = np.array_split(rows, min(len(rows), _POINTS))
    return np.stack([part.mean(axis=0) for part in parts])


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over a fifteenth of the curve, shorter at the ends."""
    half = max(len(values) // 30, 0)
    total = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def _short(text: str, limit: int = 18) -> str:
    text = clean(text).replace("\n", " ")
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _svg(figure: Figure, ident: str, spoken: str) -> str:
    """The figure as an SVG element for the page: no declaration, date or style sheet; ids unique by `ident`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in root.iter():
        for child in [c for c in parent if c.tag in (f"{_SVG}metadata", f"{_SVG}style")]:
            parent.remove(child)
    _rename(root, ident)
    _theme(root)
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("class", "plot")
    root.set("aria-label", clean(spoken))
    root.set("style", f"max-width:{figure.get_figwidth() * _INCH * 1.25:.0f}px")
    return ElementTree.tostring(root, encoding="unicode")


def _rename(root: ElementTree.Element, ident: str) -> None:
    """Drop the ids of groups and prefix those that something refers to: several plots share one page."""
    text = ElementTree.tostring(root, encoding="unicode")
    used = set(re.findall(r'(?:url\(#|href="#)([\w-]+)', text))
    for element in root.iter():
        if (own := element.attrib.pop("id", None)) in used and own is not None:
            element.set("id", f"{ident}-{own}")
        for key, value in element.attrib.items():
            if key == _HREF and value.startswith("#"):
                element.set(key, f"#{ident}-{value[1:]}")
            elif "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{ident}-"))


def _theme(root: ElementTree.Element) -> None:
    """Our stand-in colours and matplotlib's fonts in style attributes become the page's variables and font."""
    for element in root.iter():
        if style := element.get("style"):
            for colour, name in _VARIABLES.items():
                style = style.replace(colour, f"var(--{name})")
            style = re.sub(r"font: ((?:[\w.]+ )*[\d.]+px)[^;]*", r"font: \1 var(--sans)", style)
            style = re.sub(r"font-family: [^;]*", "font-family: var(--sans)", style)
            element.set("style", style)
