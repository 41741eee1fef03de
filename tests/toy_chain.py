"""A method in small, for the tests of the store: maps -> labels -> score, numpy only, every produced shard logged."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tagseg import artifacts, config
from tagseg.artifacts import LabelSet, MapSet, Scores
from tagseg.store import Artifact, Run, Step, Work, stage
from tagseg.types import ClassMaps, Labels

SHARD = 2
IDS = tuple(f"cats/img.{i}" for i in range(5))
LINES = [f"{stage} {first}" for stage in ("maps", "labels") for first in IDS[::SHARD]] + ["score"]


@dataclass(frozen=True)
class Solver:
    steps: int = 2
    tolerance: float = 0.5


@dataclass(frozen=True)
class MapsConfig:
    gain: float = 0.75
    device: str = "cpu"
    solver: Solver = Solver()
    workers: int = config.unkeyed(2)


@dataclass(frozen=True)
class LabelsConfig:
    threshold: float = 0.5


@dataclass(frozen=True)
class ScoreConfig:
    name: str = "mean"


@dataclass(frozen=True)
class Config:
    maps: MapsConfig = MapsConfig()
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)


@dataclass(frozen=True)
class ToySet:
    ids: tuple[str, ...] = IDS
    key: str = "toy"


def note(text: str) -> None:
    """Append to the file TOY_LOG, by plain system calls so that no injected fault counts them."""
    if name := os.environ.get("TOY_LOG"):
        handle = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, f"{text}\n".encode())
        os.close(handle)


def toy_maps(sample: str, gain: float) -> ClassMaps:
    seed = int.from_bytes(hashlib.sha256(sample.encode()).digest()[:4], "big")
    scores = (np.random.default_rng(seed).random((2, 3, 4)) * gain).astype(np.float32)
    return ClassMaps(sample, np.array([1, 3]), scores, (6, 8))


@stage(MapSet, version=1)
def maps(work: Work, data: ToySet, cfg: MapsConfig) -> None:
    def produce(ids: list[str]) -> Iterable[ClassMaps]:
        note(f"maps {ids[0]}")
        return (toy_maps(i, cfg.gain) for i in ids)

    artifacts.write_maps(work, data.ids, produce, {"classes": 3})


@stage(LabelSet, version=1)
def labels(work: Work, seen: MapSet, cfg: LabelsConfig) -> None:
    def produce(ids: list[str]) -> Iterable[Labels]:
        note(f"labels {ids[0]}")
        return (Labels(i, (seen.get(i).scores.max(0) > cfg.threshold).astype(np.uint8)) for i in ids)

    artifacts.write_labels(work, seen.ids, produce, {})


@stage(Scores, version=1)
def score(work: Work, found: LabelSet, cfg: ScoreConfig) -> None:
    note("score")
    artifacts.write_scores(work, {cfg.name: float(np.mean([x.pixels.mean() for x in found]))})


def fit(run: Run, data: ToySet, cfg: Config) -> Scores:
    return score(run, labels(run, maps(run, data, cfg.maps), cfg.labels), cfg.score)


def plan(cfg: Config, cache: Path = Path("nowhere")) -> list[Step]:
    run = Run(cache, planning=True)
    fit(run, ToySet(), cfg)
    return run.steps


def outputs(run: Run) -> dict[str, dict[str, dict[str, str]]]:
    """The hashes of all outputs of a run, by stage."""
    return {step.stage: Artifact(step.key, step.path).record["outputs"] for step in run.steps}
