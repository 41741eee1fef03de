"""Tables of result rows in Markdown: what `python -m benchmarks.results` puts on the pages."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
from scipy import stats

NUMBERS = (
    ("seed", "auto"),
    ("seed", "oracle"),
    ("pseudo", "auto"),
    ("pseudo", "oracle"),
    ("val", "auto"),
    ("val_post", "auto"),
    ("seed_val", "oracle"),
)
SHOWN = (("tag_loss", "tag loss"), ("offsets", "offsets, cells"), ("area", "area"), ("precision", "P at .30"),
         ("recall", "R at .30"), ("best_iou", "best IoU"), ("precision_at_0.5", "P at R .5"),
         ("precision_at_0.7", "P at R .7"), ("average_precision", "AP"))  # fmt: skip


def refiners(found: list[dict[str, Any]]) -> str:
    """mIoU and boundary IoU of each refiner, a row for each, sets side by side; the last measurement counts."""
    sets = list(dict.fromkeys(row["data"] for row in found))
    cells = {(row["refiner"], row["data"]): row for row in found}
    heads = ["refiner", *(f"{data}: mIoU (at), boundary IoU" for data in sets), "commits"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name in dict.fromkeys(row["refiner"] for row in found):
        made = [cells.get((name, data)) for data in sets]
        shown = [f"{_percent(row)}, {100 * row['boundary_iou']:.1f}" if row else "-" for row in made]
        commits = ", ".join(dict.fromkeys(row["commit"] for row in made if row))
        lines.append("| " + " | ".join([name, *shown, commits]) + " |")
    return "\n".join(lines)


def markdown(found: list[dict[str, Any]]) -> str:
    """One table over all rows, newest last; what was not measured is a dash."""
    heads = [
        "method",
        "data",
        "backbone",
        "budget",
        "seed",
        *(f"{n} {p}" for n, p in NUMBERS),
        "minutes",
        "commit",
        "note",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in found:
        numbers = [_percent(row.get(n, {}).get(p)) for n, p in NUMBERS]
        cells = [
            row["method"],
            row["data"],
            row["backbone"],
            row["budget"],
            str(row["random_seed"]),
            *numbers,
            f"{row['cost']['seconds'] / 60:.0f}",
            row["commit"],
            row.get("note", ""),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def settings(found: list[dict[str, Any]]) -> str:
    """A table for each scene: each setting's means over its seeds, and the sd of what counts."""
    tables = []
    for head, mine in _by_scene(found):
        lines = [f"{head}:", "",
                 "| setting | " + " | ".join(head for _, head in SHOWN) + " | stopped |",
                 "|---|" + "---|" * (len(SHOWN) + 1)]  # fmt: skip
        for name in dict.fromkeys(row["setting"] for row in mine):
            some = [row for row in mine if row["setting"] == name]
            cells = [_mean([row[key] for row in some], key.startswith(("precision_at", "average"))) for key, _ in SHOWN]
            stopped = sum(any("ceiling" in event for event in row["events"]) for row in some)
            lines.append(f"| {name} | " + " | ".join(cells) + f" | {stopped} of {len(some)} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


VARIANT = (("tag_accuracy", "tags told"), ("class_iou", "IoU by class"), ("best_iou", "best IoU"),
           ("precision_at_0.5", "P at R .5"), ("precision_at_0.7", "P at R .7"),
           ("average_precision", "AP"))  # fmt: skip

OWN = ": classes with masks"  # rows of other images and classes than the rest: no difference to them says anything


def variants(found: list[dict[str, Any]], first: str, key: str = "variant", longer: str = "") -> str:
    """A table for each scene: each variant's means and sds over its seeds, and its AP and best IoU paired with `first`.
    Variants whose names begin with `longer` have a table of their own, paired with `longer`.

    Differences are the first's minus the variant's, with half of the 95 % t-interval where there are three seeds.
    """
    if longer:
        own, rest = ([row for row in found if row[key].startswith(longer) == apart] for apart in (True, False))
        return "\n\n".join(table for table in (variants(own, longer, key), variants(rest, first, key)) if table)
    tables = []
    for head, mine in _by_scene(found):
        lines = [f"{head}:", "", "| variant | " + " | ".join(head for _, head in VARIANT)
                 + f" | {first} over it: best IoU | AP |", "|---|" + "---|" * (len(VARIANT) + 2)]  # fmt: skip
        known = {(row[key], row["seed"]): row for row in mine}
        for name in dict.fromkeys(row[key] for row in mine):
            some = [row for row in mine if row[key] == name]
            cells = [_mean([row[n] for row in some], True) for n, _ in VARIANT]
            pairs = [(known[first, row["seed"]], row) for row in some if name != first and OWN not in name]
            apart = [_apart([a[n] - b[n] for a, b in pairs]) for n in ("best_iou", "average_precision")]
            lines.append(f"| {name} | " + " | ".join([*cells, *apart]) + " |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


MASKED = (("masks", "masks, train"), ("miou", "val mIoU"), ("background", "background"), ("precision", "precision"),
          ("recall", "recall"), ("boundary_iou", "boundary IoU"))  # fmt: skip


def masked(found: list[dict[str, Any]], first: str) -> str:
    """A table for each scene and commit: an arm's masks, what a segmenter makes of them, differences to `first`."""
    tables, commits = [], dict.fromkeys(row["commit"] for row in found)
    for head, mine in chain.from_iterable(_by_scene([r for r in found if r["commit"] == at]) for at in commits):
        lines = [f"{head}:", "", "| arm | " + " | ".join(head for _, head in MASKED)
                 + f" | over {first}: val mIoU |", "|---|" + "---|" * (len(MASKED) + 1)]  # fmt: skip
        known = {(row["mask_arm"], row["seed"]): row for row in mine}
        for name in dict.fromkeys(row["mask_arm"] for row in mine):
            some = [row for row in mine if row["mask_arm"] == name]
            cells = ["-" if some[0][n] is None else _mean([row[n] for row in some], n == "miou") for n, _ in MASKED]
            apart = _apart([row["miou"] - known[first, row["seed"]]["miou"] for row in some if name != first])
            lines.append(f"| {name} | " + " | ".join([*cells, apart]) + " |")
        tables.append("\n".join([*lines, "", *predicates(mine, known, first)]))
    return "\n\n".join(tables)


def predicates(mine: list[dict[str, Any]], known: dict[tuple[str, int], dict[str, Any]], first: str) -> list[str]:
    """What section 8 asks: masks over tags alone (also at their best sharpness on val), own regions over one mask."""
    seeds = sorted({row["seed"] for row in mine})
    whole = {name for name, _ in known if all((name, seed) in known for seed in seeds)}
    alone = [name for name in dict.fromkeys(row["mask_arm"] for row in mine) if name.startswith(first)]
    best = max(whole.intersection(alone), key=lambda name: float(np.mean([known[name, s]["miou"] for s in seeds])))
    read = {
        "mIoU": lambda row: row["miou"], "background": lambda row: row["background"],
        "images with one tag": lambda row: row["by_tag_count"].get("1"),
        "with two": lambda row: row["by_tag_count"].get("2"),
    }  # fmt: skip
    lines = ["| val, paired by seed | " + " | ".join(read) + " |", "|---|" + "---|" * len(read)]
    asked = (("binary", first), ("binary", best), ("multi", first), ("multi", best), ("multi", "binary"),
             ("multi, r = 1", best), ("multi, widened, r = 1", best), ("multi, widened, r = 1", "multi, r = 1"),
             ("multi, widened, r = 1", "binary, r = 1"))  # fmt: skip
    for arm, other in dict.fromkeys(pair for pair in asked if whole.issuperset(pair)):
        cells = [[(of(known[arm, s]), of(known[other, s])) for s in seeds] for of in read.values()]
        cells = [_apart([a - b for a, b in cell if a is not None and b is not None]) for cell in cells]
        lines.append(f"| {arm} over {other} | " + " | ".join(cells) + " |")
    return lines


def priors(found: list[dict[str, Any]]) -> str:
    """Maps of objects that look at no tag, a row for each set and map; the last measurement counts."""
    last = {(row["scene"], row.get("net", ""), row["prior"]): row for row in found}
    lines = ["| set | network | map | best F | IoU at .5 | boundary F | images | commit |", "|" + "---|" * 8]
    for (scene, net, name), row in last.items():
        best = f"{row['f']:.3f}" if "f" in row else "-"
        lines.append(f"| {scene} | {net or '-'} | {name} | {best} | {row['iou']:.3f} | {row['boundary_f']:.3f} | "
                     f"{row['images']} | {row['commit']} |")
    return "\n".join(lines)


def _apart(values: list[float]) -> str:
    """Mean difference and half of its 95 % t-interval."""
    if not values:
        return "-"
    n = len(values)
    half = stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5 if n > 2 else None
    return f"{np.mean(values):+.3f}" + ("" if half is None else f" ± {half:.3f}")


def _by_scene(found: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The rows of each scene, and what they are rows of."""
    for scene in dict.fromkeys(row["scene"] for row in found):
        mine = [row for row in found if row["scene"] == scene]
        commits = ", ".join(dict.fromkeys(row["commit"] for row in mine))
        seeds = ", ".join(map(str, sorted({row["seed"] for row in mine})))
        yield f"`scenes:{scene}`, seeds {seeds}, commit {commits}", mine


def latest(found: list[dict[str, Any]], *keys: str) -> list[dict[str, Any]]:
    """Of rows that agree in these keys the last one, where it first stood."""
    return list({tuple(row[key] for key in keys): row for row in found}.values())


def pairs(found: list[dict[str, Any]], first: str) -> str:
    """What later rounds of an arm and that arm beside the others gain on val, paired by seed, a column a scene."""
    found = [row for row in found if row["images"] == "val"]
    known = {(row["scene"], row["arm"], row["round"], row["seed"]): row["miou"] for row in found}
    scenes, seeds = (sorted({row[key] for row in found}, reverse=key == "scene") for key in ("scene", "seed"))
    last = max((row["round"] for row in found), default=1)
    lines = ["| | " + " | ".join(f"`{scene}`" for scene in scenes) + " |", "|---|" + "---|" * len(scenes)]
    rounds = sorted({(t, 1) for t in range(2, last + 1)} | {(last, last - 1)}) if last > 1 else []
    asked = [(f"round {a} over round {b}", (first, a), (first, b)) for a, b in rounds]
    others = [arm for arm in dict.fromkeys(row["arm"] for row in found if row["round"] == last) if arm != first]
    asked += [(f"over {arm}, round {t}", (first, t), (arm, t)) for arm in others for t in (1, last)]
    for words, a, b in asked:
        cells = [_apart([known[scene, *a, s] - known[scene, *b, s] for s in seeds
                         if (scene, *a, s) in known and (scene, *b, s) in known]) for scene in scenes]  # fmt: skip
        if any(cell not in ("-", "+0.000 ± 0.000") for cell in cells):  # some arms share their first round
            lines.append(f"| {words} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def arms(found: list[dict[str, Any]]) -> str:
    """Two tables for each scene: what segmenters of each arm reach on val by round, and the labels on the way."""
    tables = []
    for head, mine in _by_scene(found):
        rounds = sorted({row["round"] for row in mine})
        lines = [f"{head}. mIoU of the segmenters on val, without tags:", "",
                 "| arm | " + " | ".join(f"round {t}" for t in rounds) + " |", "|---|" + "---|" * len(rounds)]
        for arm in dict.fromkeys(row["arm"] for row in mine):
            by_round = ([r for r in mine if (r["arm"], r["round"], r["images"]) == (arm, t, "val")] for t in rounds)
            some = [[r["miou"] for r in those] for those in by_round]
            lines.append(f"| {arm} | " + " | ".join(_mean(v, True) if v else "-" for v in some) + " |")
        heads = (("miou", "mIoU"), ("precision", "precision"), ("recall", "recall"), ("unlabelled", "without label"))
        columns = " | ".join(head for _, head in heads)
        lines += ["", "Labels of the training images, in the order they are made:", "",
                  f"| arm | round | labels | {columns} |", "|---|---|---|" + "---|" * len(heads)]
        for arm, t, what in dict.fromkeys((r["arm"], r["round"], r["what"]) for r in mine if r["images"] == "train"):
            some = [r for r in mine if (r["arm"], r["round"], r["what"]) == (arm, t, what) and r["images"] == "train"]
            cells = [_mean([r[key] for r in some], key == "miou") for key, _ in heads]
            lines.append(f"| {arm} | {t} | {what} | " + " | ".join(cells) + " |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def posteriors(found: list[dict[str, Any]]) -> str:
    """Mean IoU of what Bayes' rule is given and of what it gives, a row for each kind of picture; the last counts."""
    last = {row["kind"]: row for row in found}
    heads = list(dict.fromkeys(name for row in last.values() for name in row["iou"]))
    lines = ["| pictures | " + " | ".join(heads) + " | commit |", "|---|" + "---|" * (len(heads) + 1)]
    for kind, row in last.items():
        lines.append(f"| {kind} | " + " | ".join(f"{row['iou'][n]:.3f}" for n in heads) + f" | {row['commit']} |")
    return "\n".join(lines)


def _mean(values: list[float], spread: bool) -> str:
    mean = sum(values) / len(values)
    sd = (sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1)) ** 0.5
    return f"{mean:.3f}" + (f" ± {sd:.3f}" if spread and len(values) > 1 else "")


def _percent(entry: dict[str, Any] | None) -> str:
    if not entry:
        return "-"
    at = f" ({entry['threshold']:.2f})" if "threshold" in entry else ""
    return f"{100 * entry['miou']:.1f}{at}"
