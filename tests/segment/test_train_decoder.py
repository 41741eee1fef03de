"""TransferNet's training: rows, targets, which gradients go where, and that nothing moves that must not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import tiny
from tagseg.data.folder import open_set
from tagseg.data.generated import scenes
from tagseg.data.images import mask_reads, other_mask_reads, reset_mask_reads
from tagseg.data.index import TaggedSet
from tagseg.data.loader import FILL, Augment, drawn_from
from tagseg.data.other_masks import Joined, of_other_classes
from tagseg.data.scenes import preset
from tagseg.data.weights import Pretrained
from tagseg.nets.attention_decoder import Shape, TransferNet, foreground_share
from tagseg.nets.backbones import build
from tagseg.segment import predict_decoder, train_decoder
from tagseg.segment.predict_decoder import told
from tagseg.segment.train_decoder import (
    Alternating,
    Attend,
    Draw,
    Encoder,
    RowLoss,
    mask_losses,
    outlines,
    scale_of,
    with_tags,
)
from tagseg.store import Run
from tagseg.training.schedule import Schedule
from tagseg.types import DataError, UsageError

TARGET = scenes("scenes:transfer?train=10&val=2&size=48&side=target", ("train",))
SOURCE = scenes("scenes:transfer?train=10&val=2&size=48&side=source", ("train",))
SHORT = Schedule(epochs=1.0, min_images=32, max_images=32, batch=8, optimiser="adamw", lr=1e-3, head_lr=1e-3,
                 weight_decay=0.0)
SMALL = Augment(size=48)
AUTO: dict[str, Any] = {"seed": 0, "device": "cpu", "precision": "fp32"}
CPU = {"size": 48, "device": "cpu"}


def net(**shape: Any) -> TransferNet:
    torch.manual_seed(0)
    return TransferNet(build("small", stride=16), 8, Shape(width=16, **shape)).train()


def batch(theirs: bool, n: int = 2) -> dict[str, Any]:
    """Two images with two tags each: of target classes 0 and 1, or of source classes 3 and 4 with masks."""
    rng = torch.Generator().manual_seed(3)
    labels = torch.full((n, 48, 48), 255, dtype=torch.uint8)
    tags = torch.zeros(n, 8, dtype=torch.bool)
    tags[:, 3:5] = theirs
    tags[:, :2] = not theirs
    if theirs:
        labels[:] = 0
        labels[:, :20], labels[:, 30:] = 1, 2
    told = (torch.arange(8) >= 3) == theirs
    return {"images": torch.randint(0, 256, (n, 3, 48, 48), dtype=torch.uint8, generator=rng), "tags": tags,
            "told": told.expand(n, 8), "labels": labels}


def size_of(parameters: Any) -> float:
    return sum(float(p.grad.abs().sum()) for p in parameters if p.grad is not None)


def test_transfernet_s7_05_target_batches_teach_the_decoder_nothing() -> None:
    model = net()
    RowLoss(1.0, 2.0, 3).total(model, batch(theirs=False)).backward()
    assert size_of(model.decoder.parameters()) == 0
    assert size_of(model.attention.parameters()) > 0
    assert all(p.grad is None for p in model.backbone.parameters())


def test_transfernet_s7_05_the_decoder_is_not_even_asked_about_rows_of_the_target() -> None:
    """Also where labels of target images are at hand, and with an optimiser that moves what has a gradient of zeros."""
    model = net()
    before = [p.clone() for p in model.decoder.parameters()]
    given = batch(theirs=False)
    given["labels"] = batch(theirs=True)["labels"]
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    RowLoss(1.0, 2.0, 3).total(model, given).backward()
    assert all(p.grad is None for p in model.decoder.parameters())
    optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.decoder.parameters(), strict=True))


@pytest.mark.parametrize("up", ["switch", "switch_shared", "bilinear"])
def test_in_half_precision_every_part_learns(up: str) -> None:
    model = net(up=up)
    with torch.autocast("cpu", torch.bfloat16):
        loss = RowLoss(1.0, 2.0, 3).total(model, batch(theirs=True))
    loss.backward()
    whole = RowLoss(1.0, 2.0, 3).total(model, batch(theirs=True))
    assert loss.item() == pytest.approx(whole.item(), rel=0.05)
    for part in (model.attention, model.classifier, model.decoder):
        assert size_of(part.parameters()) > 0
        assert all(torch.isfinite(p.grad).all() for p in part.parameters() if p.grad is not None)


@pytest.mark.parametrize("theirs", [False, True])
def test_the_encoder_sees_an_image_once_whatever_the_number_of_its_classes(theirs: bool) -> None:
    one = net()
    seen: list[int] = []
    one.backbone.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    RowLoss(1.0, 2.0, 3).total(one, batch(theirs)).backward()  # two images, four rows
    assert seen == [2]
    seen.clear()
    image = batch(theirs)["images"][0].numpy()
    drawn = predict_decoder.drawn(one.eval(), image, np.arange(5), predict_decoder.Looked(**CPU), "drawn", (12, 12))
    assert (len(drawn), seen) == (5, [1])


def test_transfernet_s7_05_masks_teach_attention_through_the_decoder() -> None:
    model = net()
    RowLoss(0.0, 2.0, 3).total(model, batch(theirs=True)).backward()
    assert size_of(model.decoder.parameters()) > 0
    assert size_of(model.attention.parameters()) > 0
    assert size_of(model.classifier.parameters()) == 0
    assert all(p.grad is None for p in model.backbone.parameters())


def test_by_tags_the_classifier_learns_from_whole_images_and_attention_from_the_classifier() -> None:
    given = batch(theirs=True)
    by_rows, by_tags, alone = net(), net(), net()
    RowLoss(1.0, 0.0, 3, "rows").total(by_rows, given).backward()
    RowLoss(1.0, 0.0, 3, "tags").total(by_tags, given).backward()
    for a, b in zip(by_rows.attention.parameters(), by_tags.attention.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    seen = alone.seen(alone.encode(alone.backbone.preprocess(given["images"].float() / 255)))
    told = F.binary_cross_entropy_with_logits(seen[:, 3:], given["tags"][:, 3:].float(), reduction="sum") / 8
    told.backward()
    for a, b in zip(by_tags.classifier.parameters(), alone.classifier.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert any(not torch.allclose(a.grad, b.grad) for a, b in  # type: ignore[arg-type]
               zip(by_tags.classifier.parameters(), by_rows.classifier.parameters(), strict=True))


@pytest.mark.parametrize("theirs", [False, True])
def test_a_row_is_told_from_all_classes_of_both_sides(theirs: bool) -> None:
    """Eq. 9 by hand: the softmax runs over all K classes, those of the other side, too."""
    model, given = net(), batch(theirs)
    features = model.encode(model.backbone.preprocess(given["images"].float() / 255)).features.numpy()
    weights = [p.detach().numpy() for p in model.classifier.parameters()]
    expected = 0.0
    for image, number in given["tags"].nonzero().tolist():
        named = F.one_hot(torch.tensor([number]), 8).bool()
        alpha = model.attention(torch.from_numpy(features[[image]]), named)[0][0].detach().numpy()
        z = (features[image] * alpha).sum((1, 2))
        logits = weights[2] @ np.maximum(weights[0] @ z + weights[1], 0) + weights[3]
        expected -= np.log(np.exp(logits[number]) / np.exp(logits).sum())
    assert expected > 0
    assert RowLoss(1.0, 0.0, 3, "rows").total(model, given).item() == pytest.approx(expected, rel=1e-4)


def test_transfernet_s7_06_pixels_that_are_not_known_count_nowhere() -> None:
    logits = torch.randn(2, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(0, 2, (2, 6, 8), generator=torch.Generator().manual_seed(1))
    wide = F.pad(targets, (0, 3), value=255)
    torch.testing.assert_close(mask_losses(F.pad(logits, (0, 3)), wide), mask_losses(logits, targets))
    nothing = mask_losses(logits.requires_grad_(), torch.full_like(targets, 255))
    assert nothing.tolist() == [0, 0]
    nothing.sum().backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_transfernet_s7_07_targets_of_a_row() -> None:
    labels = torch.tensor([[[0, 1, 2, 255]], [[0, 1, 2, 255]], [[255, 255, 255, 255]]], dtype=torch.uint8)
    found = outlines(labels, torch.tensor([1, 2, 1]))
    assert found.tolist() == [[[0, 1, 0, 255]], [[0, 0, 1, 255]], [[255, 255, 255, 255]]]


def test_transfernet_s7_07_each_row_learns_the_outline_of_its_own_class() -> None:
    """By hand: what the decoder draws of a row's attention, against where the mask has just that row's class."""
    model, given = net(), batch(theirs=True)
    given["labels"][:, :, :4] = 255
    model.eval()
    encoded = model.encode(model.backbone.preprocess(given["images"].float() / 255))
    expected = torch.zeros(())
    for image in range(2):
        for number, value in ((3, 1), (4, 2)):  # the third class of all is the first that has masks
            row = encoded.rows(torch.tensor([image]))
            _, dense, _ = model(row, F.one_hot(torch.tensor([number]), 8).bool())
            logits, labels = model.draw(dense, row)[0].flatten(1), given["labels"][image].flatten()
            known = labels != 255
            right = (labels[known] == value).long()
            expected = expected - logits[:, known].log_softmax(0).gather(0, right[None]).mean()
    torch.testing.assert_close(RowLoss(0.0, 1.0, 3).total(model, given), expected)


def test_transfernet_s7_07_a_target_row_has_no_outline_to_learn() -> None:
    model, given = net(), batch(theirs=False)
    given["labels"] = batch(theirs=True)["labels"]  # even if there were a mask
    assert RowLoss(0.0, 2.0, 3).total(model, given).item() == 0


def draws(**more: Any) -> Alternating:
    aux = of_other_classes(SOURCE, TARGET.classes)
    how = (Augment(size=48), 4, 0)
    return Alternating(train_decoder.drawn_from(TARGET.without_masks(), *how),
                       train_decoder.drawn_from(aux.tagged, *how, aux.mask), len(TARGET.classes))


def test_batches_alternate_and_target_rows_know_no_pixel() -> None:
    found = draws()
    for step in range(4):
        one = found(step)
        theirs = step % 2 == 1
        assert one["tags"].shape == (4, 8)
        assert not one["tags"][:, 3:].any() if not theirs else not one["tags"][:, :3].any()
        assert theirs or bool((one["labels"] == 255).all())
        assert not theirs or bool((one["labels"] <= 5).any())
        assert len(found.names(step)) == 4
    assert torch.equal(found(2)["images"], draws()(2)["images"])


def test_transfernet_s7_08_an_image_with_two_tags_gives_two_rows() -> None:
    model, both = net(), batch(theirs=True)
    loss = RowLoss(1.0, 2.0, 3, "rows")
    assert loss.count(both) == 4
    rows = []
    for k in (3, 4):
        single = {**both, "tags": both["tags"] & (torch.arange(8) == k)}
        rows.append(loss.total(model, single))
    torch.testing.assert_close(loss.total(model, both), rows[0] + rows[1])
    empty = {**both, "tags": torch.zeros_like(both["tags"])}
    assert loss.total(model, empty).item() == 0  # images without a tag have no row


@pytest.mark.parametrize("part", ["drawn", "dense", "attention"])
def test_a_map_is_of_the_class_that_is_asked_for(part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several classes at once are drawn as each by itself, named by its own number."""
    model = net().eval()
    with torch.no_grad():
        model.attention.out.weight.normal_(std=3, generator=torch.Generator().manual_seed(5))  # classes differ clearly
    image, cfg = batch(theirs=True)["images"][0].numpy(), predict_decoder.Looked(**CPU)
    several = predict_decoder.drawn(model, image, np.array([1, 4, 6]), cfg, part, (12, 12))
    assert np.abs(several[0] - several[1]).max() > 1e-3
    monkeypatch.setattr(predict_decoder, "TOGETHER", 2)  # many classes are drawn some at a time
    again = predict_decoder.drawn(model, image, np.array([1, 4, 6]), cfg, part, (12, 12))
    np.testing.assert_allclose(again, several, atol=1e-6)
    x = model.backbone.preprocess(torch.from_numpy(image)[None].float() / 255)
    for place, number in enumerate((1, 4, 6)):
        row = model.encode(x)
        alpha, dense, _ = model(row, F.one_hot(torch.tensor([number]), 8).bool())
        if part == "drawn":
            shown = foreground_share(model.draw(dense, row), cfg.background)[:, None]
            expected = F.interpolate(shown, (12, 12), mode="bilinear")[0, 0]
            np.testing.assert_allclose(several[place], expected.detach().numpy(), atol=1e-5)
        else:  # the longest cell is where the map is longest
            cells = (alpha if part == "attention" else dense[:, 0])[0].detach().numpy()
            top = np.unravel_index(cells.argmax(), cells.shape)
            found = np.unravel_index(several[place].argmax(), (12, 12))
            assert max(abs(found[k] - top[k] * 4) for k in (0, 1)) <= 4
            assert several[place].max() == pytest.approx(1)


