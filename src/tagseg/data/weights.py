"""Pretrained weights by name or path: local files first, identity from their bytes, and never random in silence."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor

from tagseg.types import EnvironmentFault, IntegrityError, UsageError

VARIABLE = "TAGSEG_WEIGHTS"
RANDOM = ("none", "random")
_SUFFIXES = (".safetensors", ".pth", ".pt")
_TIMM = "timm:"
_UNTRAINED = ("small",)  # backbones of which no trained weights exist
_OURS_FROM_TORCHVISION = ("vgg", "squeezenet", "mobilenet_v2")  # with torchvision's key names; the rest is timm's


@dataclass(frozen=True, eq=False)
class Pretrained:
    """Weights as they came: `state` name -> tensor (empty for a random start), `source` in words, sha256 of the file.

    `identity` is what enters a stage's key: the file's content, or "random".
    """

    name: str
    source: str
    sha256: str
    state: dict[str, Tensor]

    @property
    def identity(self) -> str:
        return self.sha256

    @property
    def key(self) -> str:
        return self.identity

    @property
    def start(self) -> dict[str, Tensor] | None:
        """What a network is built from: the tensors, or None for a random start."""
        return None if self.is_random else self.state

    @property
    def is_random(self) -> bool:
        return self.sha256 == "random"


def find(weights: str | Path | None, *, expected: str, sha256: str | None = None,
         fetch: Callable[[str], Path] | None = None) -> Pretrained:
    """Weights for the backbone `expected`, from the first of these places.

    1. `weights`: a file, or a folder that holds EXPECTED.safetensors (.pth, .pt); "none" asks for a random start.
    2. the folder named by TAGSEG_WEIGHTS.
    3. torchvision's or timm's cache, or their download.
    `weights` given and not usable is an error: the other places are not tried. Errors: `EnvironmentFault` where nothing
    is found, naming the file and where to put it; `UsageError` for files that hold anything but tensors;
    `IntegrityError` for damaged files or another `sha256` than asked for.
    """
    _check_name(expected)
    if str(weights) in RANDOM or (weights is None and expected in _UNTRAINED):
        return Pretrained(expected, "random start", "random", {})
    if weights is not None:
        path = _given(Path(weights).expanduser(), expected)
        return _checked(load_file(path, expected), sha256)
    path_or_none = _from_variable(expected)
    if path_or_none is None:
        path_or_none = _fetched(expected, fetch or download)
    return _checked(load_file(path_or_none, expected), sha256)


def load_file(path: Path, name: str) -> Pretrained:
    """Read a .safetensors or .pth file of tensors; hashed and parsed from the same bytes, code in it never runs."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EnvironmentFault(f"{path}: the weights cannot be read ({error.strerror}); check the file") from error
    state = _parse_safetensors(path, data) if path.suffix == ".safetensors" else _parse_pickle(path, data)
    broken = next((key for key, value in state.items()
                   if value.is_floating_point() and not bool(torch.isfinite(value).all())), None)
    if not state or broken is not None:
        found = f"NaN or Inf in {broken!r}" if state else "no tensor"
        raise IntegrityError(f"{path}: found {found}, expected finite weights; copy the file again")
    return Pretrained(name, str(path), hashlib.sha256(data).hexdigest(), state)


def download(name: str) -> Path:
    """The file of a public backbone from the usual caches, else from the network."""
    return _torchvision_file(name) if name.startswith(_OURS_FROM_TORCHVISION) else _timm_file(name)


# ---- where ----

