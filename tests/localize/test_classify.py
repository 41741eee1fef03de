"""The tag classifier: its loss by hand, its maps as exact CAMs, and what its weights remember."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tagseg.data.index import TaggedSet
from tagseg.localize import classify
from tagseg.localize.classify import Classify, TagLoss, TagNet
from tagseg.nets.backbones import build
from tagseg.store import Run
from tagseg.training.loop import Batch
from tagseg.types import DataError
from tiny import Tiny


def net(classes: int = 3) -> TagNet:
    torch.manual_seed(0)
    return TagNet(build("small", stride=16), classes).eval()


def images(n: int = 4) -> Batch:
    rng = np.random.default_rng(0)
    return {"images": torch.from_numpy(rng.integers(0, 256, (n, 3, 48, 32), np.uint8)),
            "tags": torch.from_numpy(rng.random((n, 3)) < 0.5)}


def test_the_loss_of_undecided_logits_is_log_two_for_each_image() -> None:
    model = net()
    torch.nn.init.zeros_(model.head.weight)
    loss = TagLoss(classify.pool(Classify()))
    assert loss.total(model, images()).item() / loss.count(images()) == pytest.approx(math.log(2))


def test_the_loss_is_the_multi_label_soft_margin() -> None:
    model, batch = net(), images()
    torch.nn.init.normal_(model.head.weight)
    pooled = model(model.backbone.preprocess(batch["images"].float() / 255)).mean((2, 3)) + model.head.bias
    expected = F.multilabel_soft_margin_loss(pooled, batch["tags"].float())
    loss = TagLoss(classify.pool(Classify()))
    assert loss.total(model, batch).item() / loss.count(batch) == pytest.approx(expected.item(), rel=1e-5)


def test_classes_that_are_not_told_teach_nothing() -> None:
    model, batch = net(), images()
    torch.nn.init.normal_(model.head.weight)
    pooled = model(model.backbone.preprocess(batch["images"].float() / 255)).mean((2, 3)) + model.head.bias
    told = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 1], [0, 0, 0]]).bool()
    batch["tags"] &= told
    expected = sum(F.multilabel_soft_margin_loss(pooled[i, told[i]][None], batch["tags"][i, told[i]][None].float())
                   for i in range(3))  # fmt: skip
    loss = TagLoss(classify.pool(Classify()))
    assert loss.total(model, {**batch, "told": told}).item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.total(model, {**batch, "told": torch.ones_like(told)}).item() == pytest.approx(
        loss.total(model, batch).item(), rel=1e-6)
    model.zero_grad()
    loss.total(model, {**batch, "told": told & torch.tensor([True, False, True])}).backward()
    assert model.head.bias.grad is not None
    assert model.head.bias.grad[1] == 0


def test_an_image_without_tags_teaches_that_nothing_is_there() -> None:
    model, batch = net(), images(2)
    batch["tags"][:] = False
    TagLoss(classify.pool(Classify())).total(model, batch).backward()
    assert model.head.bias.grad is not None
    assert (model.head.bias.grad > 0).all()  # a step against it lowers every logit


@pytest.mark.parametrize(("name", "expected"), [("gap", 1.75), ("topk", 3.5), ("lse", None)])
def test_pooling_is_chosen_by_the_config(name: str, expected: float | None) -> None:
    maps = torch.tensor([[[[0.0, 1.0], [2.0, 4.0]]]])
    cfg = replace(Classify(), pooling=name, topk_share=0.3)  # type: ignore[arg-type]
    found = classify.pool(cfg)(maps)
    by_hand = math.log(np.mean(np.exp(4.0 * np.array([0, 1, 2, 4])))) / 4.0
    if name == "topk":
        expected = 3.0  # two of four cells
    assert float(found) == pytest.approx(by_hand if expected is None else expected)


def test_average_pooling_makes_the_maps_exact_cams(trained: Tiny) -> None:
    model = classify.load(trained.fitted.classifier, trained.prepared.inputs.tagged.classes)
    x = model.backbone.preprocess(images()["images"].float() / 255)
    features: Tensor = model.backbone(x, ["last"])["last"]
    linear = features.mean((2, 3)) @ model.head.weight.T + model.head.bias
    assert torch.allclose(model.head.logits(model(x), classify.pool(Classify())), linear, atol=1e-5)


def test_what_was_trained_is_remembered(trained: Tiny) -> None:
    weights, cfg = trained.fitted.classifier, trained.prepared.cfg.classifier
    assert weights.meta["classes"] == list(trained.prepared.inputs.tagged.classes)
    assert (weights.meta["backbone"], weights.meta["stride"]) == ("small", cfg.stride)
    assert weights.meta["crops"] == [[48, 48]]
    history = json.loads((weights.path / "history.json").read_text())
    assert len(history) == 24  # 192 images in batches of 8
    assert np.mean([loss for _, loss, _ in history[-6:]]) < np.mean([loss for _, loss, _ in history[:6]])


def test_other_class_names_are_refused(trained: Tiny) -> None:
    classes = trained.prepared.inputs.tagged.classes
    with pytest.raises(DataError, match=f"trained for the classes {', '.join(classes)}; the data has .*same classes"):
        classify.load(trained.fitted.classifier, tuple(reversed(classes)))


def test_a_set_without_any_tag_row_is_an_error(trained: Tiny, tmp_path: Path) -> None:
    inputs = trained.prepared.inputs
    with pytest.raises(DataError, match=r"no image has a tag row; expected .* tags.csv"):
        classify.train(Run(tmp_path), inputs.tagged.without_tags(), inputs.pretrained, trained.prepared.cfg.classifier)


def test_images_of_which_nothing_is_known_are_not_learned_from(trained: Tiny, tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    tagged = trained.prepared.inputs.tagged
    known = np.arange(len(tagged)) % 2 == 0
    half = replace(tagged, tags=tagged.tags & known[:, None], tagged=known)
    seen: list[tuple[str, ...]] = []
    real = classify.drawn_from

    def watched(tagged: TaggedSet, *more: object) -> object:
        seen.append(tagged.ids)
        return real(tagged, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(classify, "drawn_from", watched)
    cfg = trained.prepared.cfg.classifier
    short = replace(cfg, schedule=replace(cfg.schedule, max_images=8))
    classify.train(Run(tmp_path), half, trained.prepared.inputs.pretrained, short)
    assert seen == [tagged.ids[::2]]