def test_attention_beside_an_image_takes_nothing_from_its_map() -> None:
    """Attention "fc" sees a square; what lies in the filled part of it is no part of the image."""
    torch.manual_seed(0)
    model = TransferNet(build("small", stride=16), 8, Shape(attention="fc", width=16), (3, 3)).eval()
    with torch.no_grad():
        model.attention.out.weight.zero_()
        model.attention.out.bias.copy_(torch.tensor([0.0, 1, 0, 0, 0, 0, 15, 15, 15]))  # nearly all below the photo
    image = torch.randint(0, 256, (3, 16, 48), dtype=torch.uint8).numpy()
    for part in ("attention", "dense"):
        found = predict_decoder.drawn(model, image, np.array([2]), predict_decoder.Looked(**CPU), part, (16, 48))  # type: ignore[arg-type]
        assert found.max() == pytest.approx(1)


def test_in_a_square_the_network_sees_no_more_pixels_than_it_was_built_for() -> None:
    """However long an image is; its map is what is drawn on its own part of the square."""
    torch.manual_seed(0)
    model = TransferNet(build("small", stride=16), 8, Shape(attention="fc", width=16), (3, 3)).eval()
    seen: list[torch.Size] = []
    model.backbone.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    cfg = predict_decoder.Looked(**CPU)
    image = torch.randint(0, 256, (3, 36, 96), dtype=torch.uint8)
    photo = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((48, 18), Image.Resampling.BILINEAR)
    square = torch.tensor(FILL)[:, None, None].repeat(1, 48, 48).float()
    square[:, :18] = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
    with torch.no_grad():
        rows = model.encode(model.backbone.preprocess(square[None] / 255))
        _, dense, _ = model(rows, F.one_hot(torch.tensor([2]), 8).bool())
        share = foreground_share(model.draw(dense, rows), cfg.background)[:, None, :18]
        expected = F.interpolate(share, (36, 96), mode="bilinear")[0].numpy()
    found = predict_decoder.drawn(model, image.numpy(), np.array([2]), cfg, "drawn", (36, 96))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.std() > 0
    assert predict_decoder.drawn(model, np.zeros((3, 1, 900), np.uint8), np.array([1]), cfg, "drawn", (1, 450)
                                 ).shape == (1, 1, 450)  # fmt: skip
    assert set(seen) == {(1, 3, 48, 48)}


