from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from tagseg.report import tables

Document = dict[str, Any]


def _terminal(document: Document) -> str:
    out = io.StringIO()
    Console(file=out, width=200, force_terminal=False).print(tables.summary(document))
    return out.getvalue()


def test_rows_hold_every_number_at_every_point(document: Document) -> None:
    rows = [(r.name, r.point, r.miou, r.threshold) for r in tables.score_rows(document)]
    assert rows == [
        ("seed", "auto", "45.1", "0.35"), ("seed", "k", "–", "–"), ("seed", "oracle", "46.9", "0.55"),
        ("pseudo", "auto", "51.2", "0.35"), ("pseudo", "k", "–", "–"), ("pseudo", "oracle", "52.9", "0.50"),
        ("val", "auto", "48.7", "–"), ("val_post", "–", "–", "–"),
    ]  # fmt: skip
    assert tables.score_rows(document)[-1].reason == "not measured: it was not asked for"


def test_seed_val_is_shown_only_where_measured_and_never_as_a_result(document: Document) -> None:
    document["scores"]["seed_val"] = document["scores"]["seed"]
    rows = [r for r in tables.score_rows(document) if r.name == "seed_val"]
    assert len(rows) == 3
    assert all("not a result" in r.meaning for r in rows)
    assert "not a result" in tables.plain(document)


def test_gap_is_auto_minus_oracle(document: Document) -> None:
    assert tables.gap(document, "seed") == "−1.8"
    assert tables.gap(document, "val") == "–"


def test_headline_falls_back_honestly(document: Document) -> None:
    assert tables.headline(document).startswith("48.7 % mIoU on 12 val images")
    del document["scores"]["val"]
    assert "51.2 %" in tables.headline(document)
    assert "no number on new images" in tables.headline(document)
    document["scores"]["pseudo"]["auto"]["miou"] = float("nan")
    assert "localisation maps" in tables.headline(document)
    assert tables.headline({}) == "No score was measured for this run"


def test_supervision_says_how_many_masks_were_read(document: Document) -> None:
    assert tables.supervision(document) == "tags of 12 images · 0 masks read by fit"
    document["masks_read_by_fit"] = 20
    assert "20 masks read by fit" in tables.supervision(document)
    assert "not recorded" in tables.supervision({})


def test_plain_and_terminal_say_the_same_numbers(document: Document) -> None:
    for text in (tables.plain(document), _terminal(document)):
        for part in ("45.1", "46.9", "51.2", "48.7", "val_post not measured: it was not asked for", "= −1.8 points",
                     "warning: two tags always come together", "3 files could not be read", "1 h 02 min of work"):
            assert part in text


def test_names_cannot_mark_up_or_steer_the_terminal(document: Document) -> None:
    document["title"] = "[red]x[/red] \x1b[2J"
    for text in (tables.plain(document), _terminal(document)):
        assert "[red]x[/red]" in text
        assert "\x1b" not in text


def test_an_empty_document_still_gives_a_table() -> None:
    assert tables.plain({}).count("not measured") == 4
    assert _terminal({"scores": None, "missing": 3, "warnings": "no list"})


def test_labels_that_hang_on_no_threshold_have_one_row() -> None:
    scores = {"miou": 0.4, "precision": 0.5, "recall": 0.6, "images": 3}
    rows = [r for r in tables.score_rows({"scores": {"pseudo": {"auto": scores}}}) if r.name == "pseudo"]
    assert [(r.point, r.threshold, r.miou) for r in rows] == [("auto", "–", "40.0")]
    cut = [r for r in tables.score_rows({"scores": {"pseudo": {"auto": {**scores, "threshold": 0.3}}}})
           if r.name == "pseudo"]
    assert [r.point for r in cut] == ["auto", "k", "oracle"]


def test_scores_of_folders_say_how_well_classes_are_named() -> None:
    text = tables.folder_scores({"miou": 0.5, "named": {"f1": 0.25, "precision": 0.2, "recall": None}})
    assert text.splitlines()[-1] == "classes named in images: F1 25.0 %  precision 20.0 %  recall – %"
    assert "named" not in tables.folder_scores({"miou": 0.5})