def _check_name(name: str) -> None:
    if not re.fullmatch(r"(timm:)?[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise UsageError(f"backbone {name!r}: expected a name of letters, digits, '_', '.', '-', or timm:NAME")


def _in_folder(folder: Path, name: str) -> Path | None:
    name = name.removeprefix(_TIMM)
    return next((path for suffix in _SUFFIXES if (path := folder / f"{name}{suffix}").is_file()), None)


def _given(path: Path, expected: str) -> Path:
    if path.is_dir():
        inside = _in_folder(path, expected)
        if inside is None:
            raise EnvironmentFault(f"{path}: found no {expected}.safetensors; put the file there, name another folder "
                                   f"or file with --weights, or ask for a random start with --weights none")
        return inside
    if not path.is_file():
        raise EnvironmentFault(f"--weights {path}: there is no such file or folder; expected {expected}.safetensors")
    if path.suffix not in _SUFFIXES:
        raise UsageError(f"--weights {path}: found the suffix {path.suffix!r}, expected {', '.join(_SUFFIXES)}")
    return path


def _from_variable(expected: str) -> Path | None:
    folder = os.environ.get(VARIABLE)
    return _in_folder(Path(folder).expanduser(), expected) if folder else None


def _fetched(expected: str, fetch: Callable[[str], Path]) -> Path:
    try:
        return fetch(expected)
    except (UsageError, IntegrityError):
        raise
    except Exception as error:  # torch.hub, urllib and huggingface_hub raise whatever their layers raise
        folder = os.environ.get(VARIABLE)
        place = f"the folder {folder} ({VARIABLE})" if folder else f"a folder that {VARIABLE} or --weights names"
        origin, digest = origin_of(expected)
        raise EnvironmentFault(
            f"no weights for {expected!r}: none in {place}, and the download failed ({type(error).__name__}: {error}). "
            f"Put {expected.removeprefix(_TIMM)}.safetensors or .pth there; it comes from {origin}{digest}. "
            "A random start must be asked for: --weights none") from error


def origin_of(name: str) -> tuple[str, str]:
    """Where a backbone's file comes from, and in words what is known of its sha256; no network."""
    try:
        if name.startswith(_OURS_FROM_TORCHVISION):
            url = _torchvision_url(name)
            return url, f" (sha256 begins with {Path(url).stem.rsplit('-', 1)[-1]})"
        return f"https://huggingface.co/{_timm_repository(name)} (model.safetensors)", " (sha256 not known here)"
    except Exception:  # the message must come through even where the libraries do not know the name
        return "the model's authors", " (sha256 not known here)"


# ---- public files ----

def _torchvision_url(name: str) -> str:
    from torchvision.models import get_model_weights

    try:
        return str(get_model_weights(name).DEFAULT.url)
    except (KeyError, ValueError):
        raise UsageError(f"torchvision has no weights for {name!r}; check the backbone's name") from None


def _torchvision_file(name: str) -> Path:
    url = _torchvision_url(name)
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    prefix = path.stem.rsplit("-", 1)[-1]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=False)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if not found.startswith(prefix):
        raise IntegrityError(f"{path}: sha256 is {found}, expected {prefix}...; remove the file, it is loaded again")
    return path


def _timm_repository(name: str) -> str:
    from timm.models import get_pretrained_cfg

    name = name.removeprefix(_TIMM)
    config = get_pretrained_cfg(name, allow_unregistered=True)
    if config is None or not config.hf_hub_id:
        raise UsageError(f"timm has no weights for {name!r}; check the backbone's name, or give a file with --weights")
    return str(config.hf_hub_id)


def _timm_file(name: str) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(_timm_repository(name), "model.safetensors"))


# ---- bytes to tensors ----

def _checked(found: Pretrained, sha256: str | None) -> Pretrained:
    if sha256 is not None and found.sha256 != sha256:
        raise IntegrityError(f"{found.source}: sha256 is {found.sha256}, expected {sha256}; copy the file again")
    return found


def _parse_safetensors(path: Path, data: bytes) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise IntegrityError(f"{path}: damaged or cut ({error}); copy it again") from error


def _parse_pickle(path: Path, data: bytes) -> dict[str, Tensor]:
    """Old .pth files: `weights_only` and no fallback, since an ordinary unpickling runs what the file says."""
    try:
        found = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(f"{path}: refused, it holds more than tensors and could run code "
                         f"({str(error).splitlines()[0][:200]}); save a plain state dict as .safetensors") from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise IntegrityError(f"{path}: damaged or cut ({error}); copy it again") from error
    return _flat(path, found)


def _flat(path: Path, found: object) -> dict[str, Tensor]:
    for wrapper in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) and isinstance(k, str) for k, v in found.items()):
        raise UsageError(f"{path}: found {type(found).__name__}, expected a state dict: names and tensors only")
    return dict(found)
