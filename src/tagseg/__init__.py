"""tagseg: pixel masks from image tags.

    import tagseg
    tagseg.run(tagseg.Request(method="cam", data="photos", out=Path("runs/first")))
    tagseg.load("runs/first")("new.jpg").save("new.png")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tagseg._version import VERSION as __version__

if TYPE_CHECKING:
    from tagseg.data.folder import open_images, open_set
    from tagseg.data.index import MaskedSet, TaggedSet
    from tagseg.evaluate.folders import evaluate_folders as evaluate
    from tagseg.methods import METHODS
    from tagseg.runs.predict import load, predict
    from tagseg.runs.run import plan, run
    from tagseg.runs.setup import Request

_HOMES = {
    "METHODS": ("tagseg.methods", "METHODS"),
    "MaskedSet": ("tagseg.data.index", "MaskedSet"),
    "Request": ("tagseg.runs.setup", "Request"),
    "TaggedSet": ("tagseg.data.index", "TaggedSet"),
    "evaluate": ("tagseg.evaluate.folders", "evaluate_folders"),
    "load": ("tagseg.runs.predict", "load"),
    "open_images": ("tagseg.data.folder", "open_images"),
    "open_set": ("tagseg.data.folder", "open_set"),
    "plan": ("tagseg.runs.run", "plan"),
    "predict": ("tagseg.runs.predict", "predict"),
    "run": ("tagseg.runs.run", "run"),
}

__all__ = ["METHODS", "MaskedSet", "Request", "TaggedSet", "__version__", "evaluate", "load", "open_images", "open_set",
           "plan", "predict", "run"]


def __getattr__(name: str) -> Any:
    """Public names are imported on first use: importing torch takes seconds, `tagseg --help` must not."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tagseg' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)
