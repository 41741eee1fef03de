"""`tagseg refine`: blurred, shifted maps of generated scenes become better masks; bad files and stops lose nothing."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

import tiny
from tagseg import cli, config
from tagseg.artifacts import read_png
from tagseg.data.folder import Reading, TooManyBad
from tagseg.data.foreign_folders import open_maps
from tagseg.data.foreign_maps import ForeignMap, MapReading
from tagseg.refine.crf import Crf
from tagseg.refine.pamr import Pamr
from tagseg.runs.foreign_stages import EVEN, against, unary
from tagseg.runs.refine import MARKER, Config, RefineRequest, decided, refine
from tagseg.types import ClassMaps, EnvironmentFault, Interrupted, UsageError

CLASSES = ("crab", "jay", "frog", "finch", "moth", "newt")
EASY = Config(crf=Crf(compat_gaussian=1.0, sxy_bilateral=6.0, srgb=20.0, compat_bilateral=4.0, iterations=5))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/images and photos/masks; in maps/ soft maps, off by two pixels, float32 (7,h,w)."""
    root = tmp_path_factory.mktemp("refine")
    tiny.photos(root / "photos", count=4)
    (root / "maps").mkdir()
    (root / "maps" / "classes.txt").write_bytes((root / "photos" / "classes.txt").read_bytes())
    for file in sorted((root / "photos" / "masks").iterdir()):
        same = np.arange(len(CLASSES) + 1)[:, None, None] == read_png(file.read_bytes())
        soft = ndimage.gaussian_filter(same.astype(np.float32), (0, 3, 3))
        soft = ndimage.shift(soft, (0, 2, -2), order=0, mode="nearest")
        soft += np.where(np.arange(len(soft)) == 0, 0.01, 0.003)[:, None, None].astype(np.float32)
        np.save(root / "maps" / f"{file.stem}.npy", soft / soft.sum(0))
    return root


def asked(data: Path, out: Path, **more: Any) -> RefineRequest:
    request = RefineRequest(data / "maps", data / "photos" / "images", out, cfg=EASY, device="cpu", precision="fp32")
    return replace(request, **more)


def without_background(data: Path, place: Path) -> Path:
    """The same maps, each divided by its maximum, classes only."""
    place.mkdir()
    for file in sorted((data / "maps").glob("*.npy")):
        maps = np.load(file)[1:]
        maps[maps.max((1, 2)) < 0.1] = 0
        np.save(place / file.name, maps / np.maximum(maps.max((1, 2), keepdims=True), 1e-5))
    (place / "classes.txt").write_bytes((data / "maps" / "classes.txt").read_bytes())
    return place


def masks(folder: Path) -> dict[str, np.ndarray]:
    return {file.stem: read_png(file.read_bytes()) for file in sorted(folder.glob("*.png"))}


def right(data: Path, out: Path) -> float:
    """The share of pixels whose label is the true one."""
    truth, found = masks(data / "photos" / "masks"), masks(out / "masks")
    assert truth.keys() == found.keys()
    return float(np.mean([truth[i] == found[i] for i in truth]))


def arg_max(data: Path) -> dict[str, np.ndarray]:
    return {file.stem: np.load(file).argmax(0) for file in sorted((data / "maps").glob("*.npy"))}


