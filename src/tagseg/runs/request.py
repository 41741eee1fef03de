"""What a user asks of a run, and how a run folder remembers it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tagseg.data.folder import Reading
from tagseg.types import IntegrityError, UsageError

REQUEST = "request.json"


@dataclass(frozen=True)
class Request:
    """What a user asks for. Empty `train` means all images, empty `val` no numbers without tags.

    `k_masks`: so many training masks choose the threshold of the `k` point; they are left out of its scores.
    `saliency`: a folder of maps made elsewhere; `saliency_from`: what made them, and from what that had learned.
    `picks`: a file that `tagseg pick` wrote. `aux`: a folder of images with masks of other classes, its splits,
    and which of its classes; `aux_rest`: what the target's own classes in its images are.
    `adapt`: a finished run whose model is taught other classes.
    """

    method: str
    data: str
    out: Path
    train: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    backbone: str = "auto"
    weights: str | None = None
    seed: int = 0
    budget: str = "standard"
    config: Path | None = None
    sets: tuple[str, ...] = ()
    cache: Path | None = None
    device: str = "auto"
    precision: str = "auto"
    workers: int = 2
    k_masks: int = 0
    reading: Reading = field(default_factory=Reading)
    command: str = ""
    saliency: Path | None = None
    saliency_from: str | None = None
    picks: Path | None = None
    aux: str | None = None
    aux_splits: tuple[str, ...] = ()
    aux_only: tuple[str, ...] = ()
    aux_rest: str = "background"
    adapt: Path | None = None


def remembered(request: Request) -> bytes:
    """What was asked for, as JSON: the folders of this machine are in it, unlike in the report."""
    return json.dumps(asdict(request), indent=1, default=str).encode()


def asked(place: Path) -> Request:
    """The request of a run folder, wherever that lies by now."""
    try:
        known = json.loads((place / REQUEST).read_text())
        reading = _typed(Reading, known.pop("reading"))
        return replace(_typed(Request, known), reading=reading, out=place)
    except FileNotFoundError:
        raise UsageError(f"{place}: holds no {REQUEST}; give the --out folder of a finished `tagseg run`") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise IntegrityError(f"{place / REQUEST}: cannot be read as a request ({error}); run again") from error


def _typed(kind: type[Any], known: Mapping[str, Any]) -> Any:
    """A request or reading from JSON: lists were tuples, and some texts were paths."""
    values = {}
    for one in fields(kind):
        if one.name not in known:  # written before there was such a setting
            continue
        value = known[one.name]
        if isinstance(value, list):
            value = tuple(value)
        values[one.name] = Path(value) if value is not None and "Path" in str(one.type) else value
    return kind(**values)
