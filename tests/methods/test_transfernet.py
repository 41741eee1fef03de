"""Method `transfernet` from tags and other classes' masks to masks: planned as it runs, no target mask is opened."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import method_checks
import tiny
from tagseg import cli, config
from tagseg.artifacts import Weights
from tagseg.data.folder import Reading
from tagseg.data.scenes import preset
from tagseg.localize import recognise
from tagseg.methods import transfernet
from tagseg.refine import threshold
from tagseg.report.pictures import overlay
from tagseg.runs import run as runs
from tagseg.runs.predict import load, trained
from tagseg.runs.setup import ledger
from tagseg.segment import predict_decoder, train_decoder
from tagseg.store import Run, verify
from tagseg.types import DataError, UsageError
from tiny import SOURCE, TARGET, Tiny

FIT = ["localize.classify.train", "segment.train_decoder.attention", "segment.train_decoder.joint",
       "localize.classify.train", "localize.recognise.taught", "segment.predict_decoder.finished",
       "segment.predict_decoder.maps", "localize.operating_point.auto", "segment.predict_decoder.weighed",
       "segment.predict_decoder.maps",
       "refine.threshold.fixed", "refine.class_crf.labels"]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny.make(tmp_path_factory.mktemp("transfernet") / "run", "transfernet")


def asked(out: Path, **more: Any) -> Any:
    return tiny.request(out, **{"method": "transfernet", "data": TARGET, "aux": SOURCE, **more})


def test_a_whole_run_leaves_numbers_masks_and_a_model(made: Tiny) -> None:
    assert made.document["masks_read_by_fit"] == 0  # of the target: those of the other classes are counted apart
    assert any(s.startswith(f"pixel masks and tags of 24 images of '{made.prepared.inputs.aux.tagged.name}', of other "
                            "classes: crab, jay") for s in made.document["supervision"])
    assert {"seed", "pseudo", "val", "val_post", "seed_val"} <= set(made.document["scores"])
    assert made.document["classes"] == ["newt", "fox", "pig"]
    assert len(list((made.out / "masks").rglob("*.png"))) == 12
    photo = tiny.photos(made.out.parent / "photos", count=2) / "images" / "000.png"
    assert load(made.out)(photo).pixels.shape == (48, 48)


def test_the_report_shows_each_class_of_an_image_by_itself(made: Tiny) -> None:
    rows = made.document["gallery"]
    assert max(len(row["by_class"]) for row in rows) > 1  # several classes in one image
    assert made.prepared.val is not None
    known = made.prepared.val.images.select([row["id"] for row in rows])
    drawn = transfernet.maps(made.again(), known, made.fitted, made.prepared.cfg)
    page = (made.out / "report.html").read_text()
    for row in rows:
        assert [name for name, _ in row["by_class"]] == row["tags"]
        found = drawn.get(row["id"])
        photo = known.source.read(row["id"]).transpose(1, 2, 0)
        for k, (name, panels) in enumerate(row["by_class"]):
            assert [step for step, _ in panels] == ["attention", "densified", "decoder"]
            assert f"{name}: attention" in page
            shown = np.asarray(Image.open(made.out / panels[2][1])).astype(int)
            mask = np.where(found.scores[k] >= 0.5, found.classes[k], 0).astype(np.uint8)
            others = [np.where(mask, 0, c).astype(np.uint8) for c in (1, 2, 3)]
            wrong = {0, 1, 2, 3} - {int(found.classes[k])} if mask.any() else ()
            others += [np.where(mask, c, 0).astype(np.uint8) for c in wrong]
            apart = [float(np.abs(shown - overlay(photo, one)).mean()) for one in (mask, *others)]
            assert apart[0] == min(apart)  # but for what JPEG does the mask in its colour
            pictures = [np.asarray(Image.open(made.out / file)).astype(int) for _, file in panels]
            assert np.abs(pictures[0] - pictures[1]).mean() > 1


def test_the_plan_is_what_runs(made: Tiny, tmp_path: Path) -> None:
    planned, _ = runs.plan(asked(tmp_path / "elsewhere"))
    assert [s.stage for s in planned][: len(FIT)] == FIT
    run = made.again()
    transfernet.fit(run, made.prepared.inputs, made.prepared.cfg)
    assert [(s.stage, s.key, s.state) for s in run.steps] == [(s.stage, s.key, "done") for s in planned[: len(FIT)]]


def test_each_setting_changes_its_stages_and_what_follows(made: Tiny) -> None:
    variants = {"encoder": "tags"}, {"encoder": "pretrained"}, {"cut": "half"}
    cfgs = [replace(made.prepared.cfg, **variant) for variant in variants]
    method_checks.settings_matter(transfernet, made.prepared.inputs, cfgs, 80, own=("encoder", "cut"))


def test_transfernet_s7_14_without_other_masks_and_for_other_methods(made: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="found no --aux"):
        runs.plan(asked(tmp_path / "a", aux=None))
    with pytest.raises(UsageError, match="looks at no masks; leave it out"):
        runs.plan(tiny.request(tmp_path / "b", aux=SOURCE))
    with pytest.raises(UsageError, match="are among those that are asked for"):
        runs.plan(asked(tmp_path / "c", aux=TARGET))
    bare = tiny.photos(tmp_path / "photos", masks="none")
    with pytest.raises(DataError, match=r"found no masks/ID.png"):
        runs.plan(asked(tmp_path / "d", aux=str(bare)))


def test_prediction_draws_what_the_tagger_sees(made: Tiny) -> None:
    run, cfg = made.again(), made.prepared.cfg
    assert made.prepared.val is not None
    images = made.prepared.val.images.without_tags()
    masks = transfernet.predict(run, made.fitted.model, images, cfg)
    scores = recognise.scores(run, images, made.fitted.model, cfg.predict.recognise).read()
    assert set(scores) == set(images.ids)
    assert any(masks.get(sample).pixels.any() for sample in images.ids)
    for sample in images.ids:
        assert len(scores[sample]) == 3
        assert all(0 <= share <= 1 for share in scores[sample])
        assert cfg.predict.maps.tag == "measured"
        least = np.array(made.fitted.model.meta["counts_from"])
        seen = predict_decoder.told(np.array(scores[sample]), least, True)
        assert set(np.unique(masks.get(sample).pixels).tolist()) <= {0, *(np.flatnonzero(seen) + 1).tolist()}


THIN = "scenes:thin?train=24&val=12&size=48"


def test_an_adapted_run_draws_other_classes_with_the_same_decoder(made: Tiny, tmp_path: Path) -> None:
    request = asked(tmp_path / "thin", data=THIN, aux=None, adapt=made.out, cache=made.cache)
    document = runs.run(request)
    assert document["masks_read_by_fit"] == 0
    line = next(s for s in document["supervision"] if s.startswith("a decoder taught by pixel masks of other classes"))
    assert line == f"a decoder taught by pixel masks of other classes: {', '.join(made.prepared.inputs.aux.classes)}"
    first = json.loads((made.out / "scores.json").read_text())["ledger"]
    assert [line for line in document["supervision"] if line.startswith("before it was adapted: ")] == [
        f"before it was adapted: {line}" for line in first]  # its tags and weights, too  # fmt: skip
    ran = [s["stage"] for s in document["lineage"] if s["part"] == "fit"]
    assert ran[:2] == ["segment.train_decoder.adapted", "localize.classify.train"]
    before, after = (Weights(verify(p / "weights")["key"], p / "weights").tensors() for p in (made.out, request.out))
    for name, tensor in after.items():
        if name.startswith(("backbone.", "decoder.")) or name == "scale":
            assert torch.equal(tensor, before[name]), name  # only attention has learned
    assert not torch.equal(after["attention.look.weight"], before["attention.look.weight"])
    assert len(list((request.out / "masks").rglob("*.png"))) == 12
    again = asked(tmp_path / "x", data="scenes:basic?train=24&val=12&size=48", aux=None, adapt=request.out)
    with pytest.raises(UsageError, match="the decoder has learned from masks of crab"):
        runs.plan(again)  # what it has seen travels through an adaptation


def test_attention_of_the_whole_map_is_adapted_at_its_own_size(made: Tiny, tmp_path: Path) -> None:
    fc = ("attend.shape.attention=fc", *(f"{part}.augment.square=true" for part in ("attend", "draw")))
    first = asked(tmp_path / "out" / "fc", cache=made.cache, sets=fc)
    runs.run(first)
    second = asked(tmp_path / "out" / "other", data=THIN, aux=None, adapt=first.out, cache=made.cache)
    document = runs.run(second)
    assert document["classes"] == list(preset("thin").classes)
    before, after = (Weights(verify(p / "weights")["key"], p / "weights").tensors() for p in (first.out, second.out))
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("decoder."))
    assert not torch.equal(after["attention.look.weight"], before["attention.look.weight"])
    wider = [f"{part}=64" for part in ("attend.augment.size", "maps.size", "predict.maps.size", "post.maps.size")]
    with pytest.raises(UsageError, match="attention 'fc' was built for images of 48 pixels a side, found 64"):
        runs.plan(replace(second, sets=(*second.sets, *wider)))


def test_the_paper_draws_from_one_half(made: Tiny) -> None:
    """There "usual" measures after `adapt` alone; elsewhere a fit measures, too (the plan above)."""
    assert transfernet.Config.BUDGETS["paper"]["cut"] == "usual"
    for cut in ("usual", "half"):
        run = Run(made.cache, planning=True)
        fitted = transfernet.fit(run, made.prepared.inputs, replace(made.prepared.cfg, cut=cut))
        assert "odds" not in fitted.model.meta
        assert not {"localize.operating_point.auto", "segment.predict_decoder.weighed"} & {s.stage for s in run.steps}


def test_an_adapted_run_draws_from_where_erasing_takes_evidence_away(made: Tiny, tmp_path: Path) -> None:
    sets = {"half": ("cut=half",), "usual": ("cut=usual",)}
    models, found, points = {}, {}, {}
    for name, chosen in sets.items():
        request = asked(tmp_path / name, data=THIN, aux=None, adapt=made.out, cache=made.cache, sets=chosen)
        document = runs.run(request)
        ran = [s["stage"] for s in document["lineage"] if s["part"] == "fit"]
        assert ("localize.operating_point.auto" in ran) == (name == "usual")
        prepared, planned = runs.plan(request)[1], Run(made.cache, planning=True)
        fitted = transfernet.fit(planned, prepared.inputs, prepared.cfg)
        models[name], found[name] = fitted.model, fitted.maps
        points[name] = document["operating_point"]
    assert "odds" not in models["half"].meta
    odds = models["usual"].meta["odds"]
    assert odds != 1
    for sample in found["half"].ids:  # at the point they are one half, and elsewhere in the same order
        before, after = (found[name].get(sample).scores.astype(float) for name in ("half", "usual"))
        np.testing.assert_allclose(after, before / (before + odds * (1 - before)), atol=0.02)
    assert points["half"]["origin"] != points["usual"]["origin"]
    known = trained(tmp_path / "usual")
    assert known.model.meta["odds"] == odds  # `tagseg predict` draws from there, too


def test_what_cannot_be_adapted_says_so(made: Tiny, trained: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected one of transfernet"):
        runs.plan(tiny.request(tmp_path / "a", adapt=made.out))
    with pytest.raises(UsageError, match="holds no model of transfernet"):
        runs.plan(asked(tmp_path / "b", data=THIN, aux=None, adapt=trained.out))
    with pytest.raises(UsageError, match="holds no trained model"):
        runs.plan(asked(tmp_path / "c", data=THIN, aux=None, adapt=tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="found the run that is adapted, expected another folder"):
        runs.plan(asked(made.out, data=THIN, aux=None, adapt=made.out))
    with pytest.raises(UsageError, match="leave --aux out"):
        runs.plan(asked(tmp_path / "e", data=THIN, adapt=made.out))
    with pytest.raises(UsageError, match=r"attend\.shape\.width=8: adapt keeps the network"):
        runs.plan(asked(tmp_path / "f", data=THIN, aux=None, adapt=made.out, sets=("attend.shape.width=8",)))
    with pytest.raises(DataError, match="expected two or more"):
        runs.run(asked(tmp_path / "d", data="scenes:lesions?train=24&val=12&size=48", aux=None, adapt=made.out))


def test_an_adapted_run_has_the_network_of_its_run_and_says_where_sizes_differ(made: Tiny, tmp_path: Path) -> None:
    folder = tiny.photos(tmp_path / "photos", count=12)
    for file in ("tags.csv", "classes.txt"):
        text = (folder / file).read_text()
        for name in preset("basic").classes:
            text = text.replace(name, f"my {name}")
        (folder / file).write_text(text)
    request = asked(tmp_path / "out" / "a", data=str(folder), aux=None, adapt=made.out, backbone="auto", val=())
    prepared = runs.plan(request)[1]
    assert prepared.cfg.tagger.backbone == "small"  # for photos it would be another one
    assert not any("pixels a side" in line for line in prepared.warnings)
    larger = runs.plan(replace(request, sets=(*request.sets, "maps.size=64")))[1]
    assert any("has learned from images of 48 pixels a side and is shown 64" in line for line in larger.warnings)


def test_both_sides_come_out_of_one_folder(tmp_path: Path) -> None:
    folder = str(tiny.photos(tmp_path / "photos", count=24))
    names = preset("basic").classes
    request = asked(tmp_path / "out" / "run", data=folder, aux=folder, aux_only=names[2:],
                    reading=Reading(only=names[:2], max_bad=0.01))  # fmt: skip
    document = runs.run(request)
    assert document["classes"] == list(names[:2])
    assert document["masks_read_by_fit"] == 0
    line = next(s for s in document["supervision"] if "other classes" in s)
    assert line == (f"pixel masks and tags of 24 images of 'photos:all', of other classes: {', '.join(names[2:])}; the "
                    "target's own classes count as background there")
    values = {int(v) for f in (request.out / "masks").rglob("*.png") for v in np.unique(np.asarray(Image.open(f)))}
    assert values <= {0, 1, 2}
    _, plain = runs.plan(request)
    _, ignoring = runs.plan(replace(request, aux_rest="ignore"))
    assert plain.inputs.aux is not None
    assert ignoring.inputs.aux is not None
    assert plain.inputs.aux.key != ignoring.inputs.aux.key
    assert any("was looked at and left out" in s for s in ledger(ignoring))
    with pytest.raises(UsageError, match=f"the classes {names[0]} are among those that are asked for"):
        runs.plan(replace(request, aux_only=(names[0], names[3])))
    with pytest.raises(UsageError, match="found no --aux, expected the folder they"):
        runs.plan(tiny.request(tmp_path / "e", aux_only=names[2:]))
    with pytest.raises(UsageError, match="--aux-rest gone: expected one of background, drop, ignore"):
        runs.plan(replace(request, aux_rest="gone"))


def test_masks_of_val_images_are_left_out_or_told(tmp_path: Path) -> None:
    folder, names = tiny.photos(tmp_path / "photos", count=24), preset("basic").classes
    for split, rows in (("train", range(16)), ("val", range(16, 24))):
        (folder / "splits").mkdir(exist_ok=True)
        (folder / "splits" / f"{split}.txt").write_text("".join(f"{k:03d}.png\n" for k in rows))
    request = asked(tmp_path / "out" / "run", data=str(folder), aux=str(folder), aux_only=names[2:], train=("train",),
                    val=("val",), reading=Reading(only=names[:2]))  # fmt: skip
    prepared = runs.plan(request)[1]
    assert prepared.inputs.aux is not None
    assert len(prepared.inputs.aux.tagged) == 16
    assert not any("--aux" in line for line in prepared.warnings)
    leaking = runs.plan(replace(request, aux_splits=("train", "val")))[1]
    assert leaking.inputs.aux is not None
    assert len(leaking.inputs.aux.tagged) == 24
    assert any("8 images are in --aux and in val" in line for line in leaking.warnings)


def test_masks_that_do_not_fit_their_images_are_found_before_work(tmp_path: Path) -> None:
    folder, names = tiny.photos(tmp_path / "photos", count=24), preset("basic").classes
    masks = sorted((folder / "masks").glob("*.png"))
    Image.open(masks[3]).resize((20, 30), Image.Resampling.NEAREST).save(masks[3])
    request = asked(tmp_path / "out" / "run", data=THIN, aux=str(folder), aux_only=names[2:],
                    reading=Reading(max_bad=0.1))  # fmt: skip
    prepared = runs.plan(request)[1]
    assert prepared.inputs.aux is not None
    assert len(prepared.inputs.aux.tagged) == 23
    assert any("1 masks of --aux cannot be used" in line for line in prepared.warnings)
    assert [row.path for row in prepared.bad_files] == [f"masks: {masks[3].stem}"]
    with pytest.raises(DataError, match=r"1 of 24 masks cannot be used, more than --max-bad allows.*30x20"):
        runs.plan(replace(request, reading=Reading(max_bad=0.0)))


def test_an_adapted_run_tells_of_val_images_whose_masks_its_decoder_saw(made: Tiny, tmp_path: Path) -> None:
    folder, names = tiny.photos(tmp_path / "photos", count=24), preset("basic").classes
    for split, rows in (("train", range(16)), ("val", range(16, 24))):
        (folder / "splits").mkdir(exist_ok=True)
        (folder / "splits" / f"{split}.txt").write_text("".join(f"{k:03d}.png\n" for k in rows))
    first = asked(tmp_path / "out" / "first", data=TARGET, aux=str(folder), aux_only=names[3:5])
    runs.run(first)
    seen = (first.out / "masks_seen.txt").read_text().split()
    assert len(set(seen)) == 24
    second = asked(tmp_path / "out" / "second", data=str(folder), aux=None, adapt=first.out, train=("train",),
                   val=("val",), reading=Reading(only=names[:2]), cache=first.cache)  # fmt: skip
    assert any("8 images of val are among those whose masks taught the decoder" in line
               for line in runs.plan(second)[1].warnings)  # fmt: skip
    runs.run(second)
    assert (second.out / "masks_seen.txt").read_text().split() == seen  # what it has seen travels along
    assert not any("whose masks taught" in line for line in runs.plan(replace(second, val=()))[1].warnings)
    (first.out / "masks_seen.txt").unlink()
    assert any("found no masks_seen.txt" in line for line in runs.plan(second)[1].warnings)
    runs.run(second)
    assert not (second.out / "masks_seen.txt").exists()  # nor does the next one know


def test_no_model_is_left_beside_another_ones_list_of_masks(made: Tiny, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while a new model replaces an old one, a run has no model, which `adapt` refuses."""
    request = asked(tmp_path / "out" / "run", cache=made.cache, train=(), aux=SOURCE)
    runs.run(request)
    other = replace(request, aux="scenes:transfer?train=20&val=12&size=48&side=source")
    kept = runs.write_atomic

    def killed(path: Path, data: bytes) -> None:
        if path.name == "masks_seen.txt":
            raise KeyboardInterrupt
        kept(path, data)

    monkeypatch.setattr(runs, "write_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        runs.run(other)
    with pytest.raises(UsageError, match="holds no trained model"):
        runs.plan(asked(tmp_path / "c", data=THIN, aux=None, adapt=request.out))


def test_adapt_on_the_command_line(made: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = [word for item in (*tiny.COMMON["transfernet"], *tiny.OWN["transfernet"]) for word in ("--set", item)
            if item.split(".")[0] in ("tagger", "attend", "maps", "predict", "post", "point", "crf")]  # fmt: skip
    words = [THIN, "--out", str(tmp_path / "run"), "--budget", "quick", "--device", "cpu", "--precision", "fp32",
             "--workers", "1", "--cache", str(made.cache), *sets]  # fmt: skip
    assert cli.main(["adapt", str(made.out), *words]) == 0
    said = capsys.readouterr()
    assert "transfernet on scenes:thin" in said.out + said.err
    assert "masks read by the fit, of the classes asked for: 0" in said.err
    assert (tmp_path / "run" / "report.html").is_file()
    assert cli.main(["adapt", str(tmp_path / "nowhere"), *words]) != 0
    assert "finished `tagseg run transfernet`" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["adapt", "--help"])
    offered = capsys.readouterr().out
    assert "two or more" in offered
    assert "--aux" not in offered


def test_adapting_says_which_settings_do_nothing(made: Tiny, tmp_path: Path) -> None:
    request = asked(tmp_path / "a", data=THIN, aux=None, adapt=made.out, sets=("draw.masks=3", "tagger.stride=16"))
    lines = [line for line in runs.plan(request)[1].warnings if "keeps encoder and decoder" in line]
    assert len(lines) == 1
    assert "draw.masks=3" in lines[0]
    assert "tagger.stride" not in lines[0]


def test_an_adapted_run_is_described_by_the_network_that_it_has(made: Tiny, tmp_path: Path) -> None:
    request = asked(tmp_path / "a", data=THIN, aux=None, adapt=made.out, budget="standard")
    cfg = runs.plan(request)[1].cfg
    model = Weights(verify(made.out / "weights")["key"], made.out / "weights")
    assert cfg.attend.shape.width == model.meta["shape"]["width"] != type(cfg)().attend.shape.width
    assert cfg.attend.scale == pytest.approx(float(model.tensors()["scale"]))


def test_attention_that_is_frozen_stays_as_it_was(made: Tiny) -> None:
    prepared = runs.plan(asked(made.out, sets=("draw.attention=frozen",)))[1]
    run, inputs, cfg = made.again(), prepared.inputs, prepared.cfg
    assert inputs.aux is not None
    plan = Run(made.cache, planning=True)
    transfernet.fit(plan, inputs, cfg)
    before = train_decoder.attention(run, inputs.tagged, inputs.aux.tagged,
                                     Weights(plan.steps[0].key, plan.steps[0].path), cfg.attend)  # fmt: skip
    after = train_decoder.joint(run, inputs.tagged, inputs.aux, before, cfg.draw)
    old, new = before.tensors(), after.tensors()
    moved = {name.split(".")[0] for name in new if not torch.equal(new[name], old[name])}
    assert moved == {"decoder"}


WITHOUT = {
    "attention itself into the decoder": ("attend.shape.highlight=attention",),
    "attention frozen": ("draw.attention=frozen",),
    "no group norm": ("attend.shape.norm=none",),
    "no switches": ("attend.shape.up=bilinear",),
    "shared switches": ("attend.shape.up=switch_shared",),
    "no combining layer": ("attend.shape.combine_layer=false",),
    "no masks": ("draw.masks=0",),
    "no tags while it draws": ("draw.tags=0",),
    "features as they are": ("attend.scale=1.0",),
    "another initialisation": ("attend.shape.init=gaussian",),
}


@pytest.mark.parametrize("gone", WITHOUT)
def test_without_a_mechanism_the_maps_are_others(made: Tiny, gone: str) -> None:
    """Before an operating point is measured, which would change the maps of any network."""
    found = [drawn(made, runs.plan(asked(made.out, sets=sets))[1]) for sets in ((), WITHOUT[gone])]
    assert found[0] == drawn(made, made.prepared)
    assert found[0] != found[1]


def drawn(made: Tiny, prepared: Any) -> Any:
    """What the decoder draws of the training images, as digests of the maps."""
    run, inputs, cfg = made.again(), prepared.inputs, prepared.cfg
    plan = Run(made.cache, planning=True)
    transfernet.fit(plan, inputs, cfg)
    start = Weights(plan.steps[0].key, plan.steps[0].path)
    first = train_decoder.attention(run, inputs.tagged, inputs.aux.tagged, start, cfg.attend)
    model = train_decoder.joint(run, inputs.tagged, inputs.aux, first, cfg.draw)
    return predict_decoder.maps(run, inputs.tagged, model, cfg.maps).record["outputs"]


def test_adapting_asks_nothing_of_the_decoders_crops(made: Tiny) -> None:
    """With attention "fc" all sizes are alike; those that only the decoder's training has play no part any more."""
    cfg = made.prepared.cfg
    shape = replace(cfg.attend.shape, attention="fc")
    larger = replace(cfg.draw, augment=replace(cfg.draw.augment, size=64))
    odd = replace(cfg, attend=replace(cfg.attend, shape=shape), draw=larger)
    with pytest.raises(UsageError, match=r"draw\.augment\.size=64"):
        transfernet.check(made.prepared.inputs, odd)
    transfernet.check(replace(made.prepared.inputs, aux=None, trained=made.fitted.model), odd)


def test_fc_attention_is_shown_one_size(tmp_path: Path) -> None:
    sets = ("attend.shape.attention=fc", "maps.size=64", "draw.augment.size=48", "attend.augment.size=48")
    with pytest.raises(UsageError, match=r"maps\.size=64.*expected one size"):
        runs.plan(asked(tmp_path / "run", sets=sets))


@pytest.mark.parametrize(("wrong", "says"), [
    (("maps.background=0",), r"maps\.background: found 0\.0, expected more than 0"),
    (("post.maps.background=-1",), r"post\.maps\.background: found -1\.0"),
    (("maps.grid=0",), r"maps\.grid: found 0, expected 1 or more"),
    (("predict.maps.tag=7",), r"predict\.maps\.tag: found 7\.0, expected a score from 0 to 1"),
    (("draw.whole_rate=0",), r"draw\.whole_rate: found 0\.0, expected more than 0"),
    (("attend.scale=0",), r"attend\.scale: found 0\.0, expected more than 0"),
    (("attend.shape.width=0",), r"attend\.shape\.width: found 0, expected 1 or more"),
    (("draw.masks=-1",), r"draw\.masks: found -1\.0, expected 0 or more"),
    (("attend.shape.attention=fc", *(f"{part}.size=40" for part in
      ("attend.augment", "draw.augment", "maps", "predict.maps", "post.maps"))), "expected a multiple of 16"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused_before_anything_learns(tmp_path: Path, wrong: tuple[str, ...],
                                                                   says: str) -> None:
    with pytest.raises(UsageError, match=says):
        runs.plan(asked(tmp_path / "run", sets=wrong))


def test_switches_that_a_network_has_not_are_refused_before_anything_learns(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="choose up=switch_shared or bilinear"):
        runs.plan(asked(tmp_path / "run", backbone="mobilenet_v2", weights="none", sets=("attend.shape.up=switch",)))


def test_fc_attention_on_photos_of_several_shapes_is_refused_before_anything_learns(tmp_path: Path) -> None:
    folder = tiny.photos(tmp_path / "photos", count=24)
    for k, path in enumerate(sorted((folder / "images").iterdir())):
        mask = folder / "masks" / f"{path.stem}.png"
        for file in (path, mask):
            Image.open(file).resize((96, 40) if k % 2 else (40, 96), Image.Resampling.NEAREST).save(file)
    names = preset("basic").classes
    sets = ("attend.shape.attention=fc", *(f"{part}.size=48" for part in
            ("attend.augment", "draw.augment", "maps", "predict.maps", "post.maps")))  # fmt: skip
    request = asked(tmp_path / "out" / "run", data=str(folder), aux=str(folder), aux_only=names[2:], val=(), sets=sets,
                    reading=Reading(only=names[:2]))  # fmt: skip
    with pytest.raises(DataError, match=r"sees one grid.*attend\.augment\.square=true"):
        runs.plan(request)
    runs.plan(replace(request, sets=(*sets, "attend.augment.square=true", "draw.augment.square=true")))


def test_a_point_at_the_end_of_the_scale_still_weighs(made: Tiny) -> None:
    """The brightness rule gives 0 where a set's maps have one value alone."""
    run = made.again()
    for cut in (0.0, 1.0):
        point = threshold.fixed(run, threshold.Fixed(cut, "at the end"))
        model = predict_decoder.weighed(run, made.fitted.model, point, predict_decoder.Weighed())
        assert 0 < model.meta["odds"] < np.inf
        found = predict_decoder.maps(run, made.prepared.inputs.tagged, model, made.prepared.cfg.maps)
        assert np.isfinite(found.get(found.ids[0]).scores).all()


def test_images_of_other_classes_are_not_predicted(made: Tiny) -> None:
    run, cfg, tagged, fitted = made.again(), made.prepared.cfg, made.prepared.inputs.tagged, made.fitted
    seen = recognise.taught(run, tagged, fitted.classifier, cfg.predict.recognise)
    turned = replace(tagged, classes=tagged.classes[::-1])
    with pytest.raises(DataError, match=rf"in this order; {turned.name} has {', '.join(turned.classes)}; give data"):
        predict_decoder.predicted(run, turned, fitted.model, seen, cfg.predict.maps)


def test_without_background_there_is_nothing_to_draw_before(made: Tiny) -> None:
    given = made.prepared.inputs
    full = replace(given, tagged=replace(given.tagged, has_background=False))
    with pytest.raises(DataError, match="expected a set with one"):
        transfernet.fit(made.again(), full, made.prepared.cfg)


def test_the_sourced_score_of_tags_holds_in_paper_alone() -> None:
    for budget in config.BUDGETS:
        cfg = config.with_budget(transfernet.Config(), budget)
        assert {cfg.predict.maps.tag, cfg.post.maps.tag} == {0.6 if budget == "paper" else "measured"}


def test_classes_count_from_where_the_training_tags_are_told_best(made: Tiny) -> None:
    run, cfg, tagged = made.again(), made.prepared.cfg, made.prepared.inputs.tagged
    seen = recognise.taught(run, tagged, made.fitted.classifier, cfg.predict.recognise).read()
    said = np.array([seen[i] for i in tagged.ids])

    def f1(cuts: np.ndarray) -> np.ndarray:
        found = said >= cuts
        return 2 * (found & tagged.tags).sum(0) / np.maximum(found.sum(0) + tagged.tags.sum(0), 1)

    cuts = np.array(made.fitted.model.meta["counts_from"])
    assert all((f1(cuts) >= f1(np.full(3, other)) - 1e-9).all() for other in (0.0, 0.2, 0.4, 0.5, 0.6, 0.8))


def test_the_sourced_crf_holds_in_every_budget() -> None:
    for budget in config.BUDGETS:
        cfg = config.with_budget(transfernet.Config(), budget)
        for crf in (cfg.crf, cfg.post.crf):
            assert (crf.sxy_bilateral, crf.srgb, crf.compat_bilateral, crf.iterations) == (20.0, 3.0, 5.0, 10)
        assert cfg.predict.crf.iterations == 0
