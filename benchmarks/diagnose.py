"""`make diagnose`: slow checks that gate nothing in the ordinary suite: kill -9 at many moments, the methods' gates.

Precondition of the kills: each must hit a living process; a run in which fewer than MINIMUM kills hit is VOID. The
methods' diagnostics (`DIAGNOSTICS`) hold their own preconditions.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KILLS = 12
MINIMUM = 8
DIAGNOSTICS = tuple((f"benchmarks.{method}", "--gates") for method in ("dfs", "esol", "mcof", "priors", "transfernet"))
DATA = "scenes:basic?train=12&val=12&size=48"
SMALL = (
    "classifier.augment.size=48",
    "classifier.schedule.min_images=0",
    "classifier.schedule.max_images=960",
    "segmenter.augment.size=48",
    "segmenter.schedule.min_images=0",
    "segmenter.schedule.max_images=640",
    "cam.views.size=48",
    "predict.views.size=48",
    "post.views.size=48",
)


def command(folder: Path) -> list[str]:
    sets = [word for s in SMALL for word in ("--set", s)]
    return [
        sys.executable,
        "-m",
        "tagseg.cli",
        "run",
        "cam",
        DATA,
        "--budget",
        "quick",
        "--out",
        str(folder / "run"),
        *sets,
    ]


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every artifact's outputs. Left out: records, which hold times, and locks and lists of runs, which name
    processes and places.
    """
    return {
        f"{p.parent.name}/{p.name}": hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted((folder / ".tagseg-cache").glob("*/*"))
        if p.is_file() and p.name != "record.json" and not p.parent.name.startswith(".")
    }


def killed_run(folder: Path, rng: random.Random, length: float) -> int:
    """Kill the run's process group at random times until it gets through; returns how many kills hit."""
    hits = 0
    while True:
        process = subprocess.Popen(
            command(folder), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            # a fraction of a whole run: each try goes on where the last one was killed, and must not get through yet
            process.wait(timeout=rng.uniform(0.1, 0.35) * length if hits < KILLS else None)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            hits += 1
            continue
        if process.returncode:
            raise SystemExit(f"FAIL: the run ended with exit code {process.returncode} after {hits} kills")
        return hits


def kills() -> bool:
    """Whether a run that was killed again and again leaves the bytes of one that was not."""
    with tempfile.TemporaryDirectory() as place:
        whole, broken = Path(place) / "whole", Path(place) / "broken"
        start = time.monotonic()
        subprocess.run(command(whole), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        hits = killed_run(broken, random.Random(0), time.monotonic() - start)
        if hits < MINIMUM:
            raise SystemExit(f"VOID: only {hits} of {KILLS} kills hit a living run, {MINIMUM} are needed")
        same = hashes(whole) == hashes(broken)
        print(
            f"{'ok' if same else 'FAIL'}: {hits} kills, {len(hashes(whole))} files, {'same' if same else 'other'} bytes"
        )
        return same


def main() -> None:
    good = kills()
    for words in DIAGNOSTICS:
        print(f"== {' '.join(words)}", flush=True)
        good = subprocess.run([sys.executable, "-m", *words]).returncode == 0 and good
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
