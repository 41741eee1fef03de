"""Frozen dataclass configs: budgets, overrides from a file and the command line, the canonical form for keys."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tagseg.types import UsageError

BUDGETS = ("quick", "standard", "paper")
MAX_CONFIG_BYTES = 1_000_000
MAX_CONFIG_DEPTH = 20
C = TypeVar("C")


def unkeyed(default: Any) -> Any:
    """A config field that cannot change the result (workers, prefetch, logging) and so does not enter keys."""
    return dataclasses.field(default=default, metadata={"keyed": False})


def added(default: Any) -> Any:
    """A config field that came later and changes nothing at its default: there it enters no key, so that what older
    versions made is still found.
    """
    return dataclasses.field(default=default, metadata={"added": True})


def is_config(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def canonical(cfg: Any) -> Any:
    """The keyed fields of a config as plain JSON values; equal configs have equal canonical forms."""
    if is_config(cfg):
        return {
            f.name: canonical(getattr(cfg, f.name)) for f in dataclasses.fields(cfg) if _counts(f, getattr(cfg, f.name))
        }
    if isinstance(cfg, Mapping):
        return {str(k): canonical(v) for k, v in sorted(cfg.items())}
    if isinstance(cfg, tuple | list):
        return [canonical(v) for v in cfg]
    if isinstance(cfg, float) and cfg.is_integer():  # 1.0 == 1, so both must give one key
        return int(cfg)
    if cfg is None or isinstance(cfg, str | int | float | bool):
        return cfg
    raise UsageError(f"config value {cfg!r} of type {type(cfg).__name__}: expected str, number, bool, None or a tuple")


def _counts(field: dataclasses.Field[Any], value: Any) -> bool:
    """Whether a field enters keys."""
    return field.metadata.get("keyed", True) and not (field.metadata.get("added") and value == field.default)


def leaves(cfg: Any, prefix: str = "") -> Iterator[tuple[str, Any, bool]]:
    """Every leaf setting as (dotted name, value, whether it enters keys)."""
    for f in dataclasses.fields(cfg):
        value, keyed = getattr(cfg, f.name), f.metadata.get("keyed", True)
        if is_config(value):
            for name, inner, inner_keyed in leaves(value, f"{prefix}{f.name}."):
                yield name, inner, keyed and inner_keyed
        else:
            yield f"{prefix}{f.name}", value, keyed


def replace(cfg: C, name: str, value: Any) -> C:
    """A copy with the setting of that dotted name changed; an unknown name is a `UsageError` naming the nearest."""
    _owner(cfg, name)
    head, _, rest = name.partition(".")
    inner = replace(getattr(cfg, head), rest, value) if rest else value
    return dataclasses.replace(cfg, **{head: inner})  # type: ignore[type-var]


def _owner(cfg: Any, name: str) -> Any:
    """The (nested) config that holds the setting of that dotted name."""
    owner = cfg
    *groups, last = name.split(".")
    for part in groups:
        owner = getattr(owner, part, None) if is_config(owner) else None
    if not is_config(owner) or last not in {f.name for f in dataclasses.fields(owner)}:
        known = [n for n, _, _ in leaves(cfg)]
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(close)}?" if close else f"known settings: {', '.join(known)}"
        raise UsageError(f"setting {name!r} is unknown; {hint}")
    return owner


def with_budget(cfg: C, budget: str) -> C:
    """Apply the budget's values: each config class may hold them in `BUDGETS = {"quick": {field: value}, ...}`."""
    if budget not in BUDGETS:
        raise UsageError(f"--budget {budget!r} is unknown; expected one of {', '.join(BUDGETS)}")
    inner = {
        f.name: with_budget(getattr(cfg, f.name), budget)
        for f in dataclasses.fields(cfg)  # type: ignore[arg-type]
        if is_config(getattr(cfg, f.name))
    }
    own = getattr(type(cfg), "BUDGETS", {}).get(budget, {})
    return dataclasses.replace(cfg, **{**inner, **own})  # type: ignore[type-var]


