"""Sets check themselves, and their identity covers what they claim and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from tagseg.data.generated import parse, scenes
from tagseg.data.images import mask_reads, reset_mask_reads
from tagseg.data.index import MaskedSet, TaggedSet, spread, with_masks
from tagseg.types import DataError, MaskedSample, Sample, UsageError


@dataclass
class Grey:
    """A 2x3 image of one value for each id."""

    values: dict[str, int]

    def read(self, id: str) -> np.ndarray:
        return np.full((3, 2, 3), self.values[id], np.uint8)

    def size(self, id: str) -> tuple[int, int]:
        return (2, 3)

    def digest(self, id: str) -> str:
        return f"digest-{self.values[id]}"


@dataclass
class Masks:
    arrays: dict[str, np.ndarray]

    @property
    def ids(self) -> set[str]:
        return set(self.arrays)

    def read(self, id: str) -> np.ndarray:
        return self.arrays[id]

    def digest(self, id: str) -> str:
        return self.arrays[id].tobytes().hex()


def tagged(**changes: object) -> TaggedSet:
    tags = np.array([[True, False], [False, False], [False, False]])
    given = {"name": "set", "classes": ("x", "y"), "ids": ("a", "b", "c"), "tags": tags,
             "tagged": np.array([True, True, False]), "source": Grey({"a": 1, "b": 2, "c": 3})} | changes
    return TaggedSet(**given)  # type: ignore[arg-type]


def mask(value: int = 1) -> np.ndarray:
    return np.full((2, 3), value, np.uint8)


@pytest.mark.parametrize("changes", [
    {"ids": ("b", "a", "c")}, {"ids": ("a", "a", "c")}, {"ids": ("a", "b")}, {"tagged": np.array([True, True])},
    {"tags": np.zeros((3, 2), np.uint8)}, {"classes": ("x", "x")}, {"classes": ("x", "")}, {"classes": ()},
    {"tagged": np.array([False, True, True])}, {"classes": tuple(map(str, range(255)))},
    {"told": np.zeros((3, 2), bool)}, {"told": np.ones((2, 2), bool)},
])
def test_a_set_that_does_not_fit_together_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(DataError, match="set 'set'"):
        tagged(**changes)


def test_reading_and_choosing() -> None:
    data = tagged()
    sample = data.sample("a")
    assert isinstance(sample, Sample)
    assert (sample.image[0, 0, 0], sample.tags.tolist()) == (1, [True, False])
    assert data.training().ids == ("a", "b")
    assert data.select(["c", "a", "a"]).ids == ("a", "c")
    assert data.select(["c", "a"]).tags.tolist() == [[True, False], [False, False]]
    assert len(data) == 3
    with pytest.raises(UsageError, match="no image 'aa'; the nearest is 'a'"):
        data.sample("aa")


def test_what_is_told_of_an_image_goes_with_it() -> None:
    data = tagged()
    told = data.tags | np.array([[0, 1], [0, 0], [0, 0]], bool)
    known = replace(data, told=told)
    assert known.key != data.key
    assert known.key != replace(data, told=np.ones_like(told)).key
    chosen = known.select(["c", "a"])
    assert chosen.told is not None
    assert chosen.told.tolist() == told[[0, 2]].tolist()
    assert known.without_tags().told is None


def test_limit_is_nested_independent_of_order_and_spread() -> None:
    ids = [f"{kind}/{k:03d}" for kind in "ab" for k in range(100)]
    ten = spread(ids, 10)
    assert set(ten) < set(spread(ids[::-1], 30))
    assert {id[0] for id in ten} == {"a", "b"}
    assert list(ten) == sorted(ten)
    assert tagged().limit(99).ids == ("a", "b", "c")
    with pytest.raises(UsageError, match="limit is 0"):
        tagged().limit(0)


def test_the_key_changes_with_everything_that_matters() -> None:
    data = tagged()
    other_tags = data.tags.copy()
    other_tags[1, 1] = True
    changed = [replace(data, tags=other_tags), replace(data, classes=("x", "z")), replace(data, has_background=False),
               replace(data, tagged=np.array([True, False, False])), replace(data, ids=("a", "b", "d"),
               source=Grey({"a": 1, "b": 2, "d": 3})), replace(data, source=Grey({"a": 1, "b": 2, "c": 4})),
               data.select(["a", "b"])]
    keys = [data.key, *(one.key for one in changed)]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 64 for key in keys)
    assert replace(data, name="elsewhere").key == data.key == data.fingerprint == tagged().key


def test_masks_are_in_the_masked_key_only() -> None:
    one, two = (MaskedSet(tagged().select(["a", "b"]), Masks({"a": mask(), "b": mask(value)})) for value in (1, 2))
    assert one.key != two.key
    assert one.without_masks().key == two.without_masks().key == tagged().select(["a", "b"]).key


def test_only_images_with_masks_are_in_a_masked_set() -> None:
    found = with_masks(tagged(), Masks({"a": mask(), "zz": mask()}))
    assert found is not None
    assert found.ids == ("a",)
    assert (found.name, found.classes, found.has_background, len(found)) == ("set", ("x", "y"), True, 1)
    assert isinstance(found.sample("a"), MaskedSample)
    assert not isinstance(found.without_masks().sample("a"), MaskedSample)
    assert with_masks(tagged(), Masks({})) is None
    with pytest.raises(DataError, match="2 images have no mask, the first is 'b'"):
        MaskedSet(tagged(), Masks({"a": mask()}))


def test_masks_of_wrong_size_or_values_are_named() -> None:
    data = tagged().select(["a"])
    with pytest.raises(DataError, match=r"found 3x2 \(HxW\), expected the image's 2x3; .*EXIF rotation"):
        MaskedSet(data, Masks({"a": mask().T})).sample("a")
    with pytest.raises(DataError, match=r"found 4x4 .*nearest neighbour"):
        MaskedSet(data, Masks({"a": np.zeros((4, 4), np.uint8)})).sample("a")
    with pytest.raises(DataError, match=r"values 3 \(6 px\)"):
        MaskedSet(data, Masks({"a": mask(3)})).mask("a")


# ---- generated sets ----

def test_generated_splits_are_disjoint_and_repeatable() -> None:
    both = scenes("scenes:basic?train=6&val=4&size=32")
    train, val = scenes("scenes:basic?train=6&val=4&size=32", ("train",)), scenes("scenes:basic?val=4&size=32", ["val"])
    assert (len(both), len(train), len(val)) == (10, 6, 4)
    digests = {train.tagged.source.digest(id) for id in train.ids} | {val.tagged.source.digest(id) for id in val.ids}
    assert len(digests) == 10
    assert train.key == scenes("scenes:basic?train=6&size=32", ("train",)).key
    assert train.key != scenes("scenes:basic?train=6&size=32&seed=1", ("train",)).key
    sample = train.sample(train.ids[0])
    assert sample.image.shape == (3, *train.tagged.source.size(train.ids[0]))
    assert sorted(set(sample.mask.ravel()) - {0}) == (np.flatnonzero(sample.tags) + 1).tolist()
    assert len(scenes("scenes:basic?train=6&size=32", ("train",), limit=2)) == 2


def test_looks_at_generated_masks_are_recorded() -> None:
    data = scenes("scenes:basic?train=3&size=32", ("train",))
    reset_mask_reads()
    images = data.without_masks()
    assert images.key
    images.sample(images.ids[0])
    assert mask_reads() == ()
    data.mask(data.ids[0])
    assert len(mask_reads()) == 1
    reset_mask_reads()


def test_a_returned_image_may_be_changed_without_harm() -> None:
    source = scenes("scenes:basic?train=1&size=32", ("train",)).tagged.source
    before = source.read("train/000000").copy()
    source.read("train/000000")[:] = 0
    np.testing.assert_array_equal(source.read("train/000000"), before)


def test_knobs_of_generated_sets() -> None:
    spec = parse("scenes:basic?seed=3&tag_noise=0.1&objects=1,3&blur=0&train=7")
    assert (spec.seed, spec.config.missing_tags, spec.config.wrong_tags) == (3, 0.1, 0.1)
    assert (spec.config.objects, spec.config.blur, dict(spec.counts)["train"]) == ((1, 3), 0.0, 7)
    assert parse("scenes:herd?kinds=4&side=source").config.classes == ("crab", "jay", "frog", "finch")
    assert parse("scenes:herd?side=target&kinds=3").config == parse("scenes:herd?side=target").config
    assert parse("scenes:herd?kinds=19-20&side=source").config.classes == ("ibis", "puma")
    assert parse("scenes:transfer?kinds=6").config.target == ("newt",)
    assert parse("scenes:transfer?side=target").config.name == "transfer-target"
    assert not scenes("scenes:tissue?train=2&size=32", ["train"]).has_background


@pytest.mark.parametrize(("name", "expected"), [
    ("scenes:basik", "basic"), ("scenes:basic?sizes=3", "'size'"), ("scenes:basic?train=-1", "whole number"),
    ("scenes:basic?nonsense", "key=value"), ("scenes:", "expected a name"), ("scenes:basic?objects=3", "low,high"),
    ("scenes:basic?blur=x", "expected a number"), ("scenes:basic?side=left", "source or target"),
    ("scenes:basic?name=x", "unknown"), ("scenes:herd?kinds=21&side=source", r"kinds is 21, expected 1\.\.20"),
    ("scenes:basic?kinds=0", r"kinds is 0"), ("scenes:thin?decoys=1,2", "0,0 for style strokes"),
    *((f"scenes:herd?kinds={wrong}&side=source", rf"kinds is {wrong}") for wrong in ("3-2", "0-2", "19-21")),
    ("scenes:basic?kinds=-2x", "expected a whole number"),
])
def test_wrong_names_of_generated_sets(name: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        parse(name)


def test_wrong_splits_of_generated_sets() -> None:
    with pytest.raises(UsageError, match="'test' is unknown, expected one of train, val"):
        scenes("scenes:basic", ("test",))
    with pytest.raises(UsageError, match="no image"):
        scenes("scenes:basic?train=0", ("train",))
