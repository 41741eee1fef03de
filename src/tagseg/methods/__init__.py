"""One page for each paper; `get` finds a method by name."""

from __future__ import annotations

import difflib
import importlib
from types import ModuleType

from tagseg.types import UsageError

METHODS = ("cam", "dfs", "esol", "mcof", "priors", "transfernet")


def get(name: str) -> ModuleType:
    """The page of a method: a module with `Config`, `fit`, `maps`, `pseudo` and `predict`.

    See methods/protocol.py.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        raise UsageError(
            f"method {name!r} is unknown; expected one of {', '.join(METHODS)}"
            + (f" (nearest: {near[0]})" if near else "")
        )
    return importlib.import_module(f"tagseg.methods.{name}")
