"""Files of maps from elsewhere: each kind by a hand-worked array, each fault by its reason, no code run."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagseg.data.map_files import BadMap, read_labels, read_map

HALF = np.full((2, 3, 4), 0.5, np.float32)
Write = Callable[[Path], object]


def test_arrays_come_back_as_float32(tmp_path: Path) -> None:
    for dtype in (np.float16, np.float32, np.float64):
        np.save(tmp_path / "a.npy", np.arange(24).reshape(2, 3, 4).astype(dtype) / 32)
        found = read_map(tmp_path / "a.npy")
        assert found.values.dtype == np.float32
        assert (found.values == np.arange(24).reshape(2, 3, 4) / 32).all()
        assert found.classes is None
    np.save(tmp_path / "a.npy", HALF[0])
    assert read_map(tmp_path / "a.npy").values.shape == (1, 3, 4)


def test_rounding_over_the_ends_is_cut(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[-5e-5, 1.00005]]))
    assert read_map(tmp_path / "a.npy").values.tolist() == [[[0.0, 1.0]]]


def test_npz_by_name_and_with_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", anything=HALF)
    assert read_map(tmp_path / "a.npz").classes is None
    np.savez(tmp_path / "a.npz", cam=HALF[:, ::2, ::2], high_res=HALF, keys=np.array([0, 7]))  # as IRN names them
    found = read_map(tmp_path / "a.npz")
    assert (found.values.shape, found.classes) == ((2, 3, 4), (1, 8))
    np.savez_compressed(tmp_path / "a.npz", probabilities=HALF, classes=np.array([0, 7]))
    assert read_map(tmp_path / "a.npz").classes == (0, 7)


@pytest.mark.parametrize(("values", "white"), [
    (np.array([[0, 51, 255]], np.uint8), 255), (np.array([[0, 13107, 65535]], np.uint16), 65535)])
def test_grey_png_by_its_depth(tmp_path: Path, values: np.ndarray, white: int) -> None:
    Image.fromarray(values).save(tmp_path / "a.png")
    assert read_map(tmp_path / "a.png").values == pytest.approx((values / white)[None], abs=1e-7)


def palette(path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 255]], np.uint8))
    image.putpalette([0, 0, 0, 200, 0, 0] * 128)
    image.save(path)


def cut(path: Path) -> None:
    np.save(path, HALF)
    path.write_bytes(path.read_bytes()[:-5])


BAD: list[tuple[str, Write, str]] = [
    ("a.npy", lambda p: np.save(p, HALF * 3), "range"),
    ("a.npy", lambda p: np.save(p, -HALF), "range"),
    ("a.npy", lambda p: np.save(p, np.where(HALF[0] < 1, np.nan, 0)), "not-finite"),
    ("a.npy", lambda p: np.save(p, HALF.astype(np.uint8)), "not-floats"),
    ("a.npy", lambda p: np.save(p, HALF[None]), "shape"),
    ("a.npy", lambda p: np.save(p, HALF[:, :0]), "shape"),
    ("a.npy", lambda p: np.save(p, np.zeros((256, 1, 1))), "shape"),
    ("a.npy", cut, "unreadable"),
    ("a.npy", lambda p: p.write_bytes(b""), "empty"),
    ("a.npy", lambda p: p.write_bytes(b"<html>not found</html>"), "not-an-array"),
    ("a.npz", lambda p: p.write_bytes(b"PK\x03\x04 and no more"), "unreadable"),
    ("a.npz", lambda p: np.savez(p, one=HALF, two=HALF), "arrays"),
    ("a.npz", lambda p: np.savez(p, keys=np.array([1])), "arrays"),
    ("a.npz", lambda p: np.savez(p, maps=HALF, keys=np.array([1])), "classes"),
    ("a.npz", lambda p: np.savez(p, maps=HALF, classes=np.array([3, 3])), "classes"),
    ("a.npz", lambda p: np.savez(p, maps=HALF, classes=np.array([-1, 3])), "classes"),
    ("a.npz", lambda p: np.savez(p, maps=HALF, classes=np.array(["cat", "dog"])), "classes"),
    ("a.png", lambda p: Image.new("RGB", (4, 3)).save(p), "colour"),
    ("a.png", palette, "palette"),
    ("a.png", lambda p: Image.new("L", (4, 3)).save(p, "JPEG"), "unreadable"),
    ("a.png", lambda p: p.write_bytes(b"<html>"), "not-an-image"),
]


@pytest.mark.parametrize(("name", "write", "reason"), BAD)
def test_each_fault_has_its_reason(tmp_path: Path, name: str, write: Write, reason: str) -> None:
    write(tmp_path / name)
    with pytest.raises(BadMap) as caught:
        read_map(tmp_path / name)
    assert caught.value.reason == reason
    assert name in str(caught.value)


class Touch:
    """Whoever unpickles this runs it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("kind", ["npy", "npz", "pickle"])
def test_a_pickled_dict_is_refused_and_not_run(tmp_path: Path, kind: str) -> None:
    load = {"keys": Touch(tmp_path / "ran"), "high_res": HALF}
    path = tmp_path / ("a.npz" if kind == "npz" else "a.npy")
    if kind == "pickle":
        path.write_bytes(pickle.dumps(load))
    elif kind == "npz":
        np.savez(path, maps=np.array(load, object))
    else:
        np.save(path, np.array(load, object))
    with pytest.raises(BadMap, match=r"numpy.savez\(NEW, maps=d\['high_res'\], keys=d\['keys'\]\)") as caught:
        read_map(path)
    assert caught.value.reason == "pickled"
    assert not (tmp_path / "ran").exists()


def test_labels_from_png_and_integers(tmp_path: Path) -> None:
    palette(tmp_path / "a.png")
    assert read_labels(tmp_path / "a.png").tolist() == [[0, 1, 255]]
    np.save(tmp_path / "a.npy", np.array([[0, 3, 255]], np.int64))
    assert read_labels(tmp_path / "a.npy").tolist() == [[0, 3, 255]]
    for wrong in (HALF[0], np.array([[0, 256]]), np.array([[-1, 0]]), np.zeros((1, 2, 2), np.int32)):
        np.save(tmp_path / "a.npy", wrong)
        with pytest.raises(BadMap) as caught:
            read_labels(tmp_path / "a.npy")
        assert caught.value.reason == "not-labels"