def test_transfernet_s7_12_the_share_of_foreground_and_what_is_drawn() -> None:
    zero = torch.zeros(1, 2, 1, 1)
    assert foreground_share(zero, 0.5).item() == pytest.approx(2 / 3)
    assert foreground_share(zero, 1.0).item() == pytest.approx(0.5)
    logits = torch.tensor([[[[0.3]], [[1.1]]]])
    f, g = np.exp(1.1), np.exp(0.3)
    assert foreground_share(logits, 0.5).item() == pytest.approx(f / (f + 0.5 * g))
    assert told(np.array([0.7, 0.2, 0.61]), np.array(0.6), True).tolist() == [True, False, True]
    assert told(np.array([0.3, 0.5, 0.1]), np.array(0.6), True).tolist() == [False, True, False]
    assert told(np.array([0.3, 0.5, 0.1]), np.array(0.6), False).tolist() == [False, False, False]
    assert told(np.array([0.3, 0.5, 0.1]), np.array([0.2, 0.6, 0.1]), True).tolist() == [True, False, True]


def test_transfernet_s7_14_overlapping_classes_are_refused() -> None:
    with pytest.raises(UsageError, match="the classes crab, jay are among those"):
        of_other_classes(SOURCE, ("crab", "fox", "jay"))


def test_both_sets_as_one() -> None:
    both = Joined(TARGET.without_masks(), SOURCE.without_masks()).tagged
    assert both.classes == (*TARGET.classes, *SOURCE.classes)
    assert list(both.ids) == sorted(both.ids)
    row = both.ids.index("target/train/000000")
    assert both.tags[row, :3].tolist() == TARGET.tagged.tags_of("train/000000").tolist()
    assert not both.tags[row, 3:].any()
    assert both.told is not None  # nothing is known of the other side's classes
    assert both.told[row].tolist() == [True] * 3 + [False] * (len(both.classes) - 3)
    assert both.told[both.ids.index("source/train/000001")].tolist() == [False] * 3 + [True] * (len(both.classes) - 3)
    assert np.array_equal(both.source.read("source/train/000001"), SOURCE.tagged.source.read("train/000001"))
    assert both.source.size("source/train/000001") == SOURCE.tagged.source.size("train/000001")


