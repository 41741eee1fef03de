"""Steps of method `esol` on tiny data, shared by the tests of its stages: nobody changes them."""

from __future__ import annotations

import pytest
import torch

import tiny
from tagseg.artifacts import Weights
from tagseg.localize import classify, expansion, shrinkage
from tagseg.runs.setup import Prepared, prepare
from tagseg.store import Run
from tagseg.training.loop import Batch


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(tiny.request(tmp_path_factory.mktemp("esol") / "run", method="esol"))


@pytest.fixture(scope="session")
def run(prepared: Prepared) -> Run:
    return Run(prepared.cache, workers=1)


@pytest.fixture(scope="session")
def classifier(prepared: Prepared, run: Run) -> Weights:
    return classify.train(run, prepared.inputs.tagged, prepared.inputs.pretrained, prepared.cfg.classifier)


@pytest.fixture(scope="session")
def expanded(prepared: Prepared, run: Run, classifier: Weights) -> Weights:
    return expansion.expanded(run, prepared.inputs.tagged, classifier, prepared.cfg.expand)


@pytest.fixture(scope="session")
def twofold(prepared: Prepared, run: Run, expanded: Weights) -> Weights:
    return shrinkage.second(run, prepared.inputs.tagged, expanded, prepared.cfg.second)


@pytest.fixture(scope="session")
def shrunk(prepared: Prepared, run: Run, expanded: Weights, twofold: Weights) -> Weights:
    return shrinkage.shrunk(run, prepared.inputs.tagged, expanded, twofold, prepared.cfg.shrink)


@pytest.fixture(scope="session")
def few(prepared: Prepared) -> Batch:
    """The first images of the set with their tags."""
    tagged, count = prepared.inputs.tagged, 8
    images = [torch.from_numpy(tagged.source.read(i)) for i in tagged.ids[:count]]
    return {"images": torch.stack(images), "tags": torch.from_numpy(tagged.tags[:count])}
