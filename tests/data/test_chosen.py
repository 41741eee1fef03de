"""Some classes of a set: tags, values and identity of what is chosen; what cannot be chosen is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tiny
from tagseg.data.chosen import chosen, chosen_tags
from tagseg.data.folder import Reading, open_set
from tagseg.data.generated import scenes
from tagseg.data.index import MaskedSet, TaggedSet
from tagseg.data.other_masks import of_other_classes
from tagseg.types import DataError, UsageError

CLASSES = ("ant", "bee", "cow")
MASKS = {"a": [[0, 1], [2, 255]], "b": [[3, 3], [0, 2]], "c": [[0, 0], [0, 0]]}


class Written:
    """Masks and images by id, written down."""

    ids = tuple(MASKS)

    def read(self, id: str) -> np.ndarray:
        return np.array(MASKS[id], np.uint8)

    def digest(self, id: str) -> str:
        return f"of {id}"


def three() -> MaskedSet:
    tags = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 0]], bool)
    known = np.ones(3, bool)
    images = scenes("scenes:basic?train=3&val=1").tagged.source
    return MaskedSet(TaggedSet("three", CLASSES, ("a", "b", "c"), tags, known, images), Written())


def test_tags_and_values_of_some_classes_in_the_order_asked_for() -> None:
    found = chosen(three(), ("cow", "ant"))
    assert found.classes == ("cow", "ant")
    assert found.tagged.tags.tolist() == [[False, True], [True, False], [False, False]]
    assert found.tagged.tagged.all()  # an image with none of them is a negative: it was tagged
    assert found.mask("a").tolist() == [[0, 2], [0, 255]]
    assert found.mask("b").tolist() == [[1, 1], [0, 0]]
    unknown = chosen(three(), ("cow",), unknown=("bee",))
    assert unknown.mask("a").tolist() == [[0, 0], [255, 255]]
    assert unknown.mask("b").tolist() == [[1, 1], [0, 255]]


def test_values_that_the_whole_set_has_not_are_refused_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MASKS, "b", [[9, 0], [0, 0]])
    with pytest.raises(DataError, match="9"):
        chosen(three(), ("cow",)).mask("b")


def test_identity_is_of_what_was_chosen_and_of_the_masks() -> None:
    parts = [chosen(three(), names).masks.digest("a") for names in (("cow",), ("ant",), ("cow", "ant"))]
    assert len(set(parts)) == 3
    assert chosen(three(), ("cow",)).masks.digest("a") != chosen(three(), ("cow",)).masks.digest("b")
    other = chosen(three(), ("cow",), unknown=("bee",))
    assert other.masks.digest("a") != parts[0]


def test_what_is_not_there_or_named_twice() -> None:
    with pytest.raises(UsageError, match=r"--only: 'three' has no class 'cov'; the nearest is 'cow'; expected some of"):
        chosen_tags(three().tagged, ("cov",))
    with pytest.raises(UsageError, match="--only ant,ant: expected each class once"):
        chosen_tags(three().tagged, ("ant", "ant"))


def test_a_set_without_background_has_one_when_a_part_is_chosen() -> None:
    tissue = scenes("scenes:tissue?train=2&val=1&size=48")
    assert not tissue.has_background
    part = chosen(tissue, tissue.classes[1:3])
    assert part.has_background
    sample = part.ids[0]
    assert set(np.unique(part.mask(sample)).tolist()) <= {0, 1, 2, 255}


def test_a_folder_is_opened_with_some_classes(tmp_path: Path) -> None:
    folder = tiny.photos(tmp_path / "photos", count=6)
    whole = open_set(folder)
    assert whole.truth is not None
    one = whole.images.classes[1]
    part = open_set(folder, how=Reading(only=(one,)))
    assert part.truth is not None
    assert part.images.classes == (one,)
    assert part.images.ids == whole.images.ids
    assert part.layout.endswith(f"; only {one}")
    for sample in part.truth.ids:
        assert np.array_equal(part.truth.mask(sample) == 1, whole.truth.mask(sample) == 2)
    assert part.images.key != whole.images.key
    with pytest.raises(UsageError, match="--only"):
        open_set("scenes:basic?train=2&val=1", how=Reading(only=("moose",)))


# ---- masks of other classes out of a set that has the target's, too ----

def test_other_classes_of_a_set_that_has_the_targets_too() -> None:
    with pytest.raises(UsageError, match="the classes bee are among those that are asked for"):
        of_other_classes(three(), ("bee",))
    with pytest.raises(UsageError, match="the classes bee are among"):
        of_other_classes(three(), ("bee",), ("ant", "bee"))
    plain = of_other_classes(three(), ("bee",), ("ant", "cow"))
    assert plain.classes == ("ant", "cow")
    assert plain.mask("a").tolist() == [[0, 1], [0, 255]]
    dropped = of_other_classes(three(), ("ant",), ("bee", "cow"), "drop")
    assert dropped.tagged.ids == ("b", "c")  # "a" has an ant
    ignored = of_other_classes(three(), ("bee",), ("ant", "cow"), "ignore")
    assert ignored.mask("a").tolist() == [[0, 1], [255, 255]]
    assert {one.rest for one in (plain, dropped, ignored)} == {"background", "drop", "ignore"}
    assert of_other_classes(three(), ("fox",), ("ant",), "ignore").rest == "background"  # nothing of it was looked at
    with pytest.raises(UsageError, match="--aux-rest drop: found no --aux-only"):
        of_other_classes(three(), ("fox",), (), "drop")
