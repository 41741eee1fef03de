"""The walk: scores fill what a boundary encloses and nothing else, at the right cell, whatever sizes and strides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tagseg import artifacts, inference
from tagseg.artifacts import MapSet, Weights, write_maps, write_weights
from tagseg.data.index import TaggedSet
from tagseg.inference import Network, Seen, Views, count
from tagseg.nets.affinity_net import EdgeNet, affinity_net
from tagseg.nets.backbones import Backbone, Preprocess, Tap, build
from tagseg.ops.geometry import align, enlarge, resample, shrunk
from tagseg.refine import affinity
from tagseg.refine.affinity import Walk, on_card, predicted, shared_peak, shown, spread
from tagseg.store import Run, Work, stage
from tagseg.types import ClassMaps, DataError
from tiny import Tiny

CFG = Walk(views=Views(size=48), device="cpu", precision="fp32")
EXACT = replace(CFG, exact=True)


class Bright(nn.Module):
    """A backbone whose stride-4 cell says how bright the pixels under it are; `offset` 1.5 or 0 pixels."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset

    def forward(self, x: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
        grey = x.mean(1, keepdim=True)
        return {"block1": nn.functional.avg_pool2d(grey, 4) if self.offset else grey[..., ::4, ::4]}


def wall_net(offset: float) -> EdgeNet:
    """Bright pixels are a boundary with logit 200, dark ones -200."""
    tap = Tap("block1", 1, 4, offset)
    as_it_is = Preprocess((0.0,) * 3, (1.0,) * 3)
    backbone = Backbone("bright", Bright(offset), (tap,), {"low": "block1"}, preprocess=as_it_is)
    model = EdgeNet(backbone, align=align, width=1)
    model.edge.units[0] = nn.Identity()
    nn.init.constant_(model.score.weight, 400.0)
    assert model.score.bias is not None
    nn.init.constant_(model.score.bias, -200.0)
    return model.eval()


class Walls:
    """One dark image with a bright column, 1/16 of the width wide; what `predicted` needs of a set."""

    def __init__(self, height: int, width: int, at: int) -> None:
        self.image = np.zeros((3, height, width), np.uint8)
        self.image[:, :, at * width // 16 : (at + 1) * width // 16] = 255
        self.source = self

    def read(self, sample: str) -> np.ndarray:
        return self.image

    def size(self, sample: str) -> tuple[int, int]:
        return self.image.shape[1], self.image.shape[2]


@pytest.mark.parametrize("offset", [0.0, 1.5])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("at", [3, 8, 12])
def test_scores_fill_their_side_up_to_the_very_cell_of_the_wall(tmp_path: Path, offset: float, flip: bool, scale: int,
                                                                at: int) -> None:
    cfg, model = replace(EXACT, views=Views(size=64, flip=flip)), wall_net(offset)
    data = Walls(64 * scale, 64 * scale, at)
    work = Work(Run(tmp_path), "toy", tmp_path)
    seen, = predicted(work, model, shown(model), data, ["a"], cfg)  # type: ignore[arg-type]
    assert seen.values.shape == (1, 16, 16)
    scores = np.zeros((2, 16, 16), np.float32)
    scores[0, 4:8, at - 2], scores[0, 4:8, at] = 1, 1  # beside the wall and, without effect, inside
    scores[1, 4:8, at + 1] = 0.5
    coarse = ClassMaps("a", np.array([2, 5]), scores, data.size("a"))
    found = spread(coarse, seen.values / count(cfg.views), model, cfg)
    left, right = found.scores
    assert left[:, :at].min() > 0.2  # every cell up to the wall is reached
    assert max(left[:, at:].max(), right[:, : at + 1].max()) < 0.02  # nothing is in the wall or behind it
    assert right[:, at + 1 :].min() > 0.2 * right.max() > 0
    assert found.size == data.size("a")
    assert found.classes.tolist() == [2, 5]


def test_maps_of_another_grid_are_brought_to_the_walls_cells() -> None:
    data = torch.full((1, 16, 16), -20.0)
    data[0, :, 8] = 20.0
    fine = np.zeros((1, 64, 64), np.float32)
    fine[:, :, 36:] = 1.0  # from pixel 36 on: cell 9 of 16, behind the wall
    found = spread(ClassMaps("a", np.array([1]), fine, (64, 64)), data, wall_net(1.5), replace(EXACT, steps=1))
    assert (found.scores[:, :, :9] < 1e-3).all()
    assert (found.scores[:, :, 9:] > 0.99).all()


def test_a_line_of_one_pixel_is_not_lost_between_the_cells_of_a_coarser_grid() -> None:
    for at in range(20, 28):  # wherever it lies: a cell of 4.5 pixels holds its share of the line
        line = np.zeros((1, 64, 72), np.float32)
        line[0, :, at] = 1.0
        found = shrunk(line, (16, 16))
        assert found.shape == (1, 16, 16)
        assert found.sum(2) == pytest.approx(1 / 4.5, abs=1e-6)
        assert found[0, :, [at * 2 // 9, (at * 2 + 1) // 9]].max() > 0.1
        whole = spread(ClassMaps("a", np.array([1]), line, (64, 72)), torch.zeros(1, 16, 16), wall_net(1.5),
                       replace(EXACT, steps=1, beta=1e5))  # every cell keeps what it has
        assert whole.scores.shape == (1, 16, 16)
        assert whole.scores.max(2).min() == pytest.approx(1.0, abs=1e-5)


def test_where_nothing_moves_it_is_the_product_with_what_is_no_boundary() -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(1, 9, 12)).astype(np.float32))
    maps = ClassMaps("a", np.array([1, 4]), rng.random((2, 9, 12)).astype(np.float32), (36, 48))
    found = spread(maps, logits, wall_net(1.5), replace(EXACT, beta=1e5)).scores
    wanted = maps.scores * (1 - torch.sigmoid(logits).numpy())
    np.testing.assert_allclose(found, wanted / wanted.max(), atol=1e-5)


def test_one_step_by_hand() -> None:
    """Three cells in a row, a boundary of one half on the second: affinities 1/2, 1/2 (neighbours) and 1/2 (ends)."""
    logits = torch.tensor([[[-40.0, 0.0, -40.0]]])
    maps = ClassMaps("a", np.array([1]), np.array([[[1.0, 1.0, 0.0]]], np.float32), (4, 12))
    cfg = replace(EXACT, steps=1, beta=1.0)
    # columns of (1 1/2 1/2; 1/2 1 1/2; 1/2 1/2 1) sum to 2; start (1, 1/2, 0) goes to (5/8, 1/2, 3/8)
    np.testing.assert_allclose(spread(maps, logits, wall_net(1.5), cfg).scores, [[[1.0, 0.8, 0.6]]], atol=1e-5)


def test_classes_share_one_peak() -> None:
    raw = np.array([[[0.2, -1e-9]], [[0.1, 0.4]]], np.float32)
    np.testing.assert_allclose(shared_peak(raw), [[[0.5, 0.0]], [[0.25, 1.0]]])
    assert shared_peak(np.zeros((2, 3, 3), np.float32)).max() == 0


# ---- the stage ----

@stage(Weights, version=1)
def untrained(work: Work, cfg: Walk) -> None:
    torch.manual_seed(3)
    model = affinity_net("irn", build("small", stride=8), align=align, width=8)
    write_weights(work, model.state_dict(), {"form": "irn", "backbone": "small", "stride": 8, "width": 8,
                                             "displacement": False})


@stage(Weights, version=1)
def untrained_pairs(work: Work, cfg: Walk) -> None:
    torch.manual_seed(3)
    model = affinity_net("psa", build("small", stride=8), align=align, width=8)
    write_weights(work, model.state_dict(), {"form": "psa", "backbone": "small", "stride": 8, "width": 8,
                                             "displacement": False})


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Weights]:
    run = Run(tmp_path_factory.mktemp("nets"))
    return {"irn": untrained(run, CFG), "psa": untrained_pairs(run, CFG)}


def made(trained: Tiny, weights: Weights, folder: Path, cfg: Walk = CFG, workers: int = 2) -> MapSet:
    run = Run(folder, workers=workers)
    return affinity.maps(run, trained.prepared.inputs.tagged, trained.fitted.maps, weights, cfg)


def test_logits_of_an_image_and_its_mirror_image_are_averaged(trained: Tiny, nets: dict[str, Weights],
                                                              tmp_path: Path) -> None:
    tagged = trained.prepared.inputs.tagged
    model = affinity.load(nets["irn"])
    work = Work(Run(tmp_path), "toy", tmp_path)
    for seen in predicted(work, model, shown(model), tagged, list(tagged.ids[:2]), CFG):
        x = model.preprocess(torch.from_numpy(tagged.source.read(seen.id))[None].float() / 255)  # 48x48: no resizing
        with torch.no_grad():
            one, two = (resample(model(v), stride=4, offset=1.5, in_size=(48, 48), out_size=(12, 12))
                        for v in (x, x.flip(3)))
        torch.testing.assert_close(seen.values / 2, (one + two.flip(3))[0] / 2)


@pytest.mark.parametrize("form", ["irn", "psa"])
def test_of_a_set(trained: Tiny, nets: dict[str, Weights], tmp_path: Path, form: str) -> None:
    found = made(trained, nets[form], tmp_path)
    side = 12 if form == "irn" else 6
    assert found.ids == trained.fitted.maps.ids
    assert found.meta == {"classes": list(trained.prepared.inputs.tagged.classes), "form": form}
    for before, after in zip(trained.fitted.maps, found, strict=True):
        assert np.array_equal(before.classes, after.classes)
        if not len(before.classes):
            continue
        assert (after.size, after.scores.shape[1:]) == (before.size, (side, side))
        seen = before.scores.max() > 0  # the tiny classifier finds nothing in some images
        assert after.scores.max() == seen
        assert (np.abs(after.scores - enlarge(before.scores, (side, side))).max() > 0.05) == seen


@pytest.mark.parametrize("form", ["irn", "psa"])
def test_any_number_of_workers_gives_the_same_bytes(trained: Tiny, nets: dict[str, Weights], tmp_path: Path,
                                                    form: str) -> None:
    one, four = (made(trained, nets[form], tmp_path / str(n), workers=n) for n in (1, 4))
    assert one.record["outputs"] == four.record["outputs"]


def test_the_polynomial_is_the_walk(trained: Tiny, nets: dict[str, Weights], tmp_path: Path) -> None:
    for a, b in zip(made(trained, nets["irn"], tmp_path), made(trained, nets["irn"], tmp_path, EXACT), strict=True):
        np.testing.assert_allclose(a.scores, b.scores, atol=2e-3)  # float16 on disk


@pytest.mark.parametrize("change", [{"beta": 1.0}, {"steps": 1}, {"radius": 2}, {"views": Views(size=48, flip=False)},
                                    {"degree": 3}])
def test_each_part_matters(trained: Tiny, nets: dict[str, Weights], tmp_path: Path, change: dict[str, object]) -> None:
    plain = made(trained, nets["irn"], tmp_path)
    other = made(trained, nets["irn"], tmp_path, replace(CFG, **change))  # type: ignore[arg-type]
    assert max(np.abs(a.scores - b.scores).max(initial=0) for a, b in zip(plain, other, strict=True)) > 0.002


@stage(MapSet, version=1)
def some_empty(work: Work, tagged: TaggedSet, cfg: Walk) -> None:
    """Maps of every third image, none of the others."""
    def one(number: int, sample: str) -> ClassMaps:
        classes = np.arange(1, 2 if number % 3 == 0 else 1, dtype=np.int64)
        return ClassMaps(sample, classes, np.ones((len(classes), 10, 10), np.float32), tagged.source.size(sample))

    write_maps(work, tagged.ids, lambda ids: [one(tagged.ids.index(i), i) for i in ids], {})


def test_images_without_classes_pass_and_are_not_shown_to_the_network(
        trained: Tiny, nets: dict[str, Weights], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[str] = []
    real = affinity.predicted

    def watched(work: Work, model: EdgeNet, network: Network, tagged: TaggedSet, ids: list[str], cfg: Walk) -> object:
        looked_at.extend(ids)
        return real(work, model, network, tagged, ids, cfg)

    monkeypatch.setattr(affinity, "predicted", watched)
    tagged, run = trained.prepared.inputs.tagged, Run(tmp_path)
    found = affinity.maps(run, tagged, some_empty(run, tagged, CFG), nets["irn"], CFG)
    assert found.ids == list(tagged.ids)
    assert looked_at == list(tagged.ids[::3])
    for number, maps in enumerate(found):
        assert maps.scores.shape == ((1, 12, 12) if number % 3 == 0 else (0, 10, 10))


def test_the_network_is_made_ready_once_and_each_map_is_read_once(
        trained: Tiny, nets: dict[str, Weights], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made(trained, nets["irn"], tmp_path / "whole")
    monkeypatch.setattr(artifacts, "SHARD", 5)
    read: list[str] = []
    ready: list[object] = []
    get, rewritten = MapSet.get, inference._rewritten
    monkeypatch.setattr(MapSet, "get", lambda self, sample: (read.append(sample), get(self, sample))[1])
    monkeypatch.setattr(inference, "_rewritten", lambda *given: (ready.append(given), rewritten(*given))[1])
    parts = made(trained, nets["irn"], tmp_path / "parts")
    assert len(list(parts.path.glob("*.tar"))) > 3
    assert sorted(read) == sorted(trained.fitted.maps.ids)
    assert len(ready) == 1
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-3)  # batches of other images


@pytest.mark.parametrize(("form", "own"), [("irn", 10.0), ("psa", 8.0)])
def test_beta_is_the_forms_own(form: str, own: float) -> None:
    rng = np.random.default_rng(4)
    model = affinity_net(form, build("small", stride=8), align=align, width=4).eval()  # type: ignore[arg-type]
    values = torch.from_numpy(rng.normal(0, 2, (1 if form == "irn" else model.channels, 8, 9)).astype(np.float32))
    maps = ClassMaps("a", np.array([1]), rng.random((1, 8, 9)).astype(np.float32), (32, 36))
    other = 18 - own
    for cfg in (CFG, EXACT):
        mine, said, not_said = (spread(maps, values, model, replace(cfg, steps=8, beta=b)).scores
                                for b in (None, own, other))
        assert np.array_equal(mine, said)
        assert np.abs(mine - not_said).max() > 1e-4
    seen = Seen("a", np.zeros((3, 32, 36), np.uint8), values)
    once = replace(CFG, views=Views(size=32, flip=False), steps=8)
    card, = on_card({"a": maps}, iter([seen]), model, once)
    np.testing.assert_allclose(card.scores, spread(maps, values, model, replace(once, beta=own)).scores, atol=2e-5)


def test_other_weights_are_refused(trained: Tiny) -> None:
    with pytest.raises(DataError, match=r"weights of another network .*expected those of localize/affinity"):
        affinity.load(trained.fitted.classifier)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("form", ["irn", "psa"])
def test_batches_for_a_card_give_the_same_maps(form: str, exact: bool) -> None:
    """On the processor here: grids of different sizes and numbers of classes together, equal to each alone."""
    rng = np.random.default_rng(3)
    model = affinity_net(form, build("small", stride=8), align=align, width=4).eval()  # type: ignore[arg-type]
    channels = 1 if form == "irn" else model.channels
    values = [torch.from_numpy(rng.normal(0, 2, (channels, h, w)).astype(np.float32)) for h, w in ((12, 9), (8, 14))]
    scores = [rng.random((k, 6, 7)).astype(np.float32) for k in (3, 1)]
    maps = {str(i): ClassMaps(str(i), np.arange(1, 1 + len(s)), s, (48, 56)) for i, s in enumerate(scores)}
    cfg = replace(CFG, views=Views(size=48, flip=False), exact=exact, steps=32, degree=30)
    seen = iter([Seen(str(i), np.zeros((3, 48, 56), np.uint8), v) for i, v in enumerate(values)])
    together = list(on_card(maps, seen, model, cfg))
    for i, found in enumerate(together):
        alone = spread(maps[str(i)], values[i], model, cfg)
        np.testing.assert_allclose(found.scores, alone.scores, atol=2e-5)
        assert found.scores.shape == (len(scores[i]), *values[i].shape[1:])
