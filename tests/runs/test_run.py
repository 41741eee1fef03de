"""A run leaves one folder that tells all of it, and that folder predicts."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tagseg
import tiny
from tagseg.artifacts import png, read_png
from tagseg.data.folder import Reading
from tagseg.disk import lock
from tagseg.runs import run as runs
from tagseg.runs.predict import load, predict
from tagseg.runs.setup import own_folder, prepare
from tagseg.types import DataError, EnvironmentFault, IntegrityError, Interrupted, UsageError
from tiny import Tiny

FILES = {"config.yaml", "plan.json", "scores.json", "report.html", "report.json", "metrics.csv", "per_class.csv",
         "bad_files.csv", "environment.json", "masks", "weights"}
SHORT = ("classifier.schedule.max_images=16", "segmenter.schedule.max_images=16")


def test_all_files_are_there(trained: Tiny) -> None:
    assert {p.name for p in trained.out.iterdir()} >= FILES
    assert len(list((trained.out / "masks").rglob("*.png"))) == 12
    assert [json.loads((trained.out / "plan.json").read_text())[i]["state"] for i in range(5)] == ["to do"] * 5
    assert not list(trained.out.rglob("*.tmp"))


def test_scores_say_what_was_measured_and_what_went_in(trained: Tiny) -> None:
    scores = json.loads((trained.out / "scores.json").read_text())
    assert {"method", "data", "random_seed", "budget", "version", "commit", "ledger", "cost"} <= scores.keys()
    assert (scores["method"], scores["data"], scores["random_seed"]) == ("cam", tiny.DATA, 0)
    assert isinstance(scores["ledger"], list)
    assert "24 images" in scores["ledger"][0]
    assert "random" in scores["ledger"][1]
    assert scores["masks_read_by_fit"] == 0
    assert scores["cost"]["seconds"] > 0
    assert scores["cost"]["peak_mb"] > 50
    assert scores["cost"]["device"].startswith("cpu")
    assert scores["seed"] == trained.document["scores"]["seed"]  # the entry of the maps


def test_each_entry_has_its_points_and_each_point_its_numbers(trained: Tiny) -> None:
    entries = trained.document["scores"]
    expected = {"seed": {"auto", "oracle"}, "pseudo": {"auto", "oracle"}, "val": {"auto"}, "val_post": {"auto"},
                "seed_val": {"auto", "oracle"}}
    assert {name: set(points) for name, points in entries.items()} == expected
    names = {"background", *trained.document["classes"]}
    for name, points in entries.items():
        for point in points.values():
            assert {"miou", "per_class", "precision", "recall"} <= point.keys()
            assert set(point["per_class"]) == names
            assert 0 <= point["miou"] <= 1
            assert ("threshold" in point) == (name in ("seed", "pseudo", "seed_val"))
            assert point["images"] == (12 if "val" in name else 24)
    assert entries["seed"]["oracle"]["miou"] >= entries["seed"]["auto"]["miou"]
    assert entries["seed"]["auto"]["threshold"] == trained.fitted.point.read()["threshold"]
    assert trained.document["missing"] == {}


def test_tables_hold_the_same_numbers(trained: Tiny) -> None:
    with open(trained.out / "metrics.csv") as file:
        rows = {(r["entry"], r["point"]): float(r["miou"]) for r in csv.DictReader(file)}
    assert rows == {(e, p): s["miou"] for e, points in trained.document["scores"].items() for p, s in points.items()}
    with open(trained.out / "per_class.csv") as file:
        found = [r for r in csv.DictReader(file) if (r["entry"], r["point"]) == ("val", "auto")]
    known = trained.document["scores"]["val"]["auto"]["per_class"]
    assert {r["class"]: float(r["iou"]) if r["iou"] else None for r in found} == known


def test_masks_are_the_prediction_without_tags(trained: Tiny) -> None:
    assert trained.prepared.val is not None
    images = trained.prepared.val.images.without_tags()
    found = trained.prepared.method.predict(trained.again(), trained.fitted.model, images, trained.prepared.cfg)
    for labels in found:
        assert np.array_equal(read_png((trained.out / "masks" / f"{labels.id}.png").read_bytes()), labels.pixels)


def test_the_lineage_names_every_artifact_and_its_part(trained: Tiny) -> None:
    lineage = trained.document["lineage"]
    assert [s["part"] for s in lineage[:5]] == ["fit"] * 5
    assert {s["part"] for s in lineage} == {"fit", "predict", "evaluate"}
    keys = [s["key"] for s in lineage]
    assert len(set(keys)) == len(keys)
    own = [s for s in lineage if s["part"] != "evaluate"]
    assert trained.document["cost"]["seconds"] == pytest.approx(sum(s["seconds"] for s in own), abs=0.1)


def test_a_second_run_elsewhere_takes_everything_from_the_cache(trained: Tiny, tmp_path: Path) -> None:
    document = runs.run(tiny.request(tmp_path / "again", cache=trained.cache))
    assert {s["state"] for s in document["lineage"]} == {"done"}
    same = (trained.document["scores"], trained.document["cost"])
    assert json.loads(json.dumps((document["scores"], document["cost"]))) == json.loads(json.dumps(same))
    for file in ("metrics.csv", "per_class.csv", "config.yaml", "weights/weights.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (trained.out / file).read_bytes()


def test_without_masks_the_entries_are_left_out_and_it_is_said_why(tmp_path: Path) -> None:
    data = tiny.photos(tmp_path / "photos", masks="none")
    before = sorted((p, p.stat().st_mtime_ns) for p in data.rglob("*"))
    document = runs.run(tiny.request(tmp_path / "run", data=str(data), sets=SHORT))
    assert document["scores"] == {}
    bare, unasked = "the training images have no masks", "no --val split was named"
    assert document["missing"] == {"seed": bare, "pseudo": bare, "val": unasked, "val_post": unasked}
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["missing"] == document["missing"]
    assert len(list((tmp_path / "run" / "masks").glob("*.png"))) == 12  # all images are predicted all the same
    assert sorted((p, p.stat().st_mtime_ns) for p in data.rglob("*")) == before  # nothing was written there


def test_predict_and_load_give_the_same_masks_at_the_images_sizes(trained: Tiny, tmp_path: Path) -> None:
    images = tiny.photos(tmp_path / "new", count=3, masks="none") / "images"
    Image.open(images / "000.png").resize((70, 40)).save(images / "wide.png")
    (images / "broken.png").write_bytes((images / "001.png").read_bytes()[:200])
    done = predict(trained.out, images, tmp_path / "out", save=("mask", "confidence", "overlay"), device="cpu",
                   workers=1, reading=Reading(max_bad=0.5))
    assert (done["images"], done["bad_files"]) == (4, 1)
    assert "broken.png,truncated" in (tmp_path / "out" / "bad_files.csv").read_text()
    assert (tmp_path / "out" / "classes.txt").read_text().split() == trained.document["classes"]
    model = load(trained.out, device="cpu")
    for name, size in (("000", (48, 48)), ("002", (48, 48)), ("wide", (40, 70))):
        for folder in ("", "confidence/", "overlays/"):
            with Image.open(tmp_path / "out" / f"{folder}{name}.png") as written:
                assert written.size == (size[1], size[0])
        mask = model(images / f"{name}.png")
        assert mask.classes == tuple(trained.document["classes"])
        mask.save(tmp_path / "one" / f"{name}.png")
        together, alone = (read_png((tmp_path / f / f"{name}.png").read_bytes()) for f in ("out", "one"))
        assert np.array_equal(together, alone)


def test_post_prediction_is_another_one(trained: Tiny, tmp_path: Path) -> None:
    images = tiny.photos(tmp_path / "new", count=4, masks="none") / "images"
    for post in (False, True):
        predict(trained.out, images, tmp_path / f"{post}", device="cpu", workers=1, post=post, save=("confidence",))
    one, other = ((tmp_path / f"{p}" / "confidence" / "000.png").read_bytes() for p in (False, True))
    assert one != other


def test_the_public_names_are_these_functions() -> None:
    assert tagseg.run is runs.run
    assert tagseg.load is load
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        tagseg.lode


@pytest.mark.parametrize(("what", "error", "says"), [
    (lambda run, tmp: load(tmp), UsageError, "holds no trained model"),
    (lambda run, tmp: load(run)(tmp / "none.png"), DataError, "missing"),
    (lambda run, tmp: predict(run, tmp, tmp / "o", save=("masks",)), UsageError, "expected some of mask, overlay"),
    (lambda run, tmp: predict(run, tmp / "gone", tmp / "o"), UsageError, "found nothing, expected a folder of images"),
])
def test_what_cannot_be_used_is_said(trained: Tiny, tmp_path: Path, what: Callable[[Path, Path], object],
                                     error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        what(trained.out, tmp_path)


def test_damaged_weights_are_found(trained: Tiny, tmp_path: Path) -> None:
    shutil.copytree(trained.out, tmp_path / "run")
    file = tmp_path / "run" / "weights" / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match=r"weights.safetensors: its bytes are not those that were written"):
        load(tmp_path / "run")


def test_a_moved_run_predicts_the_same(trained: Tiny, tmp_path: Path) -> None:
    shutil.copytree(trained.out, tmp_path / "moved")
    image = tiny.photos(tmp_path / "new", count=1, masks="none") / "images" / "000.png"
    here, there = (load(folder, device="cpu")(image).pixels for folder in (trained.out, tmp_path / "moved"))
    assert np.array_equal(here, there)


def test_a_run_done_again_with_other_settings_predicts_by_its_new_model(tmp_path: Path) -> None:
    data = tiny.photos(tmp_path / "photos", masks="none", count=6)
    keys = []
    for seed in (0, 1):
        runs.run(tiny.request(tmp_path / "run", data=str(data), sets=SHORT, seed=seed))
        keys.append(load(tmp_path / "run", device="cpu").trained.model.key)
    assert keys[0] != keys[1]


def test_a_run_folder_in_use_is_not_touched(tmp_path: Path) -> None:
    out = tmp_path / "run"
    own_folder(out, runs.MARKER)
    with lock(out / ".lock", wait=False), pytest.raises(EnvironmentFault, match="in use by process") as caught:
        runs.run(tiny.request(out))
    assert caught.value.exit_code == 4
    assert sorted(p.name for p in out.iterdir()) == [".lock", runs.MARKER]


def test_files_of_others_are_never_replaced(trained: Tiny, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "mine.safetensors").write_bytes(b"precious")
    photos = tiny.photos(tmp_path / "elsewhere" / "photos", count=2)
    for attempt in (lambda: runs.run(tiny.request(tmp_path)), lambda: predict(trained.out, photos, tmp_path)):
        with pytest.raises(UsageError, match="new or empty folder"):
            attempt()
    assert (tmp_path / "weights" / "mine.safetensors").read_bytes() == b"precious"


def test_masks_beside_the_images_are_data_too(trained: Tiny, tmp_path: Path) -> None:
    photos = tiny.photos(tmp_path / "photos", count=2)
    with pytest.raises(UsageError, match="inside the data folder"):
        predict(trained.out, photos / "images", photos / "masks")


def test_a_wrong_true_mask_is_found_first_and_stops_nothing(tmp_path: Path) -> None:
    photos = tiny.photos(tmp_path / "photos", count=6)
    (photos / "masks" / "003.png").write_bytes(png(np.zeros((3, 3), np.uint8), palette=True))
    strict = prepare(tiny.request(tmp_path / "run", data=str(photos)))
    assert strict.truth is None  # one of six is more than one percent: these masks are not what they are taken for
    assert "nothing is scored" in strict.warnings[-1]
    assert "3x3" in strict.bad_files[-1].detail
    lenient = prepare(tiny.request(tmp_path / "run", data=str(photos), reading=Reading(max_bad=0.5)))
    assert lenient.truth is not None
    assert "003" not in lenient.truth.ids
    assert len(lenient.truth) == 5


def test_a_run_on_poisoned_masks_ends_without_numbers(tmp_path: Path) -> None:
    photos = tiny.photos(tmp_path / "photos", masks="garbage", count=6)
    document = runs.run(tiny.request(tmp_path / "run", data=str(photos), sets=SHORT))
    assert document["masks_read_by_fit"] == 0
    assert document["scores"] == {}
    assert "bad_files.csv" in document["missing"]["pseudo"]
    assert len((tmp_path / "run" / "bad_files.csv").read_text().splitlines()) == 7


def test_masks_of_an_earlier_run_in_the_folder_are_gone(tmp_path: Path) -> None:
    photos = tiny.photos(tmp_path / "photos", masks="none", count=6)
    runs.run(tiny.request(tmp_path / "run", data=str(photos), sets=SHORT))
    assert len(list((tmp_path / "run" / "masks").glob("*.png"))) == 6
    (photos / "images" / "005.png").unlink()
    (photos / "tags.csv").write_text("\n".join((photos / "tags.csv").read_text().splitlines()[:-1]) + "\n")
    runs.run(tiny.request(tmp_path / "run", data=str(photos), sets=SHORT))
    assert len(list((tmp_path / "run" / "masks").glob("*.png"))) == 5


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"seed": -1}, {"k_masks": -3}])
def test_numbers_that_no_stage_takes_are_refused_first(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="or more"):
        runs.plan(tiny.request(tmp_path / "run", **wrong))


def test_nothing_is_written_into_the_data(trained: Tiny, tmp_path: Path) -> None:
    data = tiny.photos(tmp_path / "photos", count=2)
    before = sorted(data.rglob("*"))
    for out in (data, data / "run"):
        with pytest.raises(UsageError, match="inside the data folder"):
            runs.run(tiny.request(out, data=str(data)))
    with pytest.raises(UsageError, match="inside the data folder"):
        predict(trained.out, data / "images", data / "images")
    assert sorted(data.rglob("*")) == before


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    data = tiny.photos(tmp_path / "photos", masks="none", count=6)
    request = tiny.request(tmp_path / "run", data=str(data), sets=SHORT)
    seen: list[str] = []
    with pytest.raises(Interrupted, match=r"localize\.cam\.maps"):
        runs.run(request, lambda stage, done, total, note: seen.append(stage), lambda: "localize.cam.maps" in seen)
    assert not (tmp_path / "run" / "scores.json").exists()
    document = runs.run(request)
    assert [s["state"] for s in document["lineage"][:3]] == ["done", "ran", "ran"]


def test_masks_of_untagged_images_alone_are_no_truth_of_the_training_set(tmp_path: Path) -> None:
    data = tiny.photos(tmp_path / "photos", count=8, masks="none")
    full = tiny.photos(tmp_path / "full", count=8)
    (data / "masks").mkdir()
    shutil.copy(full / "masks" / "007.png", data / "masks")
    rows = (data / "tags.csv").read_text().splitlines()
    (data / "tags.csv").write_text("\n".join(rows[:-1]) + "\n")
    prepared = prepare(tiny.request(tmp_path / "run", data=str(data)))
    assert len(prepared.inputs.tagged) == 7
    assert prepared.truth is None
