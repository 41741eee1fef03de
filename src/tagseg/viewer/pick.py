"""The page on which a person picks one of several candidate masks for each image, with one key."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HERE = Path(__file__).parent
FILES = {
    "": ("pick.html", "text/html"),
    "pick.js": ("pick.js", "text/javascript"),
    "pick.css": ("pick.css", "text/css"),
}


@dataclass(frozen=True)
class Item:
    """One image to look at: its id and what it is tagged with."""

    id: str
    tags: tuple[str, ...]


@dataclass
class Table:
    """Images, candidates and what was picked so far; saved by `save` after every pick, from any thread.

    `picture(id, candidate)` gives the JPEG or PNG bytes of an image with a candidate's mask, "photo" the image alone.
    """

    items: Sequence[Item]
    candidates: tuple[str, ...]
    picture: Callable[[str, str], bytes]
    save: Callable[[Mapping[str, str], str], None]  # all picks, and the image that was picked just now
    picks: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def pick(self, id: str, candidate: str | None, before: str | None) -> str | None:
        """Set or take back a pick that was `before` when the person looked; what it is now.

        Raises `Conflict` where somebody, in another window, picked meanwhile.
        """
        with self._lock:
            if self.picks.get(id) != before:
                raise Conflict(self.picks.get(id))
            kept = {known: name for known, name in self.picks.items() if known != id}
            picks = kept if candidate is None else {**kept, id: candidate}
            self.save(picks, id)  # first: what is shown as picked is on disk
            self.picks = picks
            return candidate

    def document(self) -> dict[str, Any]:
        """All that the page shows, but the pictures."""
        with self._lock:
            rows = [{"id": i.id, "tags": list(i.tags), "pick": self.picks.get(i.id)} for i in self.items]
        return {"candidates": list(self.candidates), "items": rows}


class Conflict(Exception):
    """The pick is another one by now."""

    def __init__(self, now: str | None) -> None:
        super().__init__(f"the pick is {now!r} by now")
        self.now = now


def application(table: Table) -> Starlette:
    """The page as an ASGI application without any check of who asks: serve it behind `guard.Guard`.

    Addresses hold numbers of images and names of candidates, never paths.
    """
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route

    async def file(request: Request) -> Response:
        name, kind = FILES[request.path_params.get("name", "")]
        return Response((HERE / name).read_bytes(), media_type=kind)

    async def items(request: Request) -> Response:
        return JSONResponse(table.document())

    async def picture(request: Request) -> Response:
        number, name = request.path_params["number"], request.path_params["name"]
        if number >= len(table.items) or name not in ("photo", *table.candidates):
            return PlainTextResponse("no such picture", 404)
        data = await asyncio.to_thread(table.picture, table.items[number].id, name)
        return Response(data, media_type="image/png" if data.startswith(b"\x89PNG") else "image/jpeg")

    async def pick(request: Request) -> Response:
        try:
            given = await request.json()
            number, name, before = given["number"], given["pick"], given["before"]
        except (ValueError, KeyError, TypeError):
            return PlainTextResponse("expected {number, pick, before}", 400)
        known = (None, *table.candidates)
        if type(number) is not int or not 0 <= number < len(table.items) or name not in known or before not in known:
            return PlainTextResponse("no such image or candidate", 404)
        try:
            now = await asyncio.to_thread(table.pick, table.items[number].id, name, before)
        except Conflict as conflict:
            return JSONResponse({"pick": conflict.now}, 409)
        except OSError as error:
            return PlainTextResponse(f"not saved: {error}", 507)
        return JSONResponse({"pick": now})

    routes = [Route("/", file), Route("/items.json", items), Route("/picture/{number:int}/{name:str}", picture),
              Route("/pick", pick, methods=["POST"])]  # fmt: skip
    routes += [Route(f"/{name}", _fixed(file, name)) for name in FILES if name]
    return Starlette(routes=routes)


def _fixed(file: Callable[[Request], Any], name: str) -> Callable[[Request], Any]:
    async def call(request: Request) -> Response:
        request.path_params["name"] = name
        found: Response = await file(request)
        return found

    return call
