"""Result rows: `python -m benchmarks.results` rebuilds tables and plots, `... add RUN [RUN ...]` appends finished runs.

A row is scores.json without curves, on one line of docs/results/METHOD.jsonl. A run made from changed files ("+dirty")
or without a commit is refused: a number without its commit is not a number. `add --note TEXT` says what sets the runs
apart.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks import tables
from tagseg.cli import portable

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"


def add(run: Path, note: str = "") -> str:
    """Append one finished run, with a note where one is given; the same row is not added twice, whatever its note."""
    scores = run / "scores.json"
    if not scores.is_file():
        raise SystemExit(f"{scores}: found no such file, expected a finished run; let it come to its end first")
    row = json.loads(scores.read_text())
    if only := some_classes(run):
        row["data"] = f"{row['data']}: {only}"  # another task than the whole set's
    if not row.get("commit") or row["commit"].endswith("+dirty"):
        raise SystemExit(f"{run}: commit is {row.get('commit')!r}; rows come only from a clean, committed tree")
    file = RESULTS / f"{row['method']}.jsonl"
    line = json.dumps({**row, "note": note} if note else row, sort_keys=True)
    if file.exists() and row in (_without_note(json.loads(known)) for known in file.read_text().splitlines()):
        return f"{run}: already there"
    RESULTS.mkdir(parents=True, exist_ok=True)
    with open(file, "a") as handle:
        handle.write(line + "\n")
    return f"{run}: added to {file.name}"


def _without_note(row: dict[str, Any]) -> dict[str, Any]:
    """A row as its run made it: the note is a person's."""
    return {name: value for name, value in row.items() if name != "note"}


def some_classes(run: Path) -> str:
    """The classes of its data that a run was restricted to, if it was."""
    return ", ".join(json.loads((run / "request.json").read_text())["reading"]["only"])


def append(name: str, rows: list[dict[str, Any]], at: str | None) -> None:
    """Keep rows of a diagnostic in docs/results/NAME, if they were made from a clean tree (`at`, its commit)."""
    if at and not at.endswith("+dirty"):
        with open(RESULTS / name, "a") as file:
            file.writelines(json.dumps({"command": command(), **row}, sort_keys=True) + "\n" for row in rows)


def command() -> str:
    """The diagnostic that runs, as it was called, without the folders of this machine."""
    return f"python -m benchmarks.{shlex.join([Path(sys.argv[0]).stem, *portable(sys.argv[1:])])}"


def curves(run: Path) -> Path:
    """The threshold curves of a run: what was measured, what the rule saw without truth, and both operating points."""
    document = json.loads((run / "report.json").read_text())
    figure = Figure(figsize=(9, 3.2))
    FigureCanvasAgg(figure)
    panes = figure.subplots(1, 3)
    for axes, name in zip(panes, ("seed", "pseudo", "seed_val"), strict=True):
        found = document["curves"].get(name)
        if not found:
            continue
        axes.plot(found["thresholds"], [100 * m for m in found["miou"]], color="#0072B2", marker=".")
        axes.axvspan(*found.get("flat", (0, 0)), color="#0072B2", alpha=0.08, lw=0)
        for point, colour in (("auto", "#D55E00"), ("oracle", "#555555")):
            axes.axvline(found[point], color=colour, ls="--", lw=1.2, label=f"{point} {found[point]:.2f}")
        axes.set_title(f"{name}, {found['images']} images", fontsize=10)
        axes.set_xlabel("threshold")
        axes.set_xlim(0, 1)
        axes.legend(frameon=False, fontsize=8)
    panes[0].set_ylabel("mIoU %")
    figure.suptitle(f"{document['title']}, {document['backbone']}, {document['budget']}, seed {document['seed']}")
    figure.tight_layout()
    net = "" if document["backbone"] == "mobilenet_v2" else f"-{document['backbone']}"
    path = RESULTS.parent / "img" / f"curves-{document['method']}-{document['data']}{net}.png"
    figure.savefig(path, dpi=90)
    return path


def rows(kind: str = "method") -> list[dict[str, Any]]:
    """The rows that have this key: runs of a "method", or single "refiner"s (benchmarks/refiners.py)."""
    found = [json.loads(line) for file in sorted(RESULTS.glob("*.jsonl")) for line in file.read_text().splitlines()]
    return [row for row in found if kind in row]


def once(kind: str) -> list[dict[str, Any]]:
    """Rows of a diagnostic by scene, arm and seed; the last measurement counts."""
    return tables.latest(rows(kind), "scene", kind, "seed")


def beside(found: list[dict[str, Any]], method: str) -> list[dict[str, Any]]:
    """The rows of a method, after those of `cam` with the same data, network and budget that have no note."""
    same = {tuple(row[k] for k in ("data", "backbone", "budget")) for row in found if row["method"] == method}
    plain = [row for row in found if row["method"] == "cam" and not row.get("note")]
    return [*(row for row in plain if (row["data"], row["backbone"], row["budget"]) in same),
            *(row for row in found if row["method"] == method)]  # fmt: skip


