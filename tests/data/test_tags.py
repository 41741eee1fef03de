"""Each doubtful line of a tags file has its own message, with line number and nearest name."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tagseg.data.tags import TagTable, rare_classes, read_classes, read_tags
from tagseg.types import DataError, UsageError

NAMES = {"a.jpg": "a", "b.jpg": "b", "c d.jpg": "c d"}


def table(tmp_path: Path, text: str | bytes, classes: Sequence[str] | None = None) -> TagTable:
    path = tmp_path / "tags.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_tags(path, lambda name: NAMES.get(name) or (name if name in NAMES.values() else None), NAMES, classes)


def error(tmp_path: Path, text: str | bytes, classes: Sequence[str] | None = None) -> str:
    with pytest.raises(DataError) as caught:
        table(tmp_path, text, classes)
    return str(caught.value)


def test_both_separators_and_empty_is_negative(tmp_path: Path) -> None:
    found = table(tmp_path, "file,tags\na.jpg,dog;cat\nb.jpg,\nc d,cat | dog\n")
    assert found.classes == ("cat", "dog")
    assert found.rows == {"a": {"cat", "dog"}, "b": frozenset(), "c d": {"cat", "dog"}}
    assert found.warnings == ()


def test_one_column_a_class(tmp_path: Path) -> None:
    found = table(tmp_path, "file,dog,cat\na.jpg,1,0\nb.jpg,0, 0\n")
    assert (found.classes, dict(found.rows)) == (("cat", "dog"), {"a": frozenset({"dog"}), "b": frozenset()})
    assert ":2: found '2' in column 'dog', expected 0 or 1" in error(tmp_path, "file,dog,cat\na.jpg,2,0\n")
    assert "columns with one name: dog" in error(tmp_path, "file,dog,dog\na.jpg,1,0\n")
    assert "without a name" in error(tmp_path, "file,dog,\na.jpg,1,0\n")


def test_class_list_gives_the_order_and_refuses_others(tmp_path: Path) -> None:
    assert table(tmp_path, "file,tags\na.jpg,cat\n", ("dog", "cat")).classes == ("dog", "cat")
    message = error(tmp_path, "file,tags\na.jpg,cat\nb.jpg,Dog\n", ("dog", "cat"))
    assert ":3: tag 'Dog' is not in the class list; the nearest is 'dog'" in message
    assert "the nearest is 'traffic light'" in error(tmp_path, "file,tags\na.jpg,traffic_light\n", ("traffic light",))
    assert "the classes are dog" in error(tmp_path, "file,tags\na.jpg,xyz\n", ("dog",))


def test_byte_order_mark_line_ends_and_unicode_forms(tmp_path: Path) -> None:
    found = table(tmp_path, "\ufefffile,tags\r\na.jpg,cafe\u0301\r\nb.jpg,caf\u00e9\r\n".encode())
    assert found.classes == ("caf\u00e9",)
    assert len(found.rows) == 2


def test_other_delimiters(tmp_path: Path) -> None:
    assert table(tmp_path, "file;tags\na.jpg;dog|cat\n").rows["a"] == {"dog", "cat"}
    assert table(tmp_path, "file\ttags\na.jpg\tdog;cat\n").rows["a"] == {"dog", "cat"}
    assert "found 3 cells, expected 2; split several tags by ; or |" in error(tmp_path, "file,tags\na.jpg,dog,cat\n")


def test_rows_without_image(tmp_path: Path) -> None:
    found = table(tmp_path, "file,tags\na.jpg,dog\nc_d.jpg,dog\n")
    assert len(found.warnings) == 1
    assert ":3: no image 'c_d.jpg'; the nearest is 'c d.jpg'" in found.warnings[0]
    many = table(tmp_path, "file,tags\na.jpg,dog\n" + "".join(f"x{i}.jpg,dog\n" for i in range(3000)))
    assert len(many.warnings) == 11
    assert "3000 rows in all" in many.warnings[-1]
    assert "no row names an image" in error(tmp_path, "file,tags\nz.jpg,dog\n")


def test_repeated_rows(tmp_path: Path) -> None:
    found = table(tmp_path, "file,tags\na.jpg,dog;cat\na,cat;dog\n")
    assert ":3: 'a' stands on line 2 already" in found.warnings[0]
    message = error(tmp_path, "file,tags\na.jpg,dog\na.jpg,cat\n")
    assert ":3: 'a.jpg' has 'cat' here and 'dog' on line 2" in message
    assert "tag 'dog' stands twice" in table(tmp_path, "file,tags\na.jpg,dog;dog\n").warnings[0]


def test_names_that_differ_in_case_only(tmp_path: Path) -> None:
    assert ":3: tag 'Dog' differs from 'dog' (line 2)" in error(tmp_path, "file,tags\na.jpg,dog\nb.jpg,Dog\n")
    assert table(tmp_path, "file,tags\na.jpg,dog\nb.jpg,Dog\n", ("dog", "Dog")).classes == ("dog", "Dog")


def test_background_is_no_tag(tmp_path: Path) -> None:
    assert "not a tag" in error(tmp_path, "file,tags\na.jpg,Background\n")


def test_all_errors_come_at_once_and_are_capped(tmp_path: Path) -> None:
    message = error(tmp_path, "file,tags\n" + "a.jpg,x\n" * 30, ("dog",))
    assert message.count("not in the class list") == 10
    assert "... and 20 more" in message


def test_line_numbers_count_lines_within_quotes(tmp_path: Path) -> None:
    assert ":4: tag 'x'" in error(tmp_path, 'file,tags\n"a\nb.jpg",dog\na.jpg,x\n', ("dog",))


@pytest.mark.parametrize(("content", "expected"), [
    (b"", "the first line is"), (b"a.jpg,dog\n", "the first line is 'a.jpg,dog'"), (b"file\n", "the first line is"),
    (b"<!DOCTYPE html><html>", "HTML"), (b"PK\x03\x04\0\0\0", "binary"), ("file,tags\n".encode("utf-16"), "UTF-16"),
    (b"file,tags\na.jpg,\xe9t\xe9\n", ":2: found bytes that are not UTF-8"), (b'file,tags\n"a.jpg,dog\n', ":2:"),
    (b"file,tags\n", "no row names an image"), (b"file,tags\na.jpg,\n", "every tag field is empty"),
])
def test_files_that_are_no_table(tmp_path: Path, content: bytes, expected: str) -> None:
    assert expected in error(tmp_path, content)


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.csv"):
        read_tags(tmp_path / "nowhere.csv", lambda name: name, [])


def test_rare_classes() -> None:
    rows = {"a": frozenset({"x"}), "b": frozenset({"x", "y"})}
    warnings = rare_classes(TagTable(("x", "y", "z"), rows), ["a", "b"])
    assert [w.split(",")[0] for w in warnings] == ["class 'y' has 1 image", "class 'z' has 0 images"]


def test_class_list(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("\ufeffdog\n\n cat \n")
    assert read_classes(path) == ("dog", "cat")
    for text, expected in (("dog\ndog\n", ":2: class 'dog' stands on line 1"), ("background\n", ":1: 'background'"),
                           ("", "found 0 classes"), ("\n".join(map(str, range(255))), "found 255 classes")):
        path.write_text(text)
        with pytest.raises(DataError, match=expected):
            read_classes(path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=80), st.text("abfilet,;|\"\n\r\t01 ", max_size=80).map(str.encode)))
def test_any_bytes_give_a_table_or_a_typed_error(tmp_path: Path, content: bytes) -> None:
    for prefix in (b"", b"file,tags\n", b"file,x,y\na,1,1\n"):
        with contextlib.suppress(DataError):
            found = table(tmp_path, prefix + content)
            assert all(tags <= set(found.classes) for tags in found.rows.values())
