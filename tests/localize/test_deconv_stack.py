"""Learning tags through the mirror: the loss by hand, its weights over time, levels that are left out, all stages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import coarse_maps
from stacks import net
from tagseg.data.loader import Augment
from tagseg.data.weights import Pretrained
from tagseg.inference import Views
from tagseg.localize import classify, deconv_stack, stack_maps, stack_net
from tagseg.localize.deconv_stack import Heads, Joint, Rising, StackLoss, fewest
from tagseg.localize.stack_maps import StackMaps
from tagseg.localize.stack_net import Stack, StackNet
from tagseg.nets.backbones import build
from tagseg.store import Run
from tagseg.training.schedule import Schedule
from tagseg.types import DataError

SHORT = Schedule(epochs=1.0, min_images=32, max_images=32, batch=8, optimiser="adamw", lr=1e-3, head_lr=1e-2,
                 weight_decay=0.0)
SMALL = Augment(size=32)
AUTO: dict[str, Any] = {"seed": 0, "device": "cpu", "precision": "fp32"}


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
    rising, batch = Rising((0.1, 0.9), 5), {"images": torch.zeros(2, 3, 4, 4)}
    found = [rising(step, batch)["share"].tolist() for step in range(5)]
    np.testing.assert_allclose(found, [[a, a] for a in (0.1, 0.3, 0.5, 0.7, 0.9)], rtol=1e-6)


def classifier(run: Run, tagged: Any) -> Any:
    cfg = classify.Classify(backbone="small", stride=16, augment=SMALL, schedule=SHORT, **AUTO)
    return classify.train(run, tagged, Pretrained("small", "random start", "random", {}), cfg)


@pytest.mark.parametrize("settings", [{}, {"select": "learned", "route": "vjp"}, {"select": "greedy", "spare": 0.5}])
def test_from_a_classifier_to_maps(tmp_path: Path, settings: dict[str, Any]) -> None:
    tagged, run = coarse_maps.tagged_set(), Run(tmp_path)
    first = classifier(run, tagged)
    stack = deconv_stack.heads(run, tagged, first, Heads(Stack(**settings), SMALL, SHORT, **AUTO))
    before, after = classify.load(first, tagged.classes), stack_net.load(stack, tagged.classes)
    names = [n for n, _ in before.backbone.named_parameters()]
    assert all(torch.equal(dict(before.backbone.named_parameters())[n], dict(after.backbone.named_parameters())[n])
               for n in names)  # the encoder stood still
    assert (len(after.levels) < 5) == (settings.get("select") == "greedy")
    whole = deconv_stack.joint(run, tagged, stack, Joint(augment=SMALL, schedule=SHORT, **AUTO))
    assert stack_net.load(whole, tagged.classes).levels == after.levels
    moved = dict(stack_net.load(whole, tagged.classes).backbone.named_parameters())
    assert all(not torch.equal(moved[n], dict(before.backbone.named_parameters())[n]) for n in names if "weight" in n)
    found = stack_maps.maps(run, tagged, whole, StackMaps(Views(size=48), device="cpu", precision="fp32"))
    for sample in tagged.ids:
        one = found.get(sample)
        assert one.classes.tolist() == (np.flatnonzero(tagged.tags_of(sample)) + 1).tolist()
        assert one.scores.min() >= 0
        assert one.scores.max() <= 1
    sharp = stack_maps.maps(run, tagged, whole, StackMaps(Views(size=48), smooth=0.0, device="cpu", precision="fp32"))
    assert any(not np.array_equal(found.get(i).scores, sharp.get(i).scores) for i in tagged.ids)
    with pytest.raises(DataError, match="trained for the classes"):
        stack_net.load(whole, ("x", "y"))


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