def test_the_crf_makes_better_masks_and_everything_is_written(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    kinds = ("mask", "overlay", "confidence", "probabilities")
    document = refine(asked(data, out, save=kinds))
    truth = masks(data / "photos" / "masks")
    before = np.mean([truth[i] == found for i, found in arg_max(data).items()])
    assert right(data, out) > before + 0.02
    assert document == json.loads((out / "refine.json").read_text())
    assert document["background"] == {"origin": "the background's own map"}
    assert document["settings"]["crf"]["srgb"] == 20
    assert (out / "classes.txt").read_text().split() == list(CLASSES)
    for folder in ("overlays", "confidence"):
        assert len(list((out / folder).glob("*.png"))) == 4
    shares = np.load(out / "probabilities" / "000.npy")
    assert (shares.dtype, shares.shape) == (np.float16, (7, 48, 48))
    assert np.abs(shares.astype(np.float32).sum(0) - 1).max() < 4e-3  # 7 roundings to float16
    assert (shares.argmax(0) == masks(out / "masks")["000"]).mean() > 0.999
    assert Image.open(out / "masks" / "000.png").mode == "P"


def test_no_iterations_is_the_arg_max_and_an_own_background_needs_no_threshold(data: Path, tmp_path: Path) -> None:
    plain = asked(data, tmp_path / "out", cfg=Config(crf=Crf(iterations=0)))
    refine(plain)
    assert {i: found.tolist() for i, found in masks(tmp_path / "out" / "masks").items()} == {
        i: found.tolist() for i, found in arg_max(data).items()}
    with pytest.raises(UsageError, match=r"--threshold 0.3: the maps in .* have a map of the background"):
        refine(replace(plain, threshold=0.3))


def test_maps_without_background_are_cut_by_otsus_rule_or_as_told(data: Path, tmp_path: Path) -> None:
    maps = without_background(data, tmp_path / "maps")
    found = refine(asked(data, tmp_path / "out", maps=maps))
    assert 0.2 < found["background"]["threshold"] < 0.7
    assert found["background"]["origin"] == "Otsu's rule over all maps"
    assert right(data, tmp_path / "out") > 0.9
    assert refine(asked(data, tmp_path / "b", maps=maps, threshold=0.6))["background"] == {
        "threshold": 0.6, "origin": "given"}
    less = sum(int((m > 0).sum()) for m in masks(tmp_path / "b" / "masks").values())
    assert less < sum(int((m > 0).sum()) for m in masks(tmp_path / "out" / "masks").values())


def test_superpixels_smooth_with_and_without_a_background(data: Path, tmp_path: Path) -> None:
    fine = replace(EASY, superpixels=replace(EASY.superpixels, kind="grid", regions=144))  # cells of 4x4 pixels
    for name, maps in (("own", data / "maps"), ("none", without_background(data, tmp_path / "maps"))):
        refine(asked(data, tmp_path / name, maps=maps, steps=("superpixels",), cfg=fine))
        assert right(data, tmp_path / name) > 0.85
        for found in masks(tmp_path / name / "masks").values():
            cells = found.reshape(12, 4, 12, 4)
            assert (cells == cells[:, :1, :, :1]).all()


def test_pamr_averages_the_maps_among_like_pixels(data: Path, tmp_path: Path) -> None:
    few = replace(EASY, pamr=Pamr(iterations=5, dilations=(1, 2, 4)))
    before = np.mean([masks(data / "photos" / "masks")[i] == found for i, found in arg_max(data).items()])
    for name, maps in (("own", data / "maps"), ("none", without_background(data, tmp_path / "maps"))):
        refine(asked(data, tmp_path / name, maps=maps, steps=("pamr",), cfg=few))
        assert right(data, tmp_path / name) > before + 0.01
    document = refine(asked(data, tmp_path / "both", steps=("pamr", "crf"), cfg=few))
    assert set(document["settings"]) == {"pamr", "crf"}
    assert any((masks(tmp_path / "both" / "masks")[i] != m).any() for i, m in masks(tmp_path / "own" / "masks").items())


def test_the_affinity_network_is_learned_from_the_maps(data: Path, tmp_path: Path) -> None:
    schedule = replace(EASY.affinity.schedule, min_images=0, max_images=16, batch=4)
    augment = replace(EASY.affinity.augment, size=48)
    cfg = replace(EASY, affinity=replace(EASY.affinity, schedule=schedule, augment=augment, stride=8, radius=3),
                  walk=replace(EASY.walk, views=replace(EASY.walk.views, size=48, flip=False), radius=3, steps=8))
    request = asked(data, tmp_path / "out", steps=("affinity", "crf"), cfg=cfg, backbone="small",
                    reading=MapReading(floor=0.2))
    found = refine(request)
    assert found["background"]["origin"] == "Otsu's rule over all maps"
    assert set(found["settings"]) == {"affinity", "seeds", "walk", "crf"}
    assert found["settings"]["affinity"]["backbone"] == "small"
    assert right(data, tmp_path / "out") > 0.9
    seen: list[str] = []
    refine(request, progress=lambda stage, done, total, note: seen.append(stage))
    assert seen == []  # all of it was there


def test_against_the_background_cuts_where_the_arg_max_does() -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(4), 300).T.reshape(4, 15, 20).astype(np.float32)
    p[:, 0, 0] = 0.25
    odds = against(ClassMaps("a", np.array([2, 3, 5]), p[1:], (15, 20)), p[0])
    cut = unary(odds, EVEN).shares.argmax(0)
    assert (cut == p.argmax(0)).all()
    assert odds.scores[:, 3, 4] == pytest.approx(p[1:, 3, 4] / (p[1:, 3, 4].max() + p[0, 3, 4]))
    own = unary(ForeignMap(ClassMaps("a", np.array([2, 3, 5]), p[1:], (15, 20)), p[0]), 0.9)
    assert own.values.tolist() == [0, 2, 3, 5]
    assert own.shares == pytest.approx(p, abs=1e-6)