def test_an_image_that_both_sets_have_is_there_once_with_the_tags_of_both() -> None:
    target = TARGET.without_masks()
    ids = target.ids[2:5]
    shared = TaggedSet("shared", ("left", "right"), ids, np.array([[1, 0], [0, 1], [1, 1]], bool),
                       np.array([True, True, True]), target.source)  # fmt: skip
    both = Joined(target, shared).tagged
    assert both.ids == tuple(f"target/{i}" for i in target.ids)
    for k, sample in enumerate(ids):
        row = both.ids.index(f"target/{sample}")
        assert both.tags[row, : len(target.classes)].tolist() == target.tags_of(sample).tolist()
        assert both.tags[row, len(target.classes) :].tolist() == shared.tags[k].tolist()
    assert both.tagged.all()
    assert both.told is not None
    assert both.told[:, len(target.classes) :].any(1).tolist() == [i in ids for i in target.ids]
    assert Joined(target, replace(shared, ids=target.ids, tags=np.ones((len(target), 2), bool),
                                  tagged=np.ones(len(target), bool))).tagged.told is None  # fmt: skip
    assert not both.tags[both.ids.index(f"target/{target.ids[0]}"), len(target.classes) :].any()


def test_images_without_a_tag_are_not_drawn() -> None:
    target = TARGET.without_masks()
    bare = replace(target, tags=target.tags & (np.arange(len(target)) % 2 == 0)[:, None])
    assert with_tags(bare).ids == tuple(i for i in target.ids if bare.tags_of(i).any())
    assert 0 < len(with_tags(bare)) <= len(target) // 2


