"""ReLUs with two derivatives: by hand, for each rule, and whose gradient it is."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from tagseg.nets.two_way import Rectify, TwoWay, Way, obey, only

X, V = torch.tensor([-1.0, 2.0, 3.0, 8.0]), torch.tensor([5.0, -6.0, 7.0, -8.0])
BACK: dict[Rectify, list[float]] = {
    "relu": [5, 0, 7, 0],
    "mask": [0, -6, 7, -8],
    "guided": [0, 0, 7, 0],
    "none": [5, -6, 7, -8],
}


def pulled(layer: nn.Module, x: Tensor = X) -> list[float]:
    """What comes back of V."""
    x = x.clone().requires_grad_(True)
    (back,) = torch.autograd.grad(layer(x), x, V)
    return back.tolist()


@pytest.mark.parametrize("rule", BACK)
def test_a_rule_on_the_mirrors_way_and_the_derivative_elsewhere(rule: Rectify) -> None:
    way = Way(rule)
    layer = TwoWay(way, float("inf"))
    assert layer(X).tolist() == [0, 2, 3, 8]
    assert pulled(layer) == BACK["mask"]
    with way.back():
        assert pulled(layer) == BACK[rule]
    with only():
        assert pulled(layer) == BACK[rule]
    assert pulled(layer) == BACK["mask"]


def test_a_relu6_passes_nothing_above_its_top() -> None:
    layer = TwoWay(Way("relu"), 6.0)
    assert layer(X).tolist() == [0, 2, 3, 6]
    assert pulled(layer) == [0, -6, 7, 0]


def test_all_relus_inside_obey_the_last_way_that_was_given() -> None:
    net = nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU6(), nn.Sigmoid()))
    before = net(X)
    obey(net, Way("guided"))
    last = Way("none")
    obey(net, last)
    found = [part for part in net.modules() if isinstance(part, TwoWay)]
    assert [part.top for part in found] == [float("inf"), 6.0]
    assert all(part.way is last for part in found)
    assert not any(isinstance(part, nn.ReLU | nn.ReLU6) for part in net.modules())
    assert torch.equal(net(X), before)


def test_a_graph_of_another_thread_is_the_losss() -> None:
    layer, found = TwoWay(Way("none"), float("inf")), list[list[float]]()
    with only():
        other = threading.Thread(target=lambda: found.append(pulled(layer)))
        other.start()
        other.join()
        assert pulled(layer) == BACK["none"]
    assert found == [BACK["mask"]]
