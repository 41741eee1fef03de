"""`make bench`: every measurement this machine can make, peer and ours in turn, rows to benchmarks/out."""

from __future__ import annotations

from benchmarks import crf, scenes

if __name__ == "__main__":
    for job in (scenes, crf):
        job.main()