def test_the_measured_scale_brings_nearly_all_features_under_one() -> None:
    model = net()
    draws = Alternating(*(drawn_from(s.without_masks(), SMALL, 4, 0) for s in (TARGET, SOURCE)), 3)
    scale = scale_of(model, draws)
    images = [draws(step)["images"].float() / 255 for step in range(64)]
    seen = np.concatenate([model.encode(model.backbone.preprocess(i)).features.numpy().ravel() for i in images])
    assert model.scale == 1.0
    assert (seen * scale < 1).mean() == pytest.approx(0.999, abs=5e-4)


def test_fc_draws_images_of_any_shape_in_a_square(tmp_path: Path) -> None:
    folder, names = tiny.photos(tmp_path / "photos", count=4), preset("basic").classes
    for k, path in enumerate(sorted((folder / "images").iterdir())):
        Image.open(path).resize((64, 40) if k % 2 else (36, 60)).save(path)
        mask = folder / "masks" / f"{path.stem}.png"
        Image.open(mask).resize((64, 40) if k % 2 else (36, 60), Image.Resampling.NEAREST).save(mask)
    opened = open_set(folder).truth
    assert opened is not None
    target = replace(opened.without_masks(), classes=tuple(f"my {n}" for n in names))
    aux, square = of_other_classes(opened, target.classes), Augment(size=48, square=True)
    assert drawn_from(target, square, 2, 0).shapes.crops == ((48, 48),)
    run = Run(tmp_path / "runs", workers=1)
    encoder = train_decoder.pretrained(run, Pretrained("small", "random start", "random", {}), Encoder("small"))
    shape = Shape(attention="fc", width=8)
    attending = train_decoder.attention(run, target, aux.tagged, encoder,
                                        Attend(shape=shape, augment=square, schedule=SHORT, **AUTO))
    model = train_decoder.joint(run, target, aux, attending, Draw(augment=square, schedule=SHORT, **AUTO))
    found = predict_decoder.maps(run, target, model, predict_decoder.Looked(grid=1, **CPU))
    for one in found:
        assert one.scores.shape[1:] == target.source.size(one.id)
        assert ((one.scores >= 0) & (one.scores <= 1)).all()
    mixed = Attend(shape=shape, augment=SMALL, schedule=replace(SHORT, batch=1), **AUTO)
    with pytest.raises(DataError, match=r"attend\.augment\.square=true"):
        train_decoder.attention(run, target, aux.tagged, encoder, mixed)