def resolve(cfg: C, values: Mapping[str, Any]) -> C:
    """Give every field named in `values` that still says "auto" its value (device, precision, backbone recipe)."""
    changes: dict[str, Any] = {}
    for f in dataclasses.fields(cfg):  # type: ignore[arg-type]
        value = getattr(cfg, f.name)
        if is_config(value):
            changes[f.name] = resolve(value, values)
        elif f.name in values and value == "auto":
            changes[f.name] = values[f.name]
    return dataclasses.replace(cfg, **changes)  # type: ignore[type-var]


def assign(cfg: C, values: Mapping[str, Any]) -> C:
    """Give every field named in `values` its value, whatever it was (the device of another machine)."""
    for name, _, _ in list(leaves(cfg)):
        if (last := name.rsplit(".", 1)[-1]) in values:
            cfg = replace(cfg, name, values[last])
    return cfg


def load(default: C, file: Path | None = None, sets: tuple[str, ...] = ()) -> C:
    """Override `default`: first by a YAML file, then by `a.b=value` settings; types and names are checked."""
    given: list[tuple[str, str, Any]] = []
    if file is not None:
        given += [(f"{file}", name, value) for name, value in _flatten(_read_yaml(file))]
    for item in sets:
        name, found, text = item.partition("=")
        if not found:
            raise UsageError(f"--set {item!r}: expected NAME=VALUE, for example --set classifier.epochs=3")
        given.append(("--set", name.strip(), text))
    for where, name, value in given:
        default = replace(default, name, _typed(default, where, name, value))
    return default


def _typed(cfg: Any, where: str, name: str, value: Any) -> Any:
    """The value as the field's annotated type, parsed by jsonargparse, which also reads `[1, 2]`, `null`, `1e-3`."""
    import typing

    import jsonargparse

    kind = typing.get_type_hints(type(_owner(cfg, name)))[name.rsplit(".", 1)[-1]]
    if dataclasses.is_dataclass(kind):
        first = dataclasses.fields(kind)[0].name
        raise UsageError(f"{where}: {name!r} is a group of settings; set one of them, for example {name}.{first}")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    try:
        if value is None and type(None) not in typing.get_args(kind):  # jsonargparse takes None for "not given"
            raise TypeError("null is not accepted here")
        return (
            parser.parse_object({"value": value}).value
            if not isinstance(value, str)
            else parser.parse_args([f"--value={value}"]).value
        )
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        kind_name = str(kind) if typing.get_args(kind) else kind.__name__
        bare = typing.get_origin(kind) is tuple and isinstance(value, str) and not value.startswith("[")
        raise UsageError(
            f"{where}: {name} = {value!r}: expected {kind_name} ({str(error).splitlines()[-1].strip()[:160]})"
            + (f"; a list is written in brackets: '{name}=[{value}]'" if bare else "")
        ) from error


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _read_yaml(file: Path) -> Mapping[str, Any]:
    """A small YAML mapping; anchors (alias bombs), python tags, deep nesting and files over 1 MB are refused."""
    import yaml

    try:
        with open(file, "rb") as handle:
            data = handle.read(MAX_CONFIG_BYTES + 1)
        if len(data) > MAX_CONFIG_BYTES:
            raise UsageError(f"--config {file}: too long, expected at most {MAX_CONFIG_BYTES} bytes")
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {file}: cannot be read ({error})") from error
    try:
        depth = 0
        for token in yaml.scan(text):
            depth += type(token).__name__.endswith("StartToken") - type(token).__name__.endswith("EndToken")
            if depth > MAX_CONFIG_DEPTH:
                raise UsageError(f"--config {file}: nested too deeply, expected at most {MAX_CONFIG_DEPTH} levels")
            if isinstance(token, yaml.AliasToken | yaml.AnchorToken):
                raise UsageError(f"--config {file}: anchors and aliases (& and *) are not accepted; write them out")
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date
        raise UsageError(f"--config {file}: not plain YAML ({str(error).splitlines()[0]})") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UsageError(
            f"--config {file}: found a {type(tree).__name__}, expected settings such as `classifier: {{epochs: 3}}`"
        )
    return tree
