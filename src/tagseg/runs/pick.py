"""`tagseg pick`: the candidate masks of a finished run side by side, picked by a person with one key, saved at once."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from tagseg.artifacts import LabelSet
from tagseg.data.index import TaggedSet, spread
from tagseg.data.picks import Picks, fingerprint, read_picks, write_picks
from tagseg.report import pictures
from tagseg.runs.request import asked
from tagseg.runs.setup import Prepared, prepare
from tagseg.store import Run
from tagseg.types import EnvironmentFault, IntegrityError, UsageError
from tagseg.viewer.pick import Item, Table

PICKS = "picks.csv"
SIDE = 480
Progress = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class Picking:
    """Everything that the page shows, and where picks are kept."""

    table: Table
    file: Path
    prepared: Prepared


def prepare_picks(place: Path, *, data: str | None = None, file: Path | None = None, limit: int = 100,
                  progress: Progress = lambda stage, done, total, note: None,
                  stopping: Callable[[], bool] = lambda: False) -> Picking:
    """Make the candidates of at most `limit` tagged training images, those first whose candidates differ most.

    Images that were picked before are always among them; where the run has no picks of its own yet, those that it was
    given. Errors: `UsageError` for runs of methods without candidates,
    `IntegrityError` where the stages of the run are no longer in its cache.
    """
    if limit < 1:
        raise UsageError(f"--limit {limit}: expected 1 or more")
    request = asked(place)
    prepared = prepare(replace(request, data=data or request.data))
    method, cfg, inputs = prepared.method, prepared.cfg, prepared.inputs
    if not getattr(method, "TAKES_PICKS", False):
        raise UsageError(f"{place}: a run of {request.method!r}, which has no candidate masks to pick from")
    plan = Run(prepared.cache, planning=True)
    method.groundwork(plan, inputs, cfg)
    if lost := [step.stage for step in plan.steps if step.state != "done"]:
        raise IntegrityError(f"{prepared.cache}: {lost[0]} of this run is not there any more; run it again: "
                             f"{request.command or 'tagseg run'}")
    work = Run(prepared.cache, request.workers, progress=progress, stopping=stopping)
    file = file or place / PICKS
    every = read_picks(file, method.CANDIDATES) if file.exists() else inputs.picks or Picks()
    picks = dict(every.among(inputs.tagged.ids).chosen)
    ids = chosen(inputs.tagged, picks, limit)
    sets = method.candidates(work, inputs, ids, cfg)
    save = writer(file, every, inputs.tagged.ids, lambda id, name: fingerprint(sets[name].get(id).pixels))
    table = Table(items_of(inputs.tagged, ids, sets), tuple(sets), shown(inputs.tagged, sets), save, picks)
    return Picking(table, file, prepared)


def chosen(tagged: TaggedSet, picks: Mapping[str, str], limit: int) -> list[str]:
    """The images to look at: picked ones, and others that have a tag, spread over the set."""
    rest = [id for id in tagged.ids if id not in picks and tagged.tags_of(id).any()]
    return sorted({*picks, *spread(rest, limit)})


def items_of(tagged: TaggedSet, ids: Sequence[str], sets: Mapping[str, LabelSet]) -> list[Item]:
    """The images in the order in which they are shown."""
    apart = {id: disagreement([labels.get(id).pixels for labels in sets.values()]) for id in ids}
    rows = sorted(ids, key=lambda id: (-apart[id], id))
    return [Item(id, tuple(np.array(tagged.classes)[tagged.tags_of(id)].tolist())) for id in rows]


def disagreement(masks: Sequence[np.ndarray]) -> float:
    """The mean share of pixels in which two of the masks differ."""
    return float(np.mean([(a != b).mean() for a, b in combinations(masks, 2)])) if len(masks) > 1 else 0.0


def shown(tagged: TaggedSet, sets: Mapping[str, LabelSet]) -> Callable[[str, str], bytes]:
    """Pictures by image and candidate."""

    def picture(id: str, name: str) -> bytes:
        photo = np.ascontiguousarray(tagged.source.read(id).transpose(1, 2, 0))
        drawn = photo if name == "photo" else pictures.overlay(photo, sets[name].get(id).pixels)
        return pictures.as_jpeg(pictures.thumbnail(drawn, SIDE))

    return picture


def writer(file: Path, before: Picks, ids: Collection[str],
           mask: Callable[[str, str], str]) -> Callable[[Mapping[str, str], str], None]:
    """Saves picks of the images `ids` beside what was picked `before` of others; `mask`: fingerprints by image and
    candidate, for what is picked now. A file that somebody else changed stays.
    """
    mine = set(ids)
    others = {id: name for id, name in before.chosen.items() if id not in mine}

    def content() -> bytes | None:
        return file.read_bytes() if file.exists() else None

    known, seen = content(), dict(before.seen)

    def save(picks: Mapping[str, str], now: str) -> None:
        nonlocal known, seen
        if content() != known:
            raise OSError(f"{file} was changed by another program: start tagseg pick again")
        masks = {**seen, now: mask(now, picks[now]) if now in picks else ""}
        write_picks(file, {**others, **picks}, masks)
        known, seen = content(), masks

    return save


def serve(picking: Picking, *, port: int = 0, say: Callable[[str], None], opened: bool = False) -> None:
    """Serve the page on this machine alone until Ctrl-C; `say` tells the address. `port` 0: any free one."""
    try:
        import uvicorn

        from tagseg.viewer.guard import Guard
        from tagseg.viewer.pick import application

        app = application(picking.table)
    except ImportError:
        raise EnvironmentFault("starlette and uvicorn, which serve the page, are not installed: "
                               "pip install 'tagseg[view]'") from None
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", port))
        except OSError as error:
            raise EnvironmentFault(f"--port {port}: {error.strerror}; name another, or none") from error
        guard = Guard(app, listening.getsockname()[1])
        say(f"open {guard.address}")
        if opened:
            import webbrowser

            webbrowser.open(guard.address)
        config = uvicorn.Config(guard, log_level="warning", access_log=False, server_header=False, lifespan="off",
                                timeout_graceful_shutdown=2)  # fmt: skip
        uvicorn.Server(config).run(sockets=[listening])
