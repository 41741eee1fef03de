"""Folders as people have them: every layout, name and broken file either works or is listed with its reason."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagseg.data.folder import Opened, Reading, open_images, open_set
from tagseg.data.images import mask_reads, reset_mask_reads
from tagseg.types import DataError, UsageError

LENIENT = Reading(max_bad=0.9)


def photo(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (value, 0, 0)).save(path)
    return path


def mask(path: Path, value: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (6, 4), value).save(path)
    return path


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for k, name in enumerate(("a.jpg", "b.png", "sub/c.JPG", "d.bmp")):
        photo(root / "images" / name, k)
    (root / "tags.csv").write_text("file,tags\na.jpg,dog\nb.png,dog;cat\nsub/c.JPG,\n")
    mask(root / "masks" / "a.png")
    mask(root / "masks" / "sub" / "c.png", 0)
    (root / "splits").mkdir()
    (root / "splits" / "train.txt").write_text("a\nsub/c.JPG\n")
    (root / "splits" / "val.txt").write_text("b.png\r\n\r\n")
    return root


def rows(opened: Opened) -> dict[str, str]:
    return {file.path: file.reason for file in opened.bad}


# ---- the plain layout ----

def test_plain_layout(plain: Path) -> None:
    opened = open_set(plain)
    assert opened.images.ids == ("a", "b", "d", "sub/c")
    assert opened.images.classes == ("cat", "dog")
    assert opened.images.tags.tolist() == [[False, True], [True, True], [False, False], [False, False]]
    assert opened.images.tagged.tolist() == [True, True, False, True]
    assert opened.images.training().ids == ("a", "b", "sub/c")
    assert opened.truth is not None
    assert opened.truth.ids == ("a", "sub/c")
    assert opened.truth.sample("a").mask.max() == 1
    assert opened.layout == "images in images/ and tags in tags.csv"
    assert any("1 images have no tag row" in w and ": d" in w for w in opened.warnings)
    assert any("class 'cat' has 1 image" in w for w in opened.warnings)


def test_opening_and_keying_read_no_mask(plain: Path) -> None:
    reset_mask_reads()
    opened = open_set(plain)
    assert opened.images.key
    opened.images.sample("a")
    assert mask_reads() == ()
    assert opened.truth is not None
    opened.truth.mask("a")
    assert mask_reads() == (str(plain.resolve() / "masks" / "a.png"),)
    reset_mask_reads()


def test_splits_accept_both_forms(plain: Path) -> None:
    assert open_set(plain, ("train",)).images.ids == ("a", "sub/c")
    assert open_set(plain, ("train", "val")).images.ids == ("a", "b", "sub/c")
    assert open_set(plain, ("val",)).truth is None


def test_unknown_splits_name_the_known(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'trian' is unknown; the nearest is 'train'; there are train, val"):
        open_set(plain, ("trian",))
    with pytest.raises(UsageError, match="unknown"):
        open_set(plain, ("../train",))
    (plain / "splits" / "train.txt").unlink()
    (plain / "splits" / "val.txt").unlink()
    with pytest.raises(UsageError, match="leave the split out"):
        open_set(plain, ("train",))


def test_a_split_line_without_image_is_a_bad_file(plain: Path) -> None:
    (plain / "splits" / "train.txt").write_text("a\na.jpg\nsub/d.JPG\n")
    opened = open_set(plain, ("train",), LENIENT)
    assert opened.images.ids == ("a",)
    assert opened.bad[0].reason == "missing"
    assert opened.bad[0].detail == "listed in splits/train.txt:3; the nearest is 'sub/c.JPG'"
    assert any("train.txt:2: 'a.jpg' is listed already" in w for w in opened.warnings)


def test_images_beside_the_table_and_a_table_elsewhere(plain: Path, tmp_path: Path) -> None:
    (plain / "images" / "a.jpg").rename(plain / "x.jpg")
    (plain / "tags.csv").write_text("file,tags\nx.jpg,dog\n")
    with pytest.raises(DataError, match="no row names an image"):
        open_set(plain)
    flat, table = tmp_path / "flat", tmp_path / "elsewhere.csv"
    photo(flat / "x.jpg")
    mask(flat / "masks" / "x.png")
    table.write_text("file,tags\nimages/x.jpg,dog\n")
    opened = open_set(flat, None, Reading(tags=table))
    assert (opened.images.ids, opened.images.classes) == (("x",), ("dog",))
    assert opened.truth is not None


def test_class_list_fixes_the_order(plain: Path) -> None:
    (plain / "classes.txt").write_text("dog\ncat\nbird\n")
    opened = open_set(plain)
    assert opened.images.classes == ("dog", "cat", "bird")
    assert any("class 'bird' has 0 images" in w for w in opened.warnings)


def test_negative_folders_need_no_rows(plain: Path) -> None:
    photo(plain / "images" / "clean" / "n.jpg")
    opened = open_set(plain, None, Reading(negative=("clean",)))
    row = opened.images.ids.index("clean/n")
    assert opened.images.tagged[row]
    assert not opened.images.tags[row].any()
    with pytest.raises(UsageError, match=r"'claen' holds no image; the nearest is 'clean'"):
        open_set(plain, None, Reading(negative=("claen",)))
    with pytest.raises(UsageError, match="holds no image"):
        open_set(plain, None, Reading(negative=("..",)))
    (plain / "tags.csv").write_text("file,tags\na.jpg,dog\nclean/n.jpg,dog\n")
    with pytest.raises(DataError, match="'clean/n' lies in a negative folder and has tags"):
        open_set(plain, None, Reading(negative=("clean",)))


def test_limit_is_the_same_each_time(plain: Path) -> None:
    assert open_set(plain, None, Reading(limit=2)).images.ids == open_set(plain, None, Reading(limit=2)).images.ids
    assert len(open_set(plain, None, Reading(limit=2)).images) == 2


def test_nothing_is_written_and_a_moved_folder_is_the_same_set(plain: Path, tmp_path: Path) -> None:
    before = sorted((p.relative_to(plain), p.stat().st_mtime_ns) for p in plain.rglob("*"))
    key = open_set(plain).images.key
    assert sorted((p.relative_to(plain), p.stat().st_mtime_ns) for p in plain.rglob("*")) == before
    moved = plain.rename(tmp_path / "moved")
    for path in moved.rglob("*"):
        os.utime(path, (0, 0))
    assert open_set(moved).images.key == key


def test_masks_without_images_and_other_files(plain: Path) -> None:
    mask(plain / "masks" / "zz.png")
    (plain / "masks" / "a.npy").write_bytes(b"x")
    warnings = " ".join(open_set(plain).warnings)
    assert "1 masks have no image in masks/, the first is 'zz'" in warnings
    assert "1 files that are no .png in masks/" in warnings


# ---- one folder a class ----

def test_class_folders(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for k, name in enumerate(("dog/a.jpg", "dog/deep/b.jpg", "cat/a.jpg", "clean/c.jpg", "stray.jpg")):
        photo(root / name, k)
    mask(root / "masks" / "dog" / "a.png")
    opened = open_set(root, None, Reading(negative=("clean",)))
    assert opened.images.classes == ("cat", "dog")
    assert opened.images.ids == ("cat/a", "clean/c", "dog/a", "dog/deep/b", "stray")
    assert opened.images.tags.sum(1).tolist() == [1, 0, 1, 1, 0]
    assert opened.images.tagged.tolist() == [True, True, True, True, False]
    assert opened.truth is not None
    assert opened.truth.ids == ("dog/a",)
    assert opened.layout == "one folder for each class: cat, dog"
    (root / "classes.txt").write_text("dog\ncat\n")
    with pytest.raises(DataError, match="folder 'clean' is not in the list"):
        open_set(root)
    assert open_set(root, None, Reading(negative=("clean",))).images.classes == ("dog", "cat")


def test_folders_without_tags(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"1 images and no tags, expected tags\.csv"):
        open_set(tmp_path)
    opened = open_images(tmp_path, ("dog", "cat"))
    assert (opened.images.ids, opened.images.classes, opened.truth) == (("a",), ("dog", "cat"), None)
    assert not opened.images.tagged.any()
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(DataError, match="found no image"):
        open_set(tmp_path)
    (tmp_path / "photos").mkdir()
    with pytest.raises(UsageError, match=r"found nothing, expected a folder of images; is it 'photos'"):
        open_set(tmp_path / "photo")


def test_background_is_no_class_folder(tmp_path: Path) -> None:
    photo(tmp_path / "dog" / "a.jpg")
    photo(tmp_path / "background" / "a.jpg", 1)
    with pytest.raises(DataError, match="name its folder as negative"):
        open_set(tmp_path)
    assert open_set(tmp_path, None, Reading(negative=("background",))).images.classes == ("dog",)


# ---- names ----

@pytest.mark.parametrize("name", ["caf\u00e9", "two words", " lead", "a#b?c%20d", "line\nbreak", "-dash", "x" * 250,
                                  "dots.in.name", "quote'\"", "\u65e5\u672c", "a;b|c", "a,b"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_of_all_kinds(tmp_path: Path, name: str, form: str) -> None:
    on_disk = unicodedata.normalize(form, name)
    photo(tmp_path / "images" / f"{on_disk}.jpg")
    mask(tmp_path / "masks" / f"{unicodedata.normalize('NFD', name)}.png")
    listed = unicodedata.normalize("NFC", name).replace('"', '""')
    (tmp_path / "tags.csv").write_text(f'file,tags\n"{listed}.jpg",dog\n')
    opened = open_set(tmp_path)
    assert opened.images.ids == (unicodedata.normalize("NFC", name),)
    assert opened.images.tagged.all()
    assert opened.truth is not None
    assert opened.truth.sample(opened.images.ids[0]).image.shape == (3, 4, 6)


def test_a_file_name_wins_over_an_id_of_the_same_text(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    photo(tmp_path / "a.jpg.png", 1)  # its id is 'a.jpg'
    (tmp_path / "tags.csv").write_text("file,tags\na.jpg,dog\na.jpg.png,cat\n")
    opened = open_set(tmp_path)
    assert opened.images.ids == ("a", "a.jpg")
    assert opened.images.tags.tolist() == [[False, True], [True, False]]


def test_two_files_with_one_id(plain: Path) -> None:
    photo(plain / "images" / "a.png")
    with pytest.raises(DataError, match=r"'images/a\.jpg' and 'images/a\.png'"):
        open_set(plain)


def test_two_unicode_forms_of_one_name(plain: Path) -> None:
    for form in ("NFC", "NFD"):
        photo(plain / "images" / (unicodedata.normalize(form, "caf\u00e9") + ".jpg"))
    with pytest.raises(DataError, match="two files with one id"):
        open_set(plain)


def test_a_name_that_is_no_text(plain: Path) -> None:
    path = os.fsencode(plain / "images") + b"/\xff.jpg"
    Path(os.fsdecode(path)).write_bytes((plain / "images" / "a.jpg").read_bytes())
    opened = open_set(plain, None, LENIENT)
    assert rows(opened) == {"images/\\udcff.jpg": "name-not-utf8"}


# ---- broken, hidden and linked files ----

def test_bad_files_are_left_out_and_listed(plain: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(plain / "images" / "cut.jpg")
    whole = (plain / "images" / "cut.jpg").read_bytes()
    for name, content in (("cut.jpg", whole[:-200]), ("empty.png", b""), ("page.jpg", b"<html>")):
        (plain / "images" / name).write_bytes(content)
    for name in ("Thumbs.db", ".hidden.jpg", "readme.txt"):
        (plain / "images" / name).write_bytes(b"x")
    os.mkfifo(plain / "images" / "pipe.jpg")
    opened = open_set(plain, None, LENIENT)
    assert opened.images.ids == ("a", "b", "d", "sub/c")
    assert rows(opened) == {"images/cut.jpg": "truncated", "images/empty.png": "empty",
                            "images/page.jpg": "not-an-image", "images/pipe.jpg": "not-a-file"}
    assert {file.path: file.reason for file in opened.ignored} == {
        "images/.hidden.jpg": "hidden", "images/Thumbs.db": "not-an-image-name",
        "images/readme.txt": "not-an-image-name"}
    with pytest.raises(DataError) as caught:
        open_set(plain)
    assert "4 of 8 images cannot be used, expected at most 1.0%" in str(caught.value)
    assert "'images/cut.jpg': truncated" in str(caught.value)


def test_the_share_of_bad_files_is_a_limit_not_a_count(tmp_path: Path) -> None:
    for k in range(9):
        photo(tmp_path / "dog" / f"{k}.jpg", k)
    (tmp_path / "dog" / "bad.jpg").write_bytes(b"")
    assert len(open_set(tmp_path, None, Reading(max_bad=0.1)).images) == 9
    with pytest.raises(DataError, match="1 of 10"):
        open_set(tmp_path, None, Reading(max_bad=0.09))


def test_only_the_opened_split_is_judged(plain: Path) -> None:
    (plain / "images" / "b.png").write_bytes(b"")
    assert open_set(plain, ("train",)).bad == ()
    with pytest.raises(DataError, match="at least one good one"):
        open_set(plain, ("val",), Reading(max_bad=1.0))


def test_links_out_of_the_folder_need_leave(plain: Path, tmp_path: Path) -> None:
    outside = photo(tmp_path / "outside" / "e.jpg", 9)
    photo(tmp_path / "outside" / "deep" / "f.jpg", 8)
    (plain / "images" / "e.jpg").symlink_to(outside)
    (plain / "images" / "more").symlink_to(outside.parent)
    (plain / "images" / "again").symlink_to(plain / "images" / "sub")
    (plain / "images" / "b_link.png").symlink_to(plain / "images" / "b.png")
    (plain / "images" / "gone.jpg").symlink_to(plain / "images" / "nowhere.jpg")
    opened = open_set(plain, None, LENIENT)
    assert opened.images.ids == ("a", "b", "b_link", "d", "sub/c")
    assert rows(opened) == {"images/e.jpg": "link-outside", "images/more": "link-outside", "images/gone.jpg": "missing"}
    assert ("images/again", "link-inside") in [(file.path, file.reason) for file in opened.ignored]
    followed = open_set(plain, None, Reading(max_bad=0.9, follow_links=True))
    assert {"e", "more/e", "more/deep/f"} <= set(followed.images.ids)


def test_links_in_a_circle_end(plain: Path) -> None:
    (plain / "images" / "sub" / "up").symlink_to(plain / "images")
    assert len(open_set(plain, None, Reading(follow_links=True)).images) == 4


def test_an_image_folder_that_is_itself_a_link_out(plain: Path, tmp_path: Path) -> None:
    (plain / "images").rename(tmp_path / "real")
    (plain / "images").symlink_to(tmp_path / "real")
    with pytest.raises(DataError, match="--follow-links"):
        open_set(plain)
    assert len(open_set(plain, None, Reading(follow_links=True)).images) == 4


def test_a_mask_that_fits_only_the_photo_before_its_rotation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    Image.new("RGB", (6, 4)).save(tmp_path / "images" / "a.jpg", exif=exif.tobytes())
    mask(tmp_path / "masks" / "a.png")
    (tmp_path / "tags.csv").write_text("file,tags\na.jpg,dog\n")
    opened = open_set(tmp_path)
    assert opened.images.source.size("a") == (6, 4)
    assert opened.truth is not None
    with pytest.raises(DataError, match=r"found 4x6 \(HxW\), expected the image's 6x4; .*EXIF"):
        opened.truth.sample("a")


def test_each_file_is_read_once_for_check_size_and_digest(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tagseg.data import files, images

    opened_paths: list[str] = []
    original = images.read_bytes

    def counted(path: str | Path, max_pixels: int = images.MAX_PIXELS) -> bytes:
        opened_paths.append(str(path))
        return original(path, max_pixels)

    monkeypatch.setattr(images, "read_bytes", counted)
    monkeypatch.setattr(files, "read_bytes", counted)
    opened = open_set(plain)
    assert opened.images.key
    assert opened.images.source.size("a") == (4, 6)
    assert len(opened_paths) == len(set(opened_paths)) == 4


def test_generated_sets_open_alike() -> None:
    opened = open_set("scenes:basic?train=3&val=2&size=32", ("val",))
    assert (len(opened.images), opened.bad) == (2, ())
    assert opened.truth is not None


# ---- real sets ----

@pytest.mark.data
@pytest.mark.parametrize(("name", "split", "count", "classes"), [("things", "val", 100, 6)])
def test_real_sets_open_without_a_word(shared: Path, name: str, split: str, count: int, classes: int) -> None:
    opened = open_set(shared / "data" / name, (split,))
    assert (len(opened.images), len(opened.images.classes), opened.bad, opened.warnings) == (count, classes, (), ())
    assert opened.truth is not None
    for id in opened.truth.ids[::10]:
        sample = opened.truth.sample(id)
        named = set((np.flatnonzero(sample.tags) + 1).tolist())
        assert set(np.unique(sample.mask).tolist()) - {0, 255} <= named
