"""Budgets, files and --set in their order; names and types checked; nothing in a file is ever executed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagseg import config
from tagseg.types import UsageError


@dataclass(frozen=True)
class Net:
    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {"quick": {"epochs": 1, "lr": 1}, "paper": {"epochs": 90}}
    epochs: int = 10
    lr: float = 0.1
    scales: tuple[float, ...] = (1.0,)
    crop: int | None = None
    flip: bool = True
    name: str = "auto"
    pool: Literal["mean", "max"] = "mean"
    device: str = "auto"
    workers: int = config.unkeyed(2)


@dataclass(frozen=True)
class Config:
    BUDGETS: ClassVar[dict[str, dict[str, Any]]] = {"quick": {"rounds": 1}}
    net: Net = Net()
    rounds: int = 3


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.yaml"


def loaded(file: Path, text: str, *sets: str) -> Config:
    file.write_text(text)
    return config.load(Config(), file, sets)


def test_a_file_sets_nested_values_of_all_types(file: Path) -> None:
    text = "rounds: 4\nnet:\n  lr: 1e-3\n  scales: [0.5, 1]\n  crop: 64\n  flip: false\n  name: vgg16\n  pool: max\n"
    assert loaded(file, text) == Config(Net(10, 0.001, (0.5, 1.0), 64, False, "vgg16", "max"), 4)
    assert loaded(file, "net.epochs: 2") == Config(Net(epochs=2))
    assert loaded(file, "net: {crop: null}") == loaded(file, "") == Config()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("net.scales=[]", ()),
        ("net.scales=[1, 2]", (1.0, 2.0)),
        ("net.crop=null", None),
        ("net.crop=7", 7),
        ("net.flip=no", False),
        ("net.name=a=b", "a=b"),
        ("net.name=", ""),
        ("net.lr=2", 2.0),
        (" net.epochs =5", 5),
        ("net.name=--value", "--value"),
    ],
)
def test_set(text: str, value: object) -> None:
    found = config.load(Config(), None, (text,))
    got = getattr(found.net, text.split("=")[0].strip().split(".")[1])
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("net.epochs=3.5", r"--set: net.epochs = '3.5': expected int"),
        ("net.epochs=true", "expected int"),
        ("net.epochs=", "expected int"),
        ("net.flip=1", "expected bool"),
        ("net.lr=fast", "expected float"),
        ("net.lr=nan", "expected float"),
        ("net.scales=1,2", r"expected tuple\[float, \.\.\.\] .*in brackets: 'net.scales=\[1,2\]'"),
        ("net.pool=median", "expected typing.Literal"),
        ("net.epoch=3", r"setting 'net.epoch' is unknown; did you mean net.epochs"),
        ("epochs=3", "did you mean net.epochs"),
        ("zzz=3", r"known settings: net.epochs, net.lr"),
        ("net=3", r"'net' is a group of settings; set one of them, for example net.epochs"),
        ("net.=3", "unknown"),
        (".net=3", "unknown"),
        ("=3", "unknown"),
        ("rounds.x=3", "unknown"),
        ("net.__class__=3", "unknown"),
        ("net.BUDGETS=3", "unknown"),
        ("rounds", "expected NAME=VALUE"),
    ],
)
def test_bad_settings(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config.load(Config(), None, (text,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("net: {epochs: 1.0}", r"settings.yaml: net.epochs = 1.0: expected int"),
        ("net: {name: 3}", "expected str"),
        ("net: {name: null}", "null is not accepted"),
        ("net: {scales: null}", "null is not accepted"),
        ("net: {name: 2020-02-30}", "not plain YAML"),
        ("net: 3", "group of settings"),
        ("rounds: {a: 1}", "'rounds.a' is unknown"),
        ("1: 2", "'1' is unknown"),
        ("- 1", "found a list, expected settings"),
        ("a: [", "not plain YAML"),
        ("\x00", "not plain YAML"),
        ("a: &a [1]\nb: [*a, *a]", "anchors and aliases"),
        ("[" * 5000, "nested too deeply"),
        ("\n".join(" " * n + "a:" for n in range(500)), "nested too deeply"),
        ("x: " + "1" * config.MAX_CONFIG_BYTES, "too long, expected at most 1000000 bytes"),
    ],
)
def test_bad_files(file: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        loaded(file, text)
    assert str(file) in str(caught.value) or "unknown" in message


def test_an_alias_bomb_is_refused_at_once(file: Path) -> None:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 40))
    start = time.perf_counter()
    with pytest.raises(UsageError, match="anchors"):
        loaded(file, bomb)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.mkdir ['{path}']",
        "rounds: !!python/object/apply:os.mkdir ['{path}']",
        "rounds: !!python/object/new:os.mkdir {args: ['{path}']}",
        "rounds: !!python/name:os.mkdir",
        "net: {name: '!!python/object/apply:os.mkdir [{path}]'}",
        "rounds: '!!python/object/apply:os.mkdir [\"{path}\"]'",
    ],
)
def test_python_tags_execute_nothing(file: Path, text: str) -> None:
    trap = file.parent / "executed"
    try:
        loaded(file, text.replace("{path}", str(trap)))
    except UsageError:
        pass
    else:
        assert "name: '" in text  # as a plain text it is a value like any other
    assert not trap.exists()


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"net: {name: \xe9}")
    for place in (tmp_path, tmp_path / "none", tmp_path / "latin"):
        with pytest.raises(UsageError, match=f"--config {place}: cannot be read"):
            config.load(Config(), place)


def test_a_byte_order_mark_is_not_a_name(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbfrounds: 5")
    assert config.load(Config(), file).rounds == 5


def test_budget_then_file_then_set(file: Path) -> None:
    quick = config.with_budget(Config(), "quick")
    assert (quick.rounds, quick.net.epochs, quick.net.lr) == (1, 1, 1)
    assert config.with_budget(Config(), "standard") == Config()
    assert config.with_budget(Config(), "paper").net == Net(epochs=90)
    file.write_text("net: {epochs: 5, lr: 0.5}")
    found = config.load(quick, file, ("net.lr=0.25",))
    assert (found.rounds, found.net.epochs, found.net.lr) == (1, 5, 0.25)
    with pytest.raises(UsageError, match="expected one of quick, standard, paper"):
        config.with_budget(Config(), "fast")


def test_the_last_set_wins() -> None:
    assert config.load(Config(), None, ("rounds=5", "rounds=6")).rounds == 6


def test_resolve_changes_only_auto() -> None:
    found = config.resolve(Config(), {"device": "cpu"})
    assert found.net == Net(device="cpu")  # `name` says auto too, but was not named
    assert config.resolve(config.replace(Config(), "net.device", "cuda"), {"device": "cpu"}).net.device == "cuda"


def test_canonical_form() -> None:
    form = config.canonical(Config())
    assert "workers" not in form["net"]
    assert form["net"]["scales"] == [1]
    assert form["rounds"] == 3
    assert config.canonical({"b": 1, "a": (2.5, None)}) == {"a": [2.5, None], "b": 1}
    with pytest.raises(UsageError, match=r"type (Posix)?Path"):
        config.canonical(Path("x"))


@given(st.integers(-(2**40), 2**40))
def test_equal_numbers_have_one_canonical_form(number: int) -> None:
    assert repr(config.canonical(float(number))) == repr(config.canonical(number))


def test_leaves() -> None:
    found = {name: keyed for name, _, keyed in config.leaves(Config())}
    assert list(found)[:2] == ["net.epochs", "net.lr"]
    assert list(found)[-1] == "rounds"
    assert [name for name, keyed in found.items() if not keyed] == ["net.workers"]
