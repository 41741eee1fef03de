"""A ten-second self-test of the machine: versions, device, disk, memory, and each kind of work once in small."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tagseg._version import VERSION
from tagseg.disk import write_atomic
from tagseg.runs.setup import choose_device, choose_precision, device_text
from tagseg.store import library_versions


def doctor(device: str = "auto", place: Path | None = None) -> dict[str, Any]:
    """What is there and whether it works: {"ok", "facts": {name: text}, "checks": [{"name", "ok", "detail"}]}."""
    where = (place or Path.cwd()).resolve()
    chosen = choose_device(device)
    facts = {
        "tagseg": VERSION,
        "python": platform.python_version(),
        **library_versions(),
        "device": device_text(chosen, choose_precision("auto", chosen)),
        "cores": str(os.cpu_count()),
        "memory": f"{_memory_gb():.1f} GB",
        "disk": f"{shutil.disk_usage(where).free / 2**30:.1f} GB free at {where}",
        "weights folder": os.environ.get("TAGSEG_WEIGHTS", "not set (TAGSEG_WEIGHTS)"),
        "cache": os.environ.get("TAGSEG_CACHE", "beside each run (TAGSEG_CACHE)"),
    }
    checks = [
        _check("disk: write, sync, read back", lambda: _disk(where)),
        _check("images: draw a scene, encode, decode", _image),
        _check("training step of the small network", lambda: _training(chosen)),
        _check("dense CRF (compiled on first use)", _crf),
    ]
    return {"ok": all(c["ok"] for c in checks), "facts": facts, "checks": checks}


def _check(name: str, work: Callable[[], None]) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        work()
    except Exception as error:  # the doctor reports every failure, whatever it is
        return {"name": name, "ok": False, "detail": f"{type(error).__name__}: {error}"}
    return {"name": name, "ok": True, "detail": f"{time.perf_counter() - start:.2f} s"}


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _disk(where: Path) -> None:
    with tempfile.TemporaryDirectory(dir=where) as folder:
        data = os.urandom(1 << 20)
        write_atomic(Path(folder) / "probe", data)
        if (Path(folder) / "probe").read_bytes() != data:
            raise OSError("bytes read differ from bytes written")


def _image() -> None:
    from tagseg.artifacts import png, read_png
    from tagseg.data.scenes import preset, render

    scene = render(preset("basic"), 0, 0)
    if not np.array_equal(read_png(png(scene.mask, palette=True)), scene.mask):
        raise ValueError("a mask changed on its way through PNG")


def _training(device: str) -> None:
    import torch

    from tagseg.nets.backbones import build

    torch.manual_seed(0)
    net = build("small", stride=16).to(device)
    loss = net(torch.rand(2, 3, 64, 64, device=device), ["last"])["last"].mean()
    loss.backward()
    if not bool(torch.isfinite(loss)):
        raise ValueError("the loss is not a number")


def _crf() -> None:
    from tagseg.ops.crf import dense_crf

    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet((1, 1), (24, 32)).transpose(2, 0, 1).astype(np.float32)
    result = dense_crf(rng.integers(0, 255, (24, 32, 3), np.uint8), probabilities)
    if not np.allclose(result.sum(0), 1, atol=1e-4):
        raise ValueError("probabilities do not sum to 1")
