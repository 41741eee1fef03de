"""Each kind comes back as it went in; ordinary tar and PNG tools read it; the same input gives the same bytes."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from tagseg import artifacts, store
from tagseg.artifacts import LabelSet, MapSet, Scores, SuperpixelSet, Weights
from tagseg.store import Artifact, Run, Work, stage
from tagseg.types import ClassMaps, DataError, IntegrityError, Labels
from toy_chain import ScoreConfig

CFG = ScoreConfig()
QUICK = settings(max_examples=25, deadline=None)

# Anything a file name may hold: no NUL, no lone surrogate halves but those that stand for bytes that are not UTF-8.
letters = st.characters(exclude_characters="\0/", exclude_categories=["Cs"]) | st.sampled_from(list(".%-# ?\n\udcff"))
parts = st.text(letters, min_size=1, max_size=12).filter(lambda p: p not in (".", ".."))
ids = st.lists(parts, min_size=1, max_size=3).map("/".join)
odd = ["a.b", "a.c", "a", "a%2Eb", "a%252Eb", "-rf", "d.ir/x", "d/ir.x", "e\u0301", "\u00e9", "a\nb"]
odd += ["n" * 255, "ä" * 127]


def maps_of(sample: str, scores: np.ndarray | None = None, size: tuple[int, int] = (9, 7)) -> ClassMaps:
    scores = np.zeros((0, 2, 3), np.float32) if scores is None else scores
    return ClassMaps(sample, np.arange(1, len(scores) + 1) * 2, scores, size)


def pixels_of(sample: str) -> np.ndarray:
    return np.full((2, 3), len(sample) % 250, np.uint8)


@contextmanager
def written(kind: type[Any], values: Iterable[Any], meta: dict[str, Any] | None = None) -> Iterator[Any]:
    """The values as a MapSet or LabelSet in a fresh folder."""
    held = {v.id: v for v in values}
    write: Callable[..., None] = artifacts.write_maps if kind is MapSet else artifacts.write_labels

    @stage(kind, version=1)
    def body(work: Work, cfg: ScoreConfig) -> None:
        write(work, list(held), lambda members: (held[i] for i in members), meta or {})

    with tempfile.TemporaryDirectory() as folder:
        store._verified.clear()
        yield body(Run(Path(folder)), CFG)


def shards(made: Artifact) -> list[Path]:
    return sorted(made.path.glob("*.tar"))


# --------------------------------------------------------------------------------------------------- round trips


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's list of mappings")
def test_what_was_read_is_not_kept_in_memory() -> None:
    scores = np.random.default_rng(0).random((3, 200, 300), np.float32)
    with written(MapSet, [maps_of(f"{k}", scores) for k in range(6)]) as made:
        assert all(one.scores.shape == scores.shape for one in made)  # and stays open
        held, ours = list[int](), False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if not line.split(" ")[0].endswith(":"):
                ours = str(made.path) in line
            elif ours and line.startswith("Rss:"):
                held.append(int(line.split()[1]))
    assert held
    assert sum(held) < 300  # kB; the maps have 2160 and come in whole


@QUICK
@given(st.lists(ids, unique=True, max_size=8))
@example(odd)
@example([])
def test_every_id_comes_back_and_finds_its_own(samples: list[str]) -> None:
    with written(LabelSet, (Labels(s, pixels_of(s)) for s in samples), {"classes": ["a"]}) as made:
        again = LabelSet(made.key, made.path)
        assert again.ids == samples
        assert len(again) == len(samples)
        assert again.meta == {"classes": ["a"]}
        assert [x.id for x in again] == samples
        for sample in samples:
            assert sample in again
            np.testing.assert_array_equal(again.get(sample).pixels, pixels_of(sample))
        assert "never there" not in again


@QUICK
@given(st.lists(ids, unique=True, min_size=1, max_size=8))
@example(odd)
def test_plain_tar_opens_the_shards_and_webdataset_would_group_the_members(samples: list[str]) -> None:
    values = [Labels(s, pixels_of(s), pixels_of(s) if n % 2 else None) for n, s in enumerate(samples)]
    with written(LabelSet, values) as made:
        groups: dict[str, dict[str, bytes]] = {}
        order = []
        for shard in shards(made):
            with tarfile.open(shard) as tar:
                for member in tar:
                    folder, _, name = member.name.rpartition("/")
                    stem, _, extension = name.partition(".")  # WebDataset: the key ends at the first dot of the name
                    key = f"{folder}/{stem}"
                    order += [key] * (key not in groups)
                    data = tar.extractfile(member).read()  # type: ignore[union-attr]
                    assert extension not in groups.setdefault(key, {})
                    groups[key][extension] = data
    assert len(groups) == len(samples)
    for key, value in zip(order, values, strict=True):
        assert set(groups[key]) == {"json", "png"} | ({"confidence.png"} if value.confidence is not None else set())
        assert json.loads(groups[key]["json"]) == {"id": value.id, "size": [2, 3]}
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(groups[key]["png"]))), value.pixels)


@QUICK
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(0, 5), st.integers(1, 6), st.integers(1, 6)),
        elements=st.floats(0, 1, width=32),
    )
)
def test_maps_come_back_rounded_to_float16(scores: np.ndarray) -> None:
    with written(MapSet, [maps_of("x.y", scores)]) as made:
        found = made.get("x.y")
    assert found.scores.dtype == np.float32
    np.testing.assert_array_equal(found.scores, scores.astype(np.float16).astype(np.float32))
    # Half the spacing of float16 below 1 is 2^-12: thresholds are applied after this rounding, never before.
    assert np.all(np.abs(found.scores - scores) <= 2.0**-12)
    np.testing.assert_array_equal(found.classes, np.arange(1, len(scores) + 1) * 2)
    assert found.size == (9, 7)


def test_an_image_without_tags_has_a_map_of_no_classes() -> None:
    with written(MapSet, [maps_of("empty")]) as made:
        found = made.get("empty")
    assert found.scores.shape == (0, 2, 3)
    assert found.classes.dtype == np.int64
    assert len(found.classes) == 0


def test_class_254_and_a_single_pixel() -> None:
    value = ClassMaps("a", np.array([254]), np.ones((1, 1, 1), np.float32), (1, 1))
    with written(MapSet, [value]) as made:
        assert made.get("a").classes.tolist() == [254]


@QUICK
@given(st.data(), hnp.array_shapes(min_dims=2, max_dims=2, max_side=20))
def test_labels_come_back(data: st.DataObject, shape: tuple[int, int]) -> None:
    pixels = data.draw(hnp.arrays(np.uint8, shape))
    confidence = data.draw(st.none() | hnp.arrays(np.uint8, shape))
    with written(LabelSet, [Labels("a", pixels, confidence)]) as made:
        found = made.get("a")
    np.testing.assert_array_equal(found.pixels, pixels)
    assert (found.confidence is None) == (confidence is None)
    if confidence is not None:
        np.testing.assert_array_equal(found.confidence, confidence)


def test_every_label_value_from_0_to_254_and_255() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    with written(LabelSet, [Labels("a", pixels, pixels[::-1].copy())]) as made:
        found = made.get("a")
    np.testing.assert_array_equal(found.pixels, pixels)
    np.testing.assert_array_equal(found.confidence, pixels[::-1])
    found.pixels[0, 0] = 1  # what was read belongs to the reader


def test_weights_come_back(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensors = {
        "a.weight": torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
        "a.bias": torch.ones(3, dtype=torch.bfloat16, requires_grad=True),
        "steps": torch.tensor(7),
    }

    @stage(Weights, version=1)
    def body(work: Work, cfg: ScoreConfig) -> None:
        artifacts.write_weights(work, tensors, {"classes": ["dog"], "net": {"name": "x"}})

    found = body(Run(tmp_path), CFG)
    assert found.meta == {"classes": ["dog"], "net": {"name": "x"}}
    assert set(found.tensors()) == set(tensors)
    for name, tensor in found.tensors().items():
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor, tensors[name])


def test_scores_come_back_and_are_never_nan(tmp_path: Path) -> None:
    def made(value: float) -> Scores:
        @stage(Scores, version=1)
        def body(work: Work, cfg: ScoreConfig) -> None:
            artifacts.write_scores(work, {"miou": value, "curve": [1, None, "ä"]})

        return body(Run(tmp_path), CFG)

    with pytest.raises(ValueError, match="not JSON compliant"):
        made(float("nan"))
    assert made(0.25).read() == {"miou": 0.25, "curve": [1, None, "ä"]}


# -------------------------------------------------------------------------------------------------------- shards


def test_shards_hold_128_ids_in_order_and_the_index_finds_the_bytes() -> None:
    samples = [f"{n:04d}" for n in range(300)]
    with written(LabelSet, (Labels(s, pixels_of(s)) for s in samples)) as made:
        names = [p.name for p in shards(made)]
        assert names == ["shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]
        found = []
        for shard in shards(made):
            with tarfile.open(shard) as tar:
                found.append([n.removesuffix(".json") for n in tar.getnames() if n.endswith(".json")])
        assert [len(f) for f in found] == [128, 128, 44]
        assert [s for part in found for s in part] == samples
        index = json.loads((made.path / "index.json").read_text())
        shard, offset, size = index["members"]["0299.png"]
        data = (made.path / shard).read_bytes()[offset : offset + size]
        assert data.startswith(b"\x89PNG")


def test_the_same_bytes_on_two_runs() -> None:
    rng = np.random.default_rng(0)
    maps = [maps_of(f"d/{n}.x", rng.random((n % 3, 4, 5)).astype(np.float32)) for n in range(5)]
    labels = [Labels(s, pixels_of(s)) for s in odd]
    hashes = []
    for kind, values in ((MapSet, maps), (LabelSet, labels)):
        for _ in range(2):
            with written(kind, values) as made:
                hashes.append(made.record["outputs"])
    assert hashes[0] == hashes[1]
    assert hashes[2] == hashes[3]
    with written(LabelSet, labels) as made, tarfile.open(shards(made)[0]) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar} == {(0, 0, 0, "", 0o644)}


def test_an_absent_id_is_named() -> None:
    with written(MapSet, [maps_of("a")]) as made, pytest.raises(DataError, match=r"'b'; it has 1 ids"):
        made.get("b")


def build(tmp_path: Path, ids: list[str], produce: Callable[[list[str]], Iterable[ClassMaps]]) -> MapSet:
    @stage(MapSet, version=1)
    def body(work: Work, cfg: ScoreConfig) -> None:
        artifacts.write_maps(work, ids, produce, {})

    return body(Run(tmp_path), CFG)


def test_what_was_not_asked_for_is_not_stored(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="produced 'b' where 'a' was asked for"):
        build(tmp_path, ["a", "b"], lambda ids: (maps_of(i) for i in reversed(ids)))
    with pytest.raises(ValueError, match="shorter"):
        build(tmp_path, ["a", "b"], lambda ids: [maps_of("a")])
    with pytest.raises(ValueError, match="longer"):
        build(tmp_path, ["a"], lambda ids: [maps_of("a"), maps_of("b")])
    with pytest.raises(DataError, match="found 1 repeated ids"):
        build(tmp_path, ["a", "b", "a"], lambda ids: (maps_of(i) for i in ids))
    assert not list(tmp_path.rglob("*.tar"))
    assert len(build(tmp_path, ["a"], lambda ids: [maps_of("a")])) == 1


# ----------------------------------------------------------------------------------------------------------- PNG


def test_the_palette_is_the_published_one() -> None:
    colours = np.array(artifacts.palette()).reshape(256, 3).tolist()
    # The first VOC classes and the void colour, as published with the development kit.
    assert colours[:6] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128]]
    assert colours[15] == [192, 128, 128]  # person
    assert colours[20] == [0, 64, 128]  # tv monitor
    assert colours[255] == [224, 224, 192]
    assert len({tuple(c) for c in colours}) == 256


def test_label_images_have_the_palette_and_confidence_is_grey() -> None:
    pixels = np.array([[0, 15], [20, 255]], np.uint8)
    image = Image.open(io.BytesIO(artifacts.png(pixels, palette=True)))
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image.convert("RGB"))[1, 1], [224, 224, 192])
    grey = Image.open(io.BytesIO(artifacts.png(pixels, palette=False)))
    assert grey.mode == "L"
    np.testing.assert_array_equal(artifacts.read_png(artifacts.png(pixels.T, palette=True)), pixels.T)


def test_only_png_is_read_as_png() -> None:
    buffer = io.BytesIO()
    Image.new("L", (2, 2)).save(buffer, "BMP")
    with pytest.raises(OSError, match="cannot identify"):
        artifacts.read_png(buffer.getvalue())


# ------------------------------------------------------------------------------------------------------ superpixels


@contextmanager
def written_superpixels(held: dict[str, np.ndarray]) -> Iterator[SuperpixelSet]:
    @stage(SuperpixelSet, version=1)
    def body(work: Work, cfg: ScoreConfig) -> None:
        artifacts.write_superpixels(work, list(held), lambda members: ((i, held[i]) for i in members), {"kind": "x"})

    with tempfile.TemporaryDirectory() as folder:
        store._verified.clear()
        yield body(Run(Path(folder)), CFG)


@QUICK
@given(st.data(), hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))
def test_superpixels_come_back(data: st.DataObject, shape: tuple[int, int]) -> None:
    ids = data.draw(hnp.arrays(np.int32, shape, elements=st.integers(0, 2**16 - 1)))
    with written_superpixels({"a": ids, "b/c": ids[::-1]}) as made:
        assert made.ids == ["a", "b/c"]
        assert made.meta == {"kind": "x"}
        assert made.get("a").dtype == np.int32
        assert np.array_equal(made.get("a"), ids)
        assert np.array_equal(made.get("b/c"), ids[::-1])
        with pytest.raises(DataError, match="holds no"):
            made.get("c")


def test_more_superpixels_than_16_bits_hold_are_an_error() -> None:
    with pytest.raises(DataError, match="'a': found 65537, at most 65536"), written_superpixels(
        {"a": np.full((2, 2), 2**16, np.int32)}
    ):
        pass
