"""On a graphics card: the dense CRF, the affinity walk and class activation maps, in batches and one image at a time.

Wall time, with the copies to the card and back. Peers are what users run on one core beside it: pydensecrf2, and our
own exact walk. The share of the card's peak counts the multiplications and additions of the network's convolutions.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import cam_speed, crf
from benchmarks.measure import not_measured, write
from benchmarks.photos import photos, rgb

BATCH, LABELS, ROUNDS = 16, 3, 5
GRID, BETA, STEPS = (94, 125), 10.0, 256
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}  # bf16, dense
JOBS = ("crf-gpu", "walk-gpu", "cam-gpu")


def main(device: str = "cuda") -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        for job in JOBS:
            not_measured(job, "no graphics card was at hand; the torch forms are tested for equality on the processor")
        return
    with tempfile.TemporaryDirectory() as folder:
        paths, words = crf.files(Path(folder))
        images = [crf.resized(path) for path in paths]
        if crf.peer_installed():
            write("crf-gpu", solved(images, words, device))
        else:
            not_measured("crf-gpu", "pydensecrf2 is not installed (extra `bench`)")
        write("walk-gpu", walked(images, words, device))
        found = photos(64, Path(folder))
        write("cam-gpu", looked(found.images, found.words, device))


def seconds(call: Callable[[], Any], device: str) -> float:
    """The median time of a call until the card is done."""
    import torch

    times = []
    for _ in range(ROUNDS + 1):  # the first one compiles and finds memory
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def row(peer: str, setting: str, many: float, single: float, theirs: float, more: dict[str, Any]) -> dict[str, Any]:
    """From seconds an image: in batches, alone, and of the peer."""
    ratio = round(theirs / many, 2)  # of the peer's time on one core, or on the card, to ours on the card
    rate = f"{1 / many:.3g} images a second, {single / many:.3g}x as many as one at a time"
    return {"peer": peer, "setting": f"{setting}; {rate}", "ratio_cpu": ratio, "ratio_wall": ratio, "rounds": ROUNDS,
            "peak_mb_ours": None, "peak_mb_peer": None, **more}


def solved(images: list[np.ndarray], words: str, device: str) -> dict[str, Any]:
    import torch

    from tagseg.ops.crf_torch import dense_crf

    given = [crf.probabilities(LABELS, seed) for seed in range(len(images))]
    picked = [k % len(images) for k in range(BATCH)]
    energies = [-np.log(np.maximum(p, 1e-5)) for p in given]
    photo, unary = (np.stack([one[k] for k in picked]) for one in (images, energies))

    def ours(count: int) -> np.ndarray:
        parts = [dense_crf(torch.from_numpy(photo[i : i + count]).to(device),
                           torch.from_numpy(unary[i : i + count]).to(device)).cpu().numpy()
                 for i in range(0, BATCH, count)]  # fmt: skip
        return np.concatenate(parts)

    start = time.process_time()
    theirs = crf.theirs(images, given)
    peer = (time.process_time() - start) / len(images)
    same = np.mean([(a.argmax(0) == theirs[k].argmax(0)).mean() for a, k in zip(ours(BATCH), picked, strict=True)])
    many, single = (seconds(lambda n=n: ours(n), device) / BATCH for n in (BATCH, 1))
    return row("pydensecrf2 on one core", f"{words}, 500x375, {LABELS} labels, 10 iterations, batches of {BATCH}; "
               f"{card(device)}", many, single, peer, {"agreement": float(same), "agreement_of": "labels"})  # fmt: skip


def walked(images: list[np.ndarray], words: str, device: str) -> dict[str, Any]:
    import torch

    from benchmarks.walk import boundary_of
    from tagseg.ops import affinity, affinity_torch

    edges = np.stack([boundary_of(images[k % len(images)], GRID) for k in range(BATCH)])
    values = np.random.default_rng(0).random((BATCH, LABELS, *GRID), np.float32)
    offsets = affinity.offsets(5)

    def ours(count: int) -> np.ndarray:
        parts = []
        for i in range(0, BATCH, count):
            borders = torch.from_numpy(edges[i : i + count]).to(device)
            step = affinity_torch.transition(affinity_torch.path_affinity(borders), offsets, BETA)
            maps = torch.from_numpy(values[i : i + count]).to(device)
            parts.append(affinity_torch.walk(step, maps, STEPS).cpu().numpy())
        return np.concatenate(parts)

    start = time.process_time()
    theirs = [affinity.walk(affinity.transition_from_boundary(edges[k]), values[k], steps=STEPS) for k in range(BATCH)]
    peer = (time.process_time() - start) / BATCH
    same = np.mean([(a.argmax(0) == b.argmax(0)).mean() for a, b in zip(ours(BATCH), theirs, strict=True)])
    many, single = (seconds(lambda n=n: ours(n), device) / BATCH for n in (BATCH, 1))
    return row("the exact walk here on one core", f"{words}, {GRID[0]}x{GRID[1]} grid, {LABELS} labels, radius 5, beta "
               f"{BETA:g}, {STEPS} steps, batches of {BATCH}; {card(device)}", many, single, peer,
               {"agreement": float(same), "agreement_of": "labels"})  # fmt: skip


def looked(files: list[str], words: str, device: str) -> dict[str, Any]:
    """ResNet-50 at four scales, mirrored; the peer is its own fp32 loop over single photos on the same card."""
    from tagseg.inference import Views, net_shape, predict
    from tagseg.store import Run, Work

    network = cam_speed.network_named("timm:resnet50")
    height, width = rgb(files[0]).shape[:2]
    area = round((height * width) ** 0.5)

    def ours(precision: str, batch: int, some: list[str], captured: bool = False) -> list[np.ndarray]:
        work = Work(Run(Path(), workers=8), "benchmark", Path())
        views = Views(size=area, scales=cam_speed.SCALES, flip=True, batch=batch, captured=captured)
        seen = predict(work, network, cam_speed.Files(), some, views, device=device, precision=precision,
                       out_size=lambda size: (-(-size[0] // 4), -(-size[1] // 4)))  # fmt: skip
        return [one.values.numpy() for one in seen]

    fast, slow = ours("bf16", 2 * BATCH, files), ours("fp32", 2, files)
    same = np.mean([(a.argmax(0) == b.argmax(0)).mean() for a, b in zip(fast, slow, strict=True)])
    many = seconds(lambda: ours("bf16", 2 * BATCH, files), device) / len(files)
    single, peer = (seconds(lambda p=p: ours(p, 2, files[:8]), device) / 8 for p in ("bf16", "fp32"))
    recorded = ours("bf16", 2 * BATCH, files, True)
    off = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(recorded, fast, strict=True))
    captured = seconds(lambda: ours("bf16", 2 * BATCH, files, True), device) / len(files)
    captured_single = seconds(lambda: ours("bf16", 2, files[:8], True), device) / 8
    work = 2 * sum(operations(network, net_shape((height, width), area, scale, network.min_size))
                   for scale in cam_speed.SCALES)  # fmt: skip
    peak = next((rate for name, rate in PEAK.items() if name in card(device)), 0.0)
    share = work / many / peak if peak else None
    setting = (f"timm:resnet50, stride 16, random weights, {words}, shown as {area}x{area} times "
               f"{', '.join(map(str, cam_speed.SCALES))}, mirrored too; {work / 1e9:.0f} billion operations an image, "
               f"{'unknown share' if share is None else f'{100 * share:.0f} %'} of the peak in bf16; with recorded "
               f"passes {many / captured:.3g}x as many in batches, {single / captured_single:.3g}x one at a time, "
               f"values {off:.1g} apart; {card(device)}")
    return row("fp32, one photo at a time, the same card", setting, many, single, peer, {
        "agreement": float(same), "agreement_of": "cells with the same best class", "share_of_peak": share})


def operations(network: Any, shape: tuple[int, int]) -> float:
    """Multiplications and additions of the convolutions on one input."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    device = next(network.module.parameters()).device
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        network(torch.zeros(1, 3, *shape, device=device))
    return float(counted.get_total_flops())


def card(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else "the processor, a trial"


if __name__ == "__main__":
    main()
