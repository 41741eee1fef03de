"""`make bench`: every measurement this machine can make, rows to benchmarks/out, then docs/performance.md.

`python -m benchmarks JOB...` makes some of them and leaves the page as it is.
"""

from __future__ import annotations

import importlib
import sys
import time
import traceback

from benchmarks.measure import CannotRun, not_measured

JOBS = ("crf", "crf_phases", "walk", "cam_speed", "miou", "loader", "superpixel_speed", "whole", "growth", "scenes",
        "sampler", "esol_cost", "pamr", "two_cores", "gpu")


def run(job: str) -> bool:
    """Run one job; False if it broke. A job that cannot run here says why, and the others go on."""
    start = time.monotonic()
    print(f"== {job}", flush=True)
    try:
        importlib.import_module(f"benchmarks.{job}").main()
    except (CannotRun, ModuleNotFoundError) as reason:
        not_measured(job, str(reason))
    except Exception:
        traceback.print_exc()
        return False
    print(f"== {job}: {time.monotonic() - start:.0f} s", flush=True)
    return True


def main(words: list[str]) -> int:
    if unknown := sorted(set(words) - set(JOBS)):
        print(f"no job {', '.join(unknown)}; there are {', '.join(JOBS)}")
        return 2
    broken = [job for job in words or JOBS if not run(job)]
    if not words:
        from benchmarks import performance  # not above: every side's process imports this file, and needs no plots

        performance.main()
    print(f"broken: {', '.join(broken)}" if broken else "done")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
