"""The stored results of pydensecrf2 and the script that made them, for the tests of both forms of the CRF."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

GOLDEN = Path(__file__).parent / "ops" / "golden"


def _load_maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_crf_golden", GOLDEN / "make_crf_golden.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


maker = _load_maker()