def test_classes_are_the_same_in_any_case_of_letters() -> None:
    with pytest.raises(UsageError, match="are among those that are asked for"):
        of_other_classes(SOURCE, tuple(name.upper() for name in SOURCE.classes[:2]))


def test_masks_of_other_classes_are_counted_apart() -> None:
    reset_mask_reads()
    of_other_classes(SOURCE, TARGET.classes).mask("train/000000")
    assert (len(mask_reads()), other_mask_reads()) == (0, 1)
    SOURCE.mask("train/000000")
    assert (len(mask_reads()), other_mask_reads()) == (1, 1)
    reset_mask_reads()
    assert other_mask_reads() == 0


def test_the_key_of_mask_files_is_no_look_at_the_targets_masks(tmp_path: Path) -> None:
    opened = open_set(tiny.photos(tmp_path / "other", count=3)).truth
    assert opened is not None
    aux = of_other_classes(opened, ("fox-glove",))
    reset_mask_reads()
    assert len(aux.key) == 64
    assert (len(mask_reads()), other_mask_reads()) == (0, 3)
    reset_mask_reads()


@pytest.mark.parametrize("form", ["conv", "fc", "fc_pooled"])
def test_from_tags_and_other_masks_to_maps(tmp_path: Path, form: Any) -> None:
    run, target, aux = Run(tmp_path), TARGET.without_masks(), of_other_classes(SOURCE, TARGET.classes)
    random = Pretrained("small", "random start", "random", {})
    encoder = train_decoder.pretrained(run, random, Encoder("small", 16))
    cfg = Attend(Shape(attention=form, width=16), augment=SMALL, schedule=SHORT, **AUTO)
    first = train_decoder.attention(run, target, aux.tagged, encoder, cfg)
    whole = train_decoder.joint(run, target, aux, first, Draw(augment=SMALL, schedule=SHORT, **AUTO))
    before, between, after = encoder.tensors(), first.tensors(), whole.tensors()
    for name, tensor in before.items():  # the encoder is the same bytes after both phases
        if name.endswith("num_batches_tracked"):  # of a batch norm that could still move
            continue
        assert torch.equal(tensor, between[name])
        assert torch.equal(tensor, after[name])
    decoder = [name for name in after if name.startswith("decoder.")]
    assert any(not torch.equal(between[n], after[n]) for n in decoder)
    assert float(after["scale"]) > 0
    plain = train_decoder.attention(run, target, aux.tagged, encoder, replace(cfg, scale=0.5))
    assert float(plain.tensors()["scale"]) == 0.5
    assert not any("draws next to nothing" in one for one in first.record["events"])
    sourced = replace(cfg, shape=Shape(attention=form, width=16, init="gaussian", norm="none"))
    said = train_decoder.attention(run, target, aux.tagged, encoder, sourced).record["events"]
    assert any("draws next to nothing" in one for one in said)
    for learned, arm in ((between, lambda slow: train_decoder.attention(run, target, aux.tagged, encoder, slow)),
                         (None, lambda slow: train_decoder.adapted(run, target, whole, slow))):  # fmt: skip
        usual, slow = (arm(replace(cfg, whole_rate=rate)).tensors() for rate in (cfg.whole_rate, 0.01))
        assert learned is None or torch.equal(learned["attention.look.weight"], usual["attention.look.weight"])
        assert torch.equal(usual["attention.look.weight"], slow["attention.look.weight"]) == (form == "conv")
    found = {part: predict_decoder.maps(run, target, whole, predict_decoder.Looked(part=part, **CPU))  # type: ignore[arg-type]
             for part in ("drawn", "dense", "attention")}
    for sample in target.ids:
        for part, maps in found.items():
            one = maps.get(sample)
            assert one.classes.tolist() == (np.flatnonzero(target.tags_of(sample)) + 1).tolist()
            assert part == "drawn" or not len(one.classes) or one.scores.max() == 1


