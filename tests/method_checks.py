"""Checks that every method's page must pass, given only its plan."""

from __future__ import annotations

import dataclasses
import typing
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from tagseg import config
from tagseg.store import Run, Step


def changed_stages(
    plan: Callable[[Any], list[Step]], cfg: Any, name: str, value: Any = None
) -> tuple[set[str], set[str]]:
    """What runs again when the setting `name` changes, and what should: (stages with a new key, stages whose own
    recorded config holds the changed leaf or that are new in the plan, and all that follow from those).

    Stages are named `STAGE#n`, n counting the calls of one stage. Without `value` another one of its type is taken.
    """
    value = another_value(cfg, name) if value is None else value
    before, after = _named(plan(cfg)), _named(plan(config.replace(cfg, name, value)))
    changed = {n for n, step in after.items() if n not in before or before[n].key != step.key}
    expected: set[str] = set()
    for n, step in after.items():  # a plan lists what is needed before what needs it
        own = n not in before or before[n].config != step.config
        if own or {after[e].key for e in expected} & set(step.inputs):
            expected.add(n)
    return changed, expected


def settings_matter(
    method: ModuleType, inputs: Any, cfgs: Iterable[Any], least: int, *, own: Collection[str] = (),
    values: Mapping[str, Any] | None = None, refused: Callable[[Any, str], bool] = lambda cfg, name: False,
) -> None:  # fmt: skip
    """Each setting changes the stages that record it and what follows, no other, and in some of `cfgs` it does so.

    `own`: settings of the page itself, which change which stages there are; `values` to set where the next one will not
    do; `refused`: settings that a config leaves no choice of. At least so many settings there must be.
    """

    def plan(cfg: Any) -> list[Step]:
        run = Run(Path("nowhere"), planning=True)
        fit = method.fit(run, inputs, cfg)
        method.predict(run, fit.model, inputs.tagged, cfg)
        method.predict(run, fit.model, inputs.tagged, dataclasses.replace(cfg, predict=cfg.post))
        return run.steps

    matters: dict[str, bool] = {}
    for cfg in cfgs:
        for name, _, keyed in config.leaves(cfg):
            if refused(cfg, name):
                continue
            changed, expected = changed_stages(plan, cfg, name, (values or {}).get(name))
            assert changed == expected or name in own, name  # a stage that falls away is not in the new plan
            assert keyed or not changed, name
            matters[name] = matters.get(name, not keyed) or bool(changed)
    assert [name for name, does in matters.items() if not does] == []
    assert len(matters) > least


def all_changes(
    plan: Callable[[Any], list[Step]], cfg: Any, values: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, bool, set[str], set[str]]]:
    """(setting, whether it enters keys, changed stages, expected stages) for every leaf of a config."""
    for name, _, keyed in config.leaves(cfg):
        yield name, keyed, *changed_stages(plan, cfg, name, (values or {}).get(name))


def another_value(cfg: Any, name: str) -> Any:
    """A different value of the same type: the next Literal option but "auto", one more, not, a longer text or tuple."""
    *groups, last = name.split(".")
    for group in groups:
        cfg = getattr(cfg, group)
    value, options = getattr(cfg, last), typing.get_args(typing.get_type_hints(type(cfg))[last])
    kind = typing.get_type_hints(type(cfg))[last]
    if typing.get_origin(kind) is typing.Literal:
        return next(option for option in options if option not in (value, "auto"))
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return (*value, value[0]) if value else (1,)
    if value is None:
        return next(option for option in options if option is not type(None))(1)
    return f"{value}-other" if isinstance(value, str) else value + 1


def _named(steps: list[Step]) -> dict[str, Step]:
    seen: Counter[str] = Counter()
    named = {}
    for step in steps:
        seen[step.stage] += 1
        named[f"{step.stage}#{seen[step.stage]}"] = dataclasses.replace(step)
    return named
