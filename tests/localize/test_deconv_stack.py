"""The stack of levels: heads add up to one head, levels can be dropped, and it learns tags through the mirror."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import coarse_maps
from tagseg.data.loader import Augment
from tagseg.data.weights import Pretrained
from tagseg.inference import Views
from tagseg.localize import classify, deconv_stack
from tagseg.localize.deconv_stack import Heads, Joint, Shared, Stack, StackLoss, StackMaps, StackNet, chosen, fewest
from tagseg.nets.backbones import build
from tagseg.ops.geometry import align
from tagseg.store import Run
from tagseg.training.schedule import Schedule
from tagseg.types import DataError, UsageError

SHORT = Schedule(epochs=1.0, min_images=32, max_images=32, batch=8, optimiser="adamw", lr=1e-3, head_lr=1e-2,
                 weight_decay=0.0)
SMALL = Augment(size=32)
AUTO: dict[str, Any] = {"seed": 0, "device": "cpu", "precision": "fp32"}


def net(**settings: Any) -> StackNet:
    torch.manual_seed(0)
    return StackNet(build("small", stride=16), 3, Stack(**settings)).eval()


def image(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 48, 64, generator=torch.Generator().manual_seed(1))


# ---- Eq. 6-8 ----

@pytest.mark.parametrize("norm", ["bn", "l2", "none"])
def test_dfs_s7_07_heads_of_levels_equal_one_head_on_the_stack(norm: str) -> None:
    model, x = net(norm=norm), image()
    _, (found,) = model.mirror(x)
    size = (found[0].shape[2], found[0].shape[3])
    normed = []
    for level, grid, own in zip(found, model.mirror.grids, model.norms, strict=True):
        level = level / level.square().mean((1, 2, 3), keepdim=True).sqrt() if norm == "l2" else level
        normed.append(align(own(level), grid, model.tap, size))
    weights = torch.cat(list(model.heads), 1)
    stacked = F.conv2d(torch.cat(normed, 1), weights[:, :, None, None]) + model.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(model(x)[0], stacked, atol=1e-5, rtol=1e-5)


def test_dfs_s7_07_dropping_a_level_is_zeroing_its_head() -> None:
    few, all_of_them, x = net(levels=(1, 3)), net(), image()
    all_of_them.load_state_dict(few.state_dict())
    with torch.no_grad():
        for b in (2, 4, 5):
            all_of_them.heads[b - 1].zero_()
    torch.testing.assert_close(few(x)[0], all_of_them(x)[0])


def test_dfs_s7_08_without_a_signal_the_maps_are_the_bias() -> None:
    model = net(norm="none")
    with torch.no_grad():
        model.bias.copy_(torch.tensor([0.5, -1.0, 2.0]))
        zeros = [torch.zeros(1, g.channels, 8, 8) for g in model.mirror.grids]
    assert torch.equal(model.maps(zeros), model.bias.view(1, 3, 1, 1).expand(1, 3, 8, 8))


def test_dfs_s7_11_heads_of_levels_that_are_not_taken_learn_nothing() -> None:
    model = net(levels=(2, 4))
    model(image())[0].sum().backward()
    for b, head in enumerate(model.heads, 1):
        assert (head.grad is not None and bool(head.grad.abs().sum() > 0)) == (b in (2, 4))


def test_dfs_s7_01_a_stack_holds_every_tensor_once() -> None:
    model = net()
    where = [t.data_ptr() for t in model.state_dict().values() if t.numel()]
    assert len(where) == len(set(where))
    own = {id(p) for p in model.backbone.parameters()}
    assert {id(p) for p in model.parameters()} == own | {id(p) for p in model.new()}
    assert not own & {id(p) for p in model.new()}


def test_levels_that_a_network_lacks_are_refused() -> None:
    assert chosen((), 5) == (1, 2, 3, 4, 5)
    assert chosen((4, 2, 4), 5) == (2, 4)
    with pytest.raises(UsageError, match=r"found \[0, 2\].*1 \(finest\) to 5"):
        chosen((0, 2), 5)


@pytest.mark.parametrize("settings", [{"source": "encoder"}, {"top": "class"}, {"rectify": "mask"}, {"tie": "free"},
                                      {"unpool": "nearest"}, {"levels": (4, 5)}, {"norm": "l2"}])  # fmt: skip
def test_every_mechanism_changes_the_maps(settings: dict[str, Any]) -> None:
    plain, other = net(), net(**settings)
    shared = {n: t for n, t in plain.state_dict().items() if n in other.state_dict()}
    other.load_state_dict({**other.state_dict(), **shared})
    if settings == {"tie": "free"}:
        with torch.no_grad():
            other.mirror.free[0].mul_(0.5)
    a, b = plain(image())[0], other(image())[0]
    assert a.shape[:2] == b.shape[:2]
    assert a.shape != b.shape or not torch.allclose(a, b)


def test_with_a_top_for_each_class_a_map_hangs_on_its_own_class_alone() -> None:
    model, x = net(top="class"), image()
    before = model(x)[0]
    with torch.no_grad():
        model.aux.weight[1].mul_(-1)
    after = model(x)[0]
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert not torch.allclose(before[:, 1], after[:, 1])


# ---- learning ----

def test_the_loss_by_hand() -> None:
    model, cfg = net(), Stack()
    tags = torch.tensor([[1, 0, 0], [0, 1, 1]]).bool()
    batch = {"images": torch.randint(0, 256, (2, 3, 48, 64), dtype=torch.uint8), "tags": tags,
             "share": torch.tensor([0.25, 0.25])}
    maps, logits = model(model.backbone.preprocess(batch["images"].float() / 255))
    t = torch.log(torch.exp(4 * maps).mean((2, 3))) / 4
    parts = [F.binary_cross_entropy_with_logits(s, tags.float()) for s in (logits, t)]
    expected = 2 * (0.75 * parts[0] + 0.25 * parts[1])
    torch.testing.assert_close(StackLoss(cfg).total(model, batch), expected)
    assert StackLoss(cfg).count(batch) == 2


def test_the_share_of_the_maps_loss_rises_to_the_end() -> None:
    batches = Shared(lambda step: {"images": torch.zeros(2, 3, 4, 4)}, (0.1, 0.9), 5)  # type: ignore[arg-type]
    found = [batches(step)["share"].tolist() for step in range(5)]
    np.testing.assert_allclose(found, [[a, a] for a in (0.1, 0.3, 0.5, 0.7, 0.9)], rtol=1e-6)


def classifier(run: Run, tagged: Any) -> Any:
    cfg = classify.Classify(backbone="small", stride=16, augment=SMALL, schedule=SHORT, **AUTO)
    return classify.train(run, tagged, Pretrained("small", "random start", "random", {}), cfg)


@pytest.mark.parametrize("settings", [{}, {"select": "learned", "route": "vjp"}, {"select": "greedy", "spare": 0.5}])
def test_from_a_classifier_to_maps(tmp_path: Path, settings: dict[str, Any]) -> None:
    tagged, run = coarse_maps.tagged_set(), Run(tmp_path)
    first = classifier(run, tagged)
    stack = deconv_stack.heads(run, tagged, first, Heads(Stack(**settings), SMALL, SHORT, **AUTO))
    before, after = classify.load(first, tagged.classes), deconv_stack.load(stack, tagged.classes)
    names = [n for n, _ in before.backbone.named_parameters()]
    assert all(torch.equal(dict(before.backbone.named_parameters())[n], dict(after.backbone.named_parameters())[n])
               for n in names)  # the encoder stood still
    assert (len(after.levels) < 5) == (settings.get("select") == "greedy")
    whole = deconv_stack.joint(run, tagged, stack, Joint(augment=SMALL, schedule=SHORT, **AUTO))
    assert deconv_stack.load(whole, tagged.classes).levels == after.levels
    moved = dict(deconv_stack.load(whole, tagged.classes).backbone.named_parameters())
    assert all(not torch.equal(moved[n], dict(before.backbone.named_parameters())[n]) for n in names if "weight" in n)
    found = deconv_stack.maps(run, tagged, whole, StackMaps(Views(size=48), device="cpu", precision="fp32"))
    for sample in tagged.ids:
        one = found.get(sample)
        assert one.classes.tolist() == (np.flatnonzero(tagged.tags_of(sample)) + 1).tolist()
        assert one.scores.min() >= 0
        assert one.scores.max() <= 1
    sharp = deconv_stack.maps(run, tagged, whole, StackMaps(Views(size=48), smooth=0.0, device="cpu", precision="fp32"))
    assert any(not np.array_equal(found.get(i).scores, sharp.get(i).scores) for i in tagged.ids)
    with pytest.raises(DataError, match="trained for the classes"):
        deconv_stack.load(whole, ("x", "y"))


def test_the_levels_least_missed_go_first() -> None:
    model = net(spare=0.05, norm="none")
    with torch.no_grad():
        for b, head in enumerate(model.heads, 1):
            head.mul_(1e-4 if b in (1, 2) else 1.0)  # two levels that say next to nothing
    rng = torch.Generator().manual_seed(0)
    batch = {"images": torch.randint(0, 256, (4, 3, 48, 48), dtype=torch.uint8, generator=rng),
             "tags": torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]]).bool()}
    kept, trail = fewest(model, [batch], "cpu")
    assert trail[0]["levels"] == [1, 2, 3, 4, 5]
    assert [len(t["levels"]) for t in trail] == list(range(5, len(kept) - 1, -1))
    assert trail[-1]["levels"] == list(kept)
    assert all(t["loss"] <= 1.05 * trail[0]["loss"] for t in trail)
    alone, _ = fewest(net(spare=1e9), [batch], "cpu")
    assert len(alone) == 1


def test_gates_are_paid_for() -> None:
    cfg = Stack(select="learned", gate_cost=0.5)
    model = StackNet(build("small", stride=16), 3, cfg)
    batch = {"images": torch.zeros(2, 3, 48, 48, dtype=torch.uint8), "tags": torch.zeros(2, 3).bool(),
             "share": torch.ones(2)}
    dear, free = (StackLoss(replace(cfg, gate_cost=c)).total(model.eval(), batch) for c in (0.5, 0.0))
    torch.testing.assert_close(dear - free, 2 * 0.5 * 5 * torch.tensor(2.0).sigmoid())