def test_attention_that_learned_nothing_is_told_of(tmp_path: Path) -> None:
    """In each phase and after `adapt`: what it shows tells classes no better than a guess."""
    run, target, aux = Run(tmp_path), TARGET.without_masks(), of_other_classes(SOURCE, TARGET.classes)
    encoder = train_decoder.pretrained(run, Pretrained("small", "random start", "random", {}), Encoder("small", 16))
    cfg = Attend(Shape(width=16), augment=SMALL, schedule=replace(SHORT, max_images=48, min_images=48), **AUTO)
    wild = replace(cfg, schedule=replace(cfg.schedule, head_lr=3.0))
    said = "attention does not show the classes it is asked for"

    def heard(made: Weights) -> list[str]:
        return [one for one in made.record["events"] if one.startswith(said)]

    lost = train_decoder.attention(run, target, aux.tagged, encoder, wild)
    assert "slower (attend.schedule.head_lr)" in heard(lost)[0]
    whole_map = replace(wild, shape=Shape(width=16, attention="fc_pooled"), whole_rate=1.0)
    coarse = train_decoder.attention(run, target, aux.tagged, encoder, whole_map)
    assert "head_lr; attend.whole_rate)" in heard(coarse)[0]
    longer = replace(cfg, schedule=replace(SHORT, max_images=1200, min_images=1200, head_lr=3e-3))
    found = train_decoder.attention(run, target, aux.tagged, encoder, longer)
    assert not heard(found)
    draw = Draw(augment=SMALL, schedule=SHORT, **AUTO)
    assert not heard(train_decoder.joint(run, target, aux, found, draw))
    assert "slower (draw.schedule.head_lr)" in heard(train_decoder.joint(run, target, aux, lost, draw))[0]
    whole = train_decoder.joint(run, target, aux, lost, replace(draw, attention="frozen"))
    assert not heard(whole)  # the first phase has said so
    assert heard(train_decoder.adapted(run, target, whole, wild))


@pytest.mark.parametrize(("above", "told_of"), [(0.01, True), (-0.01, False)])
def test_what_attention_shows_is_held_against_how_frequent_classes_are(monkeypatch: pytest.MonkeyPatch, above: float,
                                                                      told_of: bool) -> None:  # fmt: skip
    """By hand: a guess at rows of which two thirds are of class 1 and one third of class 2."""
    guess = -(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3))
    given = batch(theirs=False)
    given["tags"] = torch.tensor([[0, 1, 0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0]], dtype=torch.bool)
    asked: list[RowLoss] = []

    def total(loss: RowLoss, model: Any, one: Any) -> torch.Tensor:
        asked.append(loss)
        return one["tags"].sum() * (guess + above)

    monkeypatch.setattr(RowLoss, "total", total)
    events: list[str] = []
    cfg = Attend(Shape(width=16), schedule=replace(SHORT, batch=2), device="cpu", precision="fp32", seed=0)
    train_decoder._tried(SimpleNamespace(event=events.append), net(), lambda step: given, cfg, "attend")  # type: ignore[arg-type]
    assert set(asked) == {RowLoss(1.0, 0.0, 0, "rows")}
    assert len(asked) == 128  # images
    assert len(events) == told_of
    assert all(f"that of a guess {guess:.2f}" in one for one in events)