def plot(found: list[dict[str, Any]], path: Path) -> None:
    """Bars of the four numbers at `auto` for each row."""
    figure = Figure(figsize=(7, 0.8 + 0.9 * max(len(found), 1)))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = ("seed", "pseudo", "val", "val_post")
    for k, name in enumerate(names):
        places = [i + (k - 1.5) * 0.2 for i in range(len(found))]
        values = [100 * row.get(name, {}).get("auto", {"miou": 0})["miou"] for row in found]
        axes.barh(places, values, 0.18, label=name)
    axes.set_yticks(range(len(found)), [f"{r['method']} {r['data']} seed {r['random_seed']}" for r in found])
    axes.invert_yaxis()
    axes.set_xlabel("mIoU % at the auto operating point")
    axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def plot_rounds(found: list[dict[str, Any]], path: Path) -> None:
    """Precision, recall and mIoU of each arm's segmenters on val by round, a row for each scene; means over seeds."""
    found = [row for row in found if row["images"] == "val"]
    scenes, names = list(dict.fromkeys(row["scene"] for row in found)), list(dict.fromkeys(row["arm"] for row in found))
    figure = Figure(figsize=(9, 2.9 * len(scenes)))
    FigureCanvasAgg(figure)
    panes = figure.subplots(len(scenes), 3, squeeze=False, sharex=True)
    colours = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#555555")
    for (scene, row), (name, colour) in product(zip(scenes, panes, strict=True), zip(names, colours, strict=False)):
        mine = [r for r in found if (r["scene"], r["arm"]) == (scene, name)]
        rounds = sorted({r["round"] for r in mine})
        for axes, key in zip(row, ("precision", "recall", "miou"), strict=True):
            means = [float(np.mean([r[key] for r in mine if r["round"] == t])) for t in rounds]
            axes.plot(rounds, means, color=colour, marker="o", ms=4, lw=2 if name == names[0] else 1, label=name)
            axes.set_title(f"{scene}: {'mIoU' if key == 'miou' else key}", fontsize=10)
            axes.set_xticks(sorted({r["round"] for r in found}))
    panes[-1][1].set_xlabel("round")
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.legend(*panes[0][0].get_legend_handles_labels(), ncols=4, loc="lower center", frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)


def fill(page: Path, text: str, name: str) -> None:
    """Put the table between the markers of that name on a page."""
    head, start, rest = page.read_text().partition(f"<!-- {name} -->")
    _, end, tail = rest.partition(f"<!-- end of {name} -->")
    if start and end:
        page.write_text(f"{head}{start}\n\n{text}\n\n{end}{tail}")


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    adding = parser.add_subparsers(dest="what").add_parser("add", help="append finished runs")
    adding.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    adding.add_argument("--note", default="", help="what sets these runs apart; the table shows it")
    asked = parser.parse_args(words)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for run in asked.runs if asked.what else ():
        print(add(run, asked.note), "" if some_classes(run) else curves(run))
    found = rows()
    text = (
        "# Results\n\nBuilt by `make results` from the rows beside this page (one JSON line for each finished run: "
        "scores, config hash, commit, command, cost). mIoU in percent, threshold in brackets; `seed` and `pseudo` on "
        "training images with given tags, `val` and `val_post` without tags. `oracle` thresholds only for the report; "
        "`seed_val` is maps on val images with their tags given, not a result.\n\n"
    )
    pictures = sorted((RESULTS.parent / "img").glob("curves-*.png"))
    shown = "".join(f"\n\n![{p.stem}](../img/{p.name})" for p in pictures)
    table, docs = tables.markdown(found), RESULTS.parent
    (RESULTS / "README.md").write_text(text + table + "\n\n![mIoU of each run](results.png)" + shown + "\n")
    plot(found, RESULTS / "results.png")
    iterated = tables.latest(rows("arm"), "scene", "seed", "arm", "round", "what", "images")
    plot_rounds(iterated, docs / "img" / "mcof-rounds.png")
    kept = [row for row in found if not row.get("note", "").startswith("discarded")]
    for page, name, made in (
        (docs.parent / "README.md", "results", tables.markdown([row for row in kept if row["budget"] != "quick"])),
        (docs / "refiners.md", "refiners", tables.refiners(rows("refiner"))),
        (docs / "papers" / "esol.md", "esol", tables.settings(rows("setting"))),
        (docs / "papers" / "mcof.md", "arms", tables.arms(iterated)),
        (docs / "papers" / "mcof.md", "pairs", tables.pairs(iterated, "mcof")),
        (docs / "papers" / "mcof.md", "bayes", tables.posteriors(rows("kind"))),
        (docs / "papers" / "dfs.md", "dfs", tables.variants(once("variant"), "dfs")),
        (docs / "papers" / "priors.md", "priors", tables.priors(rows("prior"))),
        (docs / "papers" / "priors.md", "masked", tables.masked(rows("mask_arm"), "tags alone")),
        (docs / "papers" / "transfernet.md", "split", tables.markdown(beside(kept, "transfernet"))),
        (docs / "papers" / "transfernet.md", "drawn",
         tables.variants(once("drawn_by"), "transfernet", "drawn_by", longer="twice as long")),
    ):
        fill(page, made, name)
    print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