def test_bad_files_are_listed_and_too_many_stop(data: Path, tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.mkdir()
    for file in (data / "maps").iterdir():
        (maps / file.name).write_bytes(file.read_bytes())
    np.save(maps / "001.npy", np.full((7, 48, 48), np.nan))
    (maps / "002.npy").write_bytes(b"<html>")
    request = asked(data, tmp_path / "out", maps=maps)
    with pytest.raises(TooManyBad):
        refine(request)
    rows = list(csv.reader((tmp_path / "out" / "bad_files.csv").open()))
    assert [row[:2] for row in rows] == [["file", "reason"], ["maps/001.npy", "not-finite"],
                                         ["maps/002.npy", "not-an-array"]]
    found = refine(replace(request, reading=MapReading(images=Reading(max_bad=0.5))))
    assert (found["images"], found["bad_files"]) == (2, 2)
    assert sorted(masks(tmp_path / "out" / "masks")) == ["000", "003"]


def test_the_same_bytes_for_any_number_of_workers_and_after_a_stop(data: Path, tmp_path: Path) -> None:
    for workers in (1, 3):
        refine(asked(data, tmp_path / f"{workers}", workers=workers))
    asked_to_stop: list[int] = []

    def progress(stage: str, done: int, total: int, note: str) -> None:
        asked_to_stop.append(done)

    with pytest.raises(Interrupted):
        refine(asked(data, tmp_path / "c"), progress, lambda: len(asked_to_stop) > 1)
    refine(asked(data, tmp_path / "c"))
    whole = {file.name: file.read_bytes() for file in (tmp_path / "1" / "masks").iterdir()}
    for other in ("3", "c"):
        assert {file.name: file.read_bytes() for file in (tmp_path / other / "masks").iterdir()} == whole


def test_results_have_a_folder_of_their_own(data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    before = sorted(p.relative_to(data) for p in data.rglob("*"))
    for out in (tmp_path / "mine", data / "maps" / "out", data / "photos" / "images"):
        with pytest.raises(UsageError, match="--out"):
            refine(asked(data, out))
    assert sorted(p.relative_to(data) for p in data.rglob("*")) == before
    out = tmp_path / "out"
    refine(asked(data, out, save=("mask", "confidence")))
    refine(asked(data, out, reading=MapReading(images=Reading(limit=2))))
    assert len(list((out / "masks").iterdir())) == 2
    assert list((out / "confidence").iterdir()) == []
    assert (out / MARKER).is_file()


@pytest.mark.parametrize(("more", "says"), [
    ({"steps": ("crf", "affinity")}, "in the order affinity, superpixels, pamr, crf"), ({"steps": ()}, "--with"),
    ({"steps": ("blur",)}, "--with 'blur'"), ({"save": ("masks",)}, "--save 'masks'"),
    ({"threshold": 1.0}, "--threshold 1.0"), ({"workers": 0}, "--workers 0"), ({"seed": -1}, "--seed -1")])
def test_what_cannot_be_asked(data: Path, tmp_path: Path, more: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        refine(asked(data, tmp_path / "out", **more))
    assert not (tmp_path / "out").exists()


def with_device(group: str, device: str) -> Config:
    return config.replace(EASY, f"{group}.device", device)


@pytest.mark.parametrize(("more", "error", "says"), [
    ({"cfg": with_device("crf", "gpu")}, UsageError, r"setting crf.device 'gpu': expected one of auto, cpu, cuda"),
    ({"cfg": with_device("crf", "cuda")}, EnvironmentFault, r"setting crf.device cuda: .*no usable GPU"),
    ({"cfg": with_device("walk", "gpu"), "steps": ("affinity",)}, UsageError, "setting walk.device 'gpu'"),
    ({"cfg": with_device("affinity", "cuda:1"), "steps": ("affinity",)}, EnvironmentFault, "affinity.device cuda:1"),
    ({"device": "gpu"}, UsageError, "--device 'gpu'")])
def test_a_device_that_is_not_there_is_refused_before_any_work(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], error: type[Exception],
        says: str) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(error, match=says):  # before the maps are looked for: there are none
        refine(asked(tmp_path / "nothing", tmp_path / "out", **more))
    assert not (tmp_path / "out").exists()


def test_devices_of_steps_that_were_not_asked_for_do_not_matter_and_auto_is_decided(
        data: Path, tmp_path: Path) -> None:
    crf = replace(EASY.crf, device="auto")
    found = refine(asked(data, tmp_path / "out", cfg=replace(with_device("walk", "gpu"), crf=crf)))
    assert found["settings"] == {"crf": config.canonical(EASY.crf)}  # "cpu", as --device says


@pytest.mark.parametrize("own", [True, False])
def test_peaks_are_raised_as_told_else_unless_the_background_has_a_map(data: Path, tmp_path: Path, own: bool) -> None:
    opened = open_maps(data / "maps" if own else without_background(data, tmp_path / "maps"), data / "photos/images")
    request = asked(data, tmp_path / "out", steps=("superpixels",))
    assert decided(request, opened.maps).smooth.keep_peaks is (not own)
    for told in (True, False):
        cfg = config.replace(EASY, "smooth.keep_peaks", told)
        asked_for = replace(request, cfg=cfg, given=("smooth.keep_peaks",))
        assert decided(asked_for, opened.maps).smooth.keep_peaks is told


def test_the_command_line_passes_on_what_was_asked_for(data: Path, tmp_path: Path) -> None:
    words = ["refine", str(data / "maps"), "--images", str(data / "photos" / "images"), "--out", str(tmp_path / "out"),
             "--with", "superpixels", "--json"]
    for more, wanted in (([], False), (["--set", "smooth.keep_peaks=true"], True)):
        assert cli.main([*words, *more]) == 0
        document = json.loads((tmp_path / "out" / "refine.json").read_text())
        assert document["settings"]["smooth"]["keep_peaks"] is wanted


# ---- the command ----

def test_the_command_prints_counts_and_where_the_background_comes_from(data: Path, tmp_path: Path,
                                                                       capsys: pytest.CaptureFixture[str]) -> None:
    words = ["refine", str(data / "maps"), "--images", str(data / "photos" / "images"), "--out", str(tmp_path / "out"),
             "--compat-gaussian", "1", "--sxy-bilateral", "6", "--srgb", "20", "--compat-bilateral", "4",
             "--iterations", "5", "--floor", "0.05"]
    assert cli.main(words) == 0
    said = capsys.readouterr()
    assert said.out == f"4 images -> {tmp_path / 'out'}\n"
    assert "everywhere were left out" in said.err
    assert "background: the background's own map" in said.err
    assert cli.main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["dropped"] > 10  # of 24 pairs of image and class, each image shows one to three
    refine(asked(data, tmp_path / "all"))
    whole, less = masks(tmp_path / "all" / "masks"), masks(tmp_path / "out" / "masks")
    assert np.mean([whole[i] == less[i] for i in whole]) > 0.999
    assert document["settings"] == {"crf": config.canonical(EASY.crf)}
    assert cli.main([*words, "--background", "none"]) == 3  # 7 maps for 6 classes
    assert cli.main([*words, "--set", "crf.srbg=3"]) == 2


def test_the_help_states_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["refine", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name in ("sxy_gaussian", "compat_gaussian", "sxy_bilateral", "srgb", "compat_bilateral", "iterations"):
        entry = text.rsplit(f"--{name.replace('_', '-')} ", 1)[1]
        assert entry.split("(default: ")[1].split(")")[0] == f"{getattr(Crf(), name):g}"