def test_a_training_that_had_to_split_its_batches_comes_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                                   ) -> None:  # fmt: skip
    """In each of the three: attention, decoder, adapted. What is tried afterwards must not need more memory."""
    real, largest = RowLoss.total, list[int]()

    def total(loss: RowLoss, model: Any, one: Any) -> torch.Tensor:
        if len(one["tags"]) > 2:
            raise MemoryError("can't allocate memory")
        largest.append(len(one["tags"]))
        return real(loss, model, one)

    monkeypatch.setattr(RowLoss, "total", total)
    run = Run(tmp_path / "run", workers=0)
    target, aux = TARGET.without_masks(), of_other_classes(SOURCE, TARGET.classes)
    encoder = train_decoder.pretrained(run, Pretrained("small", "random start", "random", {}), Encoder("small"))
    attending = train_decoder.attention(run, target, aux.tagged, encoder,
                                        Attend(Shape(width=16), augment=SMALL, schedule=SHORT, **AUTO))  # fmt: skip
    model = train_decoder.joint(run, target, aux, attending, Draw(augment=SMALL, schedule=SHORT, **AUTO))
    other = scenes("scenes:tissue?train=8&val=1&size=48", ("train",)).without_masks()
    adapted = train_decoder.adapted(run, other, model, Attend(Shape(width=16), augment=SMALL, schedule=SHORT, **AUTO))
    assert max(largest) == 2  # whole batches were refused, halves of four, too
    assert adapted.meta["classes"] == list(other.classes)


@pytest.mark.parametrize("form", ["conv", "fc", "fc_pooled"])
def test_attention_of_the_whole_map_learns_slower(form: Any) -> None:
    """At the rate of the other parts its loss rose (docs/papers/transfernet.md); the decoder has its own in all."""
    model = TransferNet(build("small", stride=16), 8, Shape(attention=form, width=16), (3, 3) if form == "fc" else None)
    cfg = Draw(schedule=SHORT, whole_rate=0.25, **AUTO)
    for frozen in (False, True):
        rates = train_decoder.rated(model, cfg, model.learned(attention=not frozen, decoder=True))
        found = {part: group["initial_lr"] for group in rates.param_groups for part in group["params"]}
        share = 1.0 if form == "conv" else 0.25
        for part, factor in ((model.attention, share), (model.classifier, share), (model.decoder, 1.0)):
            expected = {factor * 1e-3} if part is model.decoder or not frozen else {None}
            assert {found.get(parameter) for parameter in part.parameters()} == expected


def test_images_of_other_classes_are_not_drawn(tmp_path: Path) -> None:
    """A network knows a class by its number: with names in another order it would draw one class for another."""
    run, target, aux = Run(tmp_path), TARGET.without_masks(), of_other_classes(SOURCE, TARGET.classes)
    encoder = train_decoder.pretrained(run, Pretrained("small", "random start", "random", {}), Encoder("small", 16))
    cfg = Attend(Shape(width=16), augment=SMALL, schedule=SHORT, **AUTO)
    model = train_decoder.attention(run, target, aux.tagged, encoder, cfg)
    looked = predict_decoder.Looked(part="dense", **CPU)
    few = target.select(target.ids[:1])
    both = (*target.classes, *aux.classes)
    wider = replace(few, classes=both, tags=np.ones((1, len(both)), bool))
    seen = predict_decoder.maps(run, wider, model, looked).get(few.ids[0])
    assert seen.classes.tolist() == [*range(1, len(both) + 1)]
    turned = replace(few, classes=few.classes[::-1], tags=few.tags[:, ::-1])
    for wrong in (turned, aux.tagged, replace(wider, classes=both[::-1])):
        with pytest.raises(DataError, match=rf"learned the classes {', '.join(both)}, in this order; {wrong.name} has"):
            predict_decoder.maps(run, wrong, model, looked)
