"""The foreground map: invariances of the sum of activations, its taps, and that nothing trained gets in."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import coarse_maps
from coarse_maps import as_published
from tagseg.data.weights import Pretrained
from tagseg.inference import Views
from tagseg.localize import foreground
from tagseg.localize.foreground import Energies, Foreground, minmax, scaled
from tagseg.nets.backbones import Backbone, Tap, build
from tagseg.store import Run
from tagseg.types import UsageError

CPU: dict[str, Any] = {"device": "cpu", "precision": "fp32"}


class Fixed(nn.Module):
    """Gives fixed features of two taps, whatever it sees."""

    def __init__(self, four: Tensor, five: Tensor) -> None:
        super().__init__()
        self.found = {"block4": four, "block5": five}

    def forward(self, x: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
        return {name: self.found[name] for name in wanted}


def energies(four: Tensor, five: Tensor, tap_norm: str = "none") -> Tensor:
    taps = (Tap("block4", four.shape[1], 8, 3.5), Tap("block5", five.shape[1], 8, 3.5))
    found: Tensor = Energies(Backbone("fixed", Fixed(four, five), taps, {}), ("block4", "block5"), tap_norm)(
        torch.zeros(1, 3, 48, 56))
    return found


def prior(four: Tensor, five: Tensor, tap_norm: str = "none") -> np.ndarray:
    return scaled(energies(four, five, tap_norm)[0].numpy())


def activations(seed: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(1, 4, 6, 7, generator=rng), 3 * torch.rand(1, 5, 6, 7, generator=rng)


def test_priors_s7_04_the_range_and_what_does_not_matter() -> None:
    four, five = activations(0)
    found = prior(four, five)
    assert (found.min(), found.max()) == (0, 1)
    np.testing.assert_allclose(prior(7 * four, 7 * five), found, atol=1e-6)
    np.testing.assert_allclose(prior(1e-6 * four, 1e-6 * five), found, atol=1e-4)
    np.testing.assert_allclose(prior(four[:, [2, 0, 3, 1]], five), found, atol=1e-6)
    raised = five.clone()
    raised[:, 2] += 4
    np.testing.assert_allclose(prior(four, raised), found, atol=1e-5)
    by_hand = four.mean(1) + five.mean(1)
    np.testing.assert_allclose(found, (by_hand - by_hand.min()) / (by_hand.max() - by_hand.min()), atol=1e-6)
    flat = prior(torch.full((1, 4, 6, 7), 2.0), torch.full((1, 5, 6, 7), 3.0))
    assert not flat.any()


@pytest.mark.parametrize("tap_norm", ["none", "per_layer"])
def test_priors_s7_04_one_layer_rules_unless_each_is_scaled(tap_norm: str) -> None:
    four, five = activations(1)
    apart = np.abs(prior(four, 20 * five, tap_norm) - prior(four, five, tap_norm)).max()
    assert apart > 0.05 if tap_norm == "none" else apart < 1e-5


def test_signed_activations_count_by_their_positive_part() -> None:
    four, five = activations(2)
    signed = torch.cat([four, -5 * four], 1)
    np.testing.assert_allclose(prior(signed, five), prior(four / 2, five), atol=1e-6)


def test_taps_on_two_grids_are_brought_to_the_finer_one() -> None:
    model = Energies(build("small", stride=16), ("block3", "block5"), "none")
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    fine, coarse = model.backbone.tap("block3"), model.backbone.tap("block5")
    assert fine.stride < coarse.stride
    assert model(x).shape == (1, 1, 64 // fine.stride, 96 // fine.stride)
    assert model.finest == fine


def test_a_map_of_one_value_is_zero_and_others_span_the_range() -> None:
    maps = torch.stack([torch.full((1, 3, 3), 0.3), torch.arange(9.0).view(1, 3, 3)])
    assert not minmax(maps)[0].any()
    assert minmax(maps)[1].flatten().tolist() == [k / 8 for k in range(9)]


def test_the_stage_sees_images_and_pretrained_weights_alone(tmp_path: Path) -> None:
    names = list(inspect.signature(inspect.unwrap(foreground.maps)).parameters)
    assert names == ["work", "images", "pretrained", "cfg"]  # neither tags nor trained weights
    tagged, run = coarse_maps.tagged_set(), Run(tmp_path)
    random = Pretrained("small", "random start", "random", {})
    known = Pretrained("small", "a test", "0" * 64, as_published(build("small", stride=16)))
    cfg = Foreground("small", views=Views(size=48), **CPU)
    found = foreground.maps(run, tagged.images(), known, cfg)
    for sample in tagged.ids:
        one = found.get(sample)
        assert one.classes.tolist() == [1]
        assert one.scores.max() == 1
        assert one.scores.min() == 0
    assert found.record["events"] == []
    assert "random numbers" in foreground.maps(run, tagged.images(), random, cfg).record["events"][0]
    with pytest.raises(UsageError, match="expected the names of features"):
        foreground.maps(run, tagged.images(), known, Foreground("small", taps=(), **CPU))
    with pytest.raises(UsageError, match="no features named"):
        foreground.maps(run, tagged.images(), known, Foreground("small", taps=("blok4",), **CPU))
