from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tagseg.report import page, plots
from tagseg.types import DataError

Document = dict[str, Any]
Put = Callable[[Document], Path]
VOID = {"meta", "img", "br", "link", "input", "hr"}
NASTY = "<script>alert(1)</script>\"'"


class Outline(HTMLParser):
    """Elements, attributes and visible text; fails on elements that are closed out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag], f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += "" if self.open and self.open[-1] == "style" else data


def _outline(path: Path) -> Outline:
    outline = Outline()
    outline.feed(path.read_text("utf-8"))
    assert outline.open == []
    return outline


def test_sections_come_in_the_order_of_the_protocol(document: Document, put: Put) -> None:
    path = page.write(put(document))
    assert path.name == "report.html"
    sections = [attrs["id"] for tag, attrs in _outline(path).elements if tag == "section"]
    assert sections == ["numbers", "gallery", "thresholds", "classes", "confusion", "errors", "training", "stages",
                        "warnings", "tags", "again"]


def test_the_page_says_what_the_document_says(document: Document, put: Put) -> None:
    text = " ".join(_outline(page.write(put(document))).text.split())
    for part in ("48.7 % mIoU on 12 val images", "tags of 12 images · 0 masks read by fit", "45.1", "46.9", "−1.8",
                 "not measured: it was not asked for", "area prior", "two tags always come together",
                 "3 files could not be read", "batch halved for memory", "tagseg run cam scenes", "abc1234",
                 "Average precision", "boundary IoU", "trimap mIoU, 5 px", "companion", "2 of them without any class",
                 "Classes that are named in an image, wherever they are painted: F1"):
        assert part in text


def test_nothing_is_fetched_and_nothing_can_run(document: Document, put: Put, add_gallery: Any) -> None:
    path = page.write(put(add_gallery(document, 2)))
    elements = _outline(path).elements
    policy = next(a["content"] for t, a in elements if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert not [t for t, _ in elements if t in ("script", "link", "iframe", "object", "form")]
    for tag, attrs in elements:
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            assert (attrs.get(name) or "#").startswith(("#", "data:image/")), (tag, attrs)
    assert "@import" not in path.read_text("utf-8")
    links = {a["href"] for t, a in elements if t == "a"}
    assert links <= {f"#{a['id']}" for t, a in elements if t == "section"}


def test_text_of_users_is_escaped_everywhere(make: Any, put: Put, add_gallery: Any) -> None:
    document = add_gallery(make([NASTY, "jay", "{{ doc }}"]), 1)
    row = document["gallery"][0]
    row.update(id=NASTY, tags=[NASTY], group=NASTY)
    row["panels"] = [[NASTY, path] for _, path in row["panels"][:1]]
    row["by_class"] = [[NASTY, row["panels"]]]
    for key in ("title", "method", "data", "backbone", "command", "commit", "version"):
        document[key] = NASTY
    document.update(warnings=[NASTY], supervision=[NASTY], missing={"val_post": NASTY})
    document["curves"][NASTY] = document["curves"]["seed"]
    document["histories"][NASTY] = document["histories"]["localize.classify.train"]
    document["lineage"][0].update(stage=NASTY, events=[NASTY], part=NASTY, state=NASTY)
    document["operating_point"].update(rule=NASTY, note=NASTY)
    document["detail"]["val"].update(absent=[NASTY], by_area={NASTY: {"iou": 0.5, "objects": 1}},
                                     named={"f1": 0.5, "f1_per_class": {NASTY: 0.5}})
    path = page.write(put(document))
    outline = _outline(path)
    assert "script" not in {tag for tag, _ in outline.elements}
    assert outline.text.count("<script>alert(1)</script>") > 20  # shown as text
    assert "{{ doc }}" in outline.text  # and never taken for a template


def test_gallery_shows_groups_in_order_with_every_panel(document: Document, put: Put, add_gallery: Any) -> None:
    outline = _outline(page.write(put(add_gallery(document, 3))))
    groups = re.findall(r"\n\s*(best|worst|least sure)\s*\n?", outline.text) or re.findall(
        r"(best|worst|least sure)(?=\s)", outline.text.split("unsure or ignored")[1])
    assert groups[:3] == ["best", "worst", "least sure"]
    images = [attrs for tag, attrs in outline.elements if tag == "img"]
    assert len(images) == 15
    assert all(attrs["alt"] and str(attrs["src"]).startswith("data:image/") for attrs in images)
    kinds = [str(attrs["src"]).split(";")[0] for attrs in images[:5]]
    assert kinds == [f"data:image/{k}" for k in ("jpeg", "png", "jpeg", "png", "jpeg")]


def test_eighteen_rows_stay_under_five_megabytes(document: Document, put: Put, tmp_path: Path) -> None:
    (tmp_path / "gallery").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((480, 360), Image.Resampling.BICUBIC).save(tmp_path / "gallery/a.png")
    panels = [[name, "gallery/a.png"] for name in ("photo", "truth", "map", "pseudo mask", "prediction")]
    document["gallery"] = [{"id": str(i), "group": "best", "tags": [], "panels": panels} for i in range(18)]
    assert page.write(put(document)).stat().st_size < 5_000_000


def test_pictures_outside_the_run_or_broken_are_left_out(document: Document, put: Put, tmp_path: Path) -> None:
    outside = tmp_path.parent / "secret.png"
    Image.new("RGB", (4, 4)).save(outside)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no")
    names = ["../secret.png", str(outside), "broken.png", "absent.png", "."]
    document["gallery"] = [{"id": "1", "group": "best", "panels": [[n, n] for n in names]}]
    outline = _outline(page.write(put(document)))
    assert not [1 for tag, _ in outline.elements if tag == "img"]
    assert outline.text.count("not available") == len(names)
    outside.unlink()


def test_gallery_shows_the_steps_of_each_class_on_a_line_of_its_own(document: Document, put: Put, add_gallery: Any
                                                                  ) -> None:
    document = add_gallery(document, 1)
    (_, first), (_, second) = document["gallery"][0]["panels"][:2]
    document["gallery"][0]["by_class"] = [["crab", [["attention", first], ["decoder", second]]],
                                          ["jay", [["attention", "../gone.png"], ["decoder", first]]]]
    outline = _outline(page.write(put(document)))
    images = [attrs["alt"] for tag, attrs in outline.elements if tag == "img"]
    assert [str(text).split(" in ")[0] for text in images[5:]] == ["attention of crab", "decoder of crab",
                                                                   "decoder of jay"]
    for caption in ("crab: attention", "crab: decoder", "jay: attention", "jay: decoder"):
        assert caption in outline.text
    assert "not available" in outline.text


def test_same_document_same_bytes(document: Document, put: Put, add_gallery: Any) -> None:
    folder = put(add_gallery(document, 1))
    first = page.write(folder).read_bytes()
    assert page.write(folder).read_bytes() == first


@pytest.mark.parametrize("classes", [1, 80])
def test_one_class_and_eighty_classes(classes: int, make: Any, put: Put) -> None:
    names = [f"class number {i}" for i in range(classes)]
    outline = _outline(page.write(put(make(names))))
    rows = [attrs for tag, attrs in outline.elements if tag == "th" and attrs.get("scope") == "row"]
    assert len(rows) >= 2 * (classes + 1)
    assert outline.text.count(names[-1]) >= 4


def test_a_set_without_background(make: Any, put: Put) -> None:
    document = make(["fat", "stroma"])
    document["has_background"] = False
    document["detail"] = {"val": {"confusion": [[0, 0, 0, 0], [1, 6, 2, 1], [0, 0, 8, 0]]}}
    text = _outline(page.write(put(document))).text
    assert "Most frequent mix-ups" in text
    assert "20.0" in text


def test_an_empty_document_says_that_nothing_was_measured(put: Put) -> None:
    text = _outline(page.write(put({}))).text
    assert "No score was measured" in text
    assert text.count("not measured") >= 8
    assert "None" not in text.replace("None.", "")
    assert "Undefined" not in text


@pytest.mark.parametrize("hole", [None, {}, "text"])
def test_any_entry_may_be_null_nan_or_of_another_kind(
    hole: object, document: Document, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "_svg", lambda figure, ident, spoken: "<svg></svg>")  # writing them out takes the time
    for key in document:
        page.render({**document, key: hole}, Path("nowhere"))
    document["scores"]["seed"] = hole
    document["detail"]["val"] = dict.fromkeys(document["detail"]["val"], hole)
    document["curves"]["seed"] = hole
    document["scores"]["pseudo"]["auto"]["miou"] = math.nan
    document["lineage"].append({"stage": hole, "seconds": hole, "key": hole, "inputs": hole, "events": hole})
    document["gallery"] = [{"id": hole, "panels": hole, "tags": hole, "group": hole, "miou": hole, "by_class": hole},
                           {"id": "a", "by_class": [hole, ["newt", hole], ["newt", [hole, ["attention", hole]]]]}]
    _outline(page.write(put(document)))


def test_broken_names_do_not_stop_the_page(document: Document, put: Put) -> None:
    document["warnings"] = ["file \udcff\x00\u202e.jpg"]
    assert "file \\udcff\\u0000\\u202e.jpg" in _outline(page.write(put(document))).text


@pytest.mark.parametrize("content", [None, "{", "[1]"])
def test_a_missing_or_broken_report_is_named(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "report.json"))):
        page.write(tmp_path)
    assert json.dumps([p.name for p in tmp_path.iterdir()]).count("html") == 0


def test_an_operating_point_that_was_given_says_by_whom(document: Document, put: Put) -> None:
    document["operating_point"] = {"threshold": 0.5, "origin": "the decoder's foreground is a probability"}
    text = _outline(page.write(put(document))).text
    assert "0.50: the decoder's foreground is a probability." in text
    assert "Rule:" not in text
