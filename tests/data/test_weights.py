"""Weights come from the first place that has them, never from chance, and never run code."""

from __future__ import annotations

import hashlib
import os
import pickle
import urllib.error
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tagseg.data import weights
from tagseg.data.weights import find
from tagseg.types import EnvironmentFault, IntegrityError, UsageError

STATE = {"conv.weight": torch.arange(4.0).reshape(2, 2), "conv.bias": torch.zeros(2)}


def never(name: str) -> Path:
    raise AssertionError(f"the network was asked for {name}")


@pytest.fixture(autouse=True)
def _no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(weights.VARIABLE, raising=False)


def stored(path: Path, scale: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value * scale for key, value in STATE.items()}, path)
    return path


def test_a_file_a_folder_and_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, inside = stored(tmp_path / "any.safetensors"), stored(tmp_path / "folder" / "net.safetensors", 2.0)
    found = find(file, expected="net", fetch=never)
    assert found.identity == found.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert torch.equal(found.state["conv.weight"], STATE["conv.weight"])
    assert find(tmp_path / "folder", expected="net", fetch=never).source == str(inside)
    monkeypatch.setenv(weights.VARIABLE, str(inside.parent))
    assert find(None, expected="net", fetch=never).source == str(inside)
    assert find(file, expected="net", fetch=never).source == str(file)  # what is named wins


def test_the_network_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(weights.VARIABLE, str(tmp_path))
    found = find(None, expected="net", fetch=lambda name: stored(tmp_path / "cache" / f"{name}.safetensors"))
    assert found.source.endswith("net.safetensors")


def test_a_named_place_without_the_file_is_an_error_not_a_download(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"no such file or folder"):
        find(tmp_path / "absent.safetensors", expected="net", fetch=never)
    with pytest.raises(EnvironmentFault, match=r"no net\.safetensors.*--weights none"):
        find(tmp_path, expected="net", fetch=never)
    (tmp_path / "net.bin").write_bytes(b"x")
    with pytest.raises(UsageError, match="suffix"):
        find(tmp_path / "net.bin", expected="net", fetch=never)


def test_random_only_when_asked_for(tmp_path: Path) -> None:
    for word in ("none", "random"):
        found = find(word, expected="vgg16", fetch=never)
        assert found.is_random
        assert (found.state, found.identity) == ({}, "random")
    assert find(None, expected="small", fetch=never).is_random
    assert not find(stored(tmp_path / "small.safetensors"), expected="small", fetch=never).is_random


def test_no_network_says_what_to_get_and_where_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(*args: object, **options: object) -> None:
        raise urllib.error.URLError("network is unreachable")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(EnvironmentFault) as caught:
        find(None, expected="vgg16")
    message = str(caught.value)
    for part in ("vgg16.safetensors", "sha256 begins with 397923af", "TAGSEG_WEIGHTS", "unreachable", "--weights none"):
        assert part in message
    assert caught.value.exit_code == 4


def test_no_network_for_a_timm_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str) -> Path:
        raise OSError("network is unreachable")

    with pytest.raises(EnvironmentFault, match=r"resnet50\.safetensors.*huggingface\.co/timm/resnet50"):
        find(None, expected="resnet50", fetch=offline)


def test_a_cached_public_file_is_checked_against_the_hash_in_its_name(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "vgg16-397923af.pth").write_bytes(b"something else")
    with pytest.raises(IntegrityError, match=r"sha256 is .*expected 397923af"):
        find(None, expected="vgg16")


def test_names_are_names() -> None:
    for name in ("../secret", "a/b", "", "-x"):
        with pytest.raises(UsageError, match="expected a name"):
            find(None, expected=name, fetch=never)
    with pytest.raises(UsageError, match="torchvision has no weights"):
        find(None, expected="vgg_nonsense")
    with pytest.raises(UsageError, match="timm has no weights"):
        find(None, expected="nonsense_net")


class Malicious:
    """A pickle that would create a file when loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("wrap", [lambda bad: bad, lambda bad: {"state_dict": {"a": bad}}])
@pytest.mark.parametrize("plain", [True, False])
def test_a_malicious_pickle_is_refused(tmp_path: Path, wrap: object, plain: bool) -> None:
    target, path = tmp_path / "touched", tmp_path / "net.pth"
    content = wrap(Malicious(target))  # type: ignore[operator]
    if plain:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(UsageError, match="refused, it holds more than tensors"):
        find(path, expected="net", fetch=never)
    assert not target.exists()
    pickle.loads(pickle.dumps(content))  # the trap itself works
    assert target.exists()


def test_old_files_of_tensors_load(tmp_path: Path) -> None:
    for name, content in (("plain", STATE), ("wrapped", {"state_dict": STATE, "epoch": 3})):
        torch.save(content, tmp_path / f"{name}.pth")
        found = find(tmp_path / f"{name}.pth", expected="net", fetch=never)
        assert torch.equal(found.state["conv.weight"], STATE["conv.weight"])
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UsageError, match="expected a state dict"):
        find(tmp_path / "list.pth", expected="net", fetch=never)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_cut_files_are_damaged(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"net.{suffix}"
    if suffix == "pth":
        torch.save(STATE, path)
    else:
        stored(path)
    data = path.read_bytes()
    path.write_bytes(data[:int(len(data) * share)])
    with pytest.raises((IntegrityError, UsageError)) as caught:
        find(path, expected="net", fetch=never)
    assert str(path) in str(caught.value)


def test_wrong_hash_and_broken_numbers(tmp_path: Path) -> None:
    path = stored(tmp_path / "net.safetensors")
    with pytest.raises(IntegrityError, match="expected 0000"):
        find(path, expected="net", sha256="0" * 64, fetch=never)
    save_file({"a": torch.tensor([1.0, float("nan")])}, path)
    with pytest.raises(IntegrityError, match="NaN or Inf in 'a'"):
        find(path, expected="net", fetch=never)
    save_file({}, path)
    with pytest.raises(IntegrityError, match="no tensor"):
        find(path, expected="net", fetch=never)


def test_the_development_weights(shared: Path) -> None:
    found = find(shared / "weights", expected="squeezenet1_1", fetch=never,
                 sha256="cb684d3da109cd663dc399b66970082f4ecb27c8702be38df596ae9087e915cb")
    assert len(found.state) == 52
