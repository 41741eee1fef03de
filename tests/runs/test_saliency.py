"""`tagseg saliency`: maps of a folder of photos; bad files and stops lose nothing, nothing of others is replaced."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tiny
from tagseg import cli, config
from tagseg.artifacts import read_png
from tagseg.data.folder import Reading, TooManyBad
from tagseg.data.images import decode
from tagseg.data.saliency_folder import open_saliency
from tagseg.disk import lock
from tagseg.localize.saliency import Saliency
from tagseg.ops.background_saliency import rbd
from tagseg.ops.saliency import mbd
from tagseg.refine.superpixels import Superpixels, segment
from tagseg.runs.saliency import MARKER, Config, SaliencyRequest, saliency
from tagseg.types import EnvironmentFault, Interrupted, UsageError

ALL = ("map", "overlay", "array")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photos, one of them in a subfolder, below images/; with tags, which play no part."""
    root = tiny.photos(tmp_path_factory.mktemp("saliency") / "photos", count=4)
    (root / "images" / "far").mkdir()
    (root / "images" / "003.png").rename(root / "images" / "far" / "003.png")
    (root / "tags.csv").write_text("nonsense")
    return root


def asked(photos: Path, out: Path, **more: Any) -> SaliencyRequest:
    return replace(SaliencyRequest(photos, out), **more)


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_maps_overlays_and_arrays_are_written(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    document = saliency(asked(photos, out, save=ALL))
    assert document == json.loads((out / "saliency.json").read_text())
    assert (document["images"], document["bad_files"], document["kind"]) == (4, 0, "rbd")
    assert document["settings"] == {name: config.canonical(part) for name, part in
                                    (("saliency", Saliency()), ("superpixels", Superpixels()))}
    for id in ("000", "001", "002", "far/003"):
        image = decode(photos / "images" / f"{id}.png")
        expected = rbd(image, segment(image, Superpixels()))
        shown, array = read_png((out / "maps" / f"{id}.png").read_bytes()), np.load(out / "arrays" / f"{id}.npy")
        assert Image.open(out / "maps" / f"{id}.png").mode == "L"
        assert shown / 255 == pytest.approx(expected, abs=0.5 / 255 + 5e-4)
        assert (array.dtype, array.shape) == (np.float16, (48, 48))
        assert array.astype(np.float32) == pytest.approx(expected, abs=5e-4)
        assert Image.open(out / "overlays" / f"{id}.png").size == (48, 48)
        overlay, grey = read_png((out / "overlays" / f"{id}.png").read_bytes()).astype(int), expected < 0.01
        assert np.ptp(overlay, axis=2)[~grey].mean() > np.ptp(overlay, axis=2)[grey].mean() + 20


def test_what_it_writes_can_be_given_to_a_run(photos: Path, tmp_path: Path) -> None:
    saliency(asked(photos, tmp_path / "out", save=("map", "array")))
    maps, arrays = (open_saliency(tmp_path / "out" / kind, "tagseg saliency") for kind in ("maps", "arrays"))
    assert maps.ids == arrays.ids == ("000", "001", "002", "far/003")
    assert maps.get("far/003") == pytest.approx(arrays.get("far/003"), abs=3e-3)


def test_other_kinds_need_no_superpixels(photos: Path, tmp_path: Path) -> None:
    seen: list[str] = []
    cfg = Config(saliency=Saliency(kind="mbd"))
    document = saliency(asked(photos, tmp_path / "out", cfg=cfg), lambda stage, *rest: seen.append(stage))
    assert set(seen) == {"localize.saliency.maps"}
    assert list(document["settings"]) == ["saliency"]
    expected = mbd(decode(photos / "images" / "000.png"))
    assert read_png((tmp_path / "out" / "maps" / "000.png").read_bytes()) / 255 == pytest.approx(expected, abs=3e-3)


def test_the_same_bytes_for_any_number_of_workers_and_after_a_stop(photos: Path, tmp_path: Path) -> None:
    for workers in (1, 3):
        saliency(asked(photos, tmp_path / f"{workers}", workers=workers, save=ALL))
    ticks: list[str] = []

    def progress(stage: str, done: int, total: int, note: str) -> None:
        ticks.append(stage)

    with pytest.raises(Interrupted, match="the same command goes on from there"):
        saliency(asked(photos, tmp_path / "c", save=ALL), progress, lambda: "localize.saliency.maps" in ticks)
    assert not (tmp_path / "c" / "maps").exists()
    ticks.clear()
    saliency(asked(photos, tmp_path / "c", save=ALL), progress)
    assert set(ticks) == {"localize.saliency.maps"}  # the superpixels were there
    for folder in ("maps", "overlays", "arrays"):
        whole = files(tmp_path / "1" / folder)
        assert len(whole) == 4
        assert files(tmp_path / "3" / folder) == files(tmp_path / "c" / folder) == whole
    ticks.clear()
    saliency(asked(photos, tmp_path / "c", save=ALL), progress)
    assert ticks == []


def test_bad_files_are_listed_and_too_many_stop(photos: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    for name, data in files(photos / "images").items():
        (broken / name).parent.mkdir(parents=True, exist_ok=True)
        (broken / name).write_bytes(data)
    (broken / "001.png").write_bytes((broken / "001.png").read_bytes()[:300])
    request = asked(broken, tmp_path / "out")
    with pytest.raises(TooManyBad):
        saliency(request)
    rows = list(csv.reader((tmp_path / "out" / "bad_files.csv").open()))
    assert [row[0] for row in rows] == ["file", "001.png"]
    document = saliency(replace(request, reading=Reading(max_bad=0.5)))
    assert (document["images"], document["bad_files"]) == (3, 1)
    assert sorted(files(tmp_path / "out" / "maps")) == ["000.png", "002.png", "far/003.png"]


def test_results_have_a_folder_of_their_own(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    (tmp_path / "file").write_text("")
    before = files(photos)
    for out in (tmp_path / "mine", tmp_path / "file", photos / "out", photos / "images"):
        with pytest.raises(UsageError, match="--out"):
            saliency(asked(photos, out))
    with pytest.raises(UsageError, match="the cache"):
        saliency(asked(photos, tmp_path / "out", cache=photos / "cache"))
    assert files(photos) == before
    out = tmp_path / "out"
    saliency(asked(photos, out, save=ALL))
    (out / "maps" / "note.txt").write_text("mine")
    saliency(asked(photos, out, reading=Reading(limit=2)))
    assert len(list((out / "maps").rglob("*.png"))) == 2
    assert [name for folder in ("overlays", "arrays") for name in files(out / folder)] == []
    assert (out / "maps" / "note.txt").exists()
    assert len((out / MARKER).read_text().split()) == 2
    with lock(out / ".lock", wait=False), pytest.raises(EnvironmentFault, match="in use by process"):
        saliency(asked(photos, out))


@pytest.mark.parametrize(("more", "says"), [
    ({"save": ("masks",)}, "--save 'masks': expected some of map, overlay, array"), ({"save": ()}, "--save"),
    ({"workers": 0}, "--workers 0"), ({"reading": Reading(limit=0)}, "--limit 0"),
    ({"images": Path("no/such/folder")}, "expected a folder of images")])
def test_what_cannot_be_asked(photos: Path, tmp_path: Path, more: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        saliency(asked(photos, tmp_path / "out", **more))
    assert not (tmp_path / "out").exists()


# ---- the command ----

def test_the_command(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["saliency", str(photos), "--out", str(out)]
    assert cli.main([*words, "--kind", "mbd", "--limit", "3", "--set", "saliency.passes=1"]) == 0
    assert capsys.readouterr().out == f"3 images -> {out}\n"
    first = files(out / "maps")
    more = ["--set", "superpixels.kind=grid", "--set", "saliency.geodesic=7", "--save", "map,array", "--json"]
    assert cli.main([*words, *more]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["kind"], document["saved"], document["images"]) == ("rbd", ["map", "array"], 4)
    assert document["settings"]["saliency"]["geodesic"] == 7
    assert document["settings"]["superpixels"]["kind"] == "grid"
    assert files(out / "maps").keys() > first.keys()


@pytest.mark.parametrize(("more", "code", "says"), [
    (["--set", "saliency.knd=ft"], 2, "saliency.knd"), (["--set", "saliency.kind=best"], 2, "saliency.kind"),
    (["--set", "saliency.spatial=0"], 2, "spatial is 0"), (["--save", "mask"], 2, "--save"),
    (["--set", "saliency.kind=mbd", "--set", "saliency.passes=0"], 2, "found 0, expected 1 or more")])
def test_exit_codes(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], code: int,
                    says: str) -> None:
    assert cli.main(["saliency", str(photos), "--out", str(tmp_path / "out"), *more]) == code
    assert says in capsys.readouterr().err


def test_an_empty_folder_is_a_data_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "none").mkdir()
    assert cli.main(["saliency", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 3
    assert "found no image" in capsys.readouterr().err
