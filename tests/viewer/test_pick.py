"""The pick page over real sockets: what it serves, what it saves, and every hostile request it must refuse."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from tagseg.viewer.guard import MAX_BODY, Guard
from tagseg.viewer.pick import Conflict, Item, Table, application

NASTY = '<img src=x onerror="document.title=1">'


class Shelf:
    """Keeps what is saved; can be told to fail."""

    def __init__(self) -> None:
        self.saved: list[dict[str, str]] = []
        self.full = False

    def __call__(self, picks: Any, now: str) -> None:
        assert now in (*picks, *(self.saved[-1] if self.saved else ()))
        if self.full:
            raise OSError("no space left")
        self.saved.append(dict(picks))


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def table(shelf: Shelf) -> Table:
    items = [Item("a", ("cat",)), Item(NASTY, (NASTY,)), Item("c/../d", ())]
    return Table(items, ("plain", "wider"), lambda id, name: f"{id}|{name}".encode(), shelf, {"a": "wider"})


@pytest.fixture
def guard(table: Table) -> Iterator[Guard]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        found = Guard(application(table), listening.getsockname()[1])
        server = uvicorn.Server(uvicorn.Config(found, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            pass
        yield found
        server.should_exit = True
        thread.join(10)


def ask(guard: Guard, path: str, method: str = "GET", body: Any = None, **head: str) -> http.client.HTTPResponse:
    """A request as the page itself makes it; `head` replaces headers (underscores for dashes), "" leaves one out."""
    own = {"Host": f"127.0.0.1:{guard.port}", "Cookie": f"{guard.cookie}={guard.token}"}
    if method == "POST":
        own |= {"Origin": f"http://127.0.0.1:{guard.port}", "Content-Type": "application/json"}
    own |= {name.replace("_", "-"): value for name, value in head.items()}
    connection = http.client.HTTPConnection("127.0.0.1", guard.port, timeout=10)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    if data is not None:
        own["Content-Length"] = str(len(data))
    for name, value in own.items():
        if value:
            connection.putheader(name, value)
    connection.endheaders(data)
    answer = connection.getresponse()
    answer.body = answer.read()  # type: ignore[attr-defined]
    connection.close()
    return answer


def text(answer: http.client.HTTPResponse) -> bytes:
    found: bytes = answer.body  # type: ignore[attr-defined]
    return found


def test_the_first_visit_trades_the_token_for_a_cookie(guard: Guard) -> None:
    first = ask(guard, guard.address.removeprefix(f"http://127.0.0.1:{guard.port}"), Cookie="")
    assert (first.status, first.headers["location"]) == (303, "/")
    cookie = first.headers["set-cookie"]
    assert cookie.startswith(f"{guard.cookie}={guard.token};")
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert ask(guard, "/", Cookie=cookie.split(";")[0]).status == 200


def test_the_page_its_list_and_its_pictures(guard: Guard) -> None:
    page = ask(guard, "/")
    assert b"Pick the mask" in text(page)
    for name in ("default-src 'none'", "frame-ancestors 'none'", "script-src 'self'"):
        assert name in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in page.headers
    assert ask(guard, "/pick.js").headers["content-type"].startswith("text/javascript")
    assert ask(guard, "/pick.css").status == 200
    found = json.loads(text(ask(guard, "/items.json")))
    assert found["candidates"] == ["plain", "wider"]
    assert [i["pick"] for i in found["items"]] == ["wider", None, None]
    assert text(ask(guard, "/picture/2/plain")) == b"c/../d|plain"
    assert text(ask(guard, "/picture/0/photo")) == b"a|photo"


def test_a_pick_is_saved_at_once_and_can_be_taken_back(guard: Guard, shelf: Shelf) -> None:
    done = ask(guard, "/pick", "POST", {"number": 1, "pick": "plain", "before": None})
    assert (done.status, json.loads(text(done))) == (200, {"pick": "plain"})
    assert shelf.saved[-1] == {"a": "wider", NASTY: "plain"}
    assert ask(guard, "/pick", "POST", {"number": 0, "pick": None, "before": "wider"}).status == 200
    assert shelf.saved[-1] == {NASTY: "plain"}


def test_a_stale_page_changes_nothing(guard: Guard, shelf: Shelf, table: Table) -> None:
    stale = ask(guard, "/pick", "POST", {"number": 0, "pick": "plain", "before": None})
    assert (stale.status, json.loads(text(stale))) == (409, {"pick": "wider"})
    assert shelf.saved == []
    with pytest.raises(Conflict, match="'wider' by now"):
        table.pick("a", "plain", "plain")


def test_what_cannot_be_saved_is_not_shown_as_picked(guard: Guard, shelf: Shelf, table: Table) -> None:
    shelf.full = True
    failed = ask(guard, "/pick", "POST", {"number": 1, "pick": "plain", "before": None})
    assert failed.status == 507
    assert b"no space left" in text(failed)
    assert NASTY not in table.picks


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b'{"number":1}', b"\xff\xfe", b'{"number":1,"pick":"plain"}'])
def test_bodies_that_are_none(guard: Guard, shelf: Shelf, body: bytes) -> None:
    assert ask(guard, "/pick", "POST", body).status == 400
    assert shelf.saved == []


@pytest.mark.parametrize("given", [{"number": 3}, {"number": -1}, {"number": True}, {"number": "0"}, {"number": 1.0},
                                   {"pick": "broad"}, {"pick": ["plain"]}, {"before": "broad"}])  # fmt: skip
def test_images_and_candidates_that_there_are_not(guard: Guard, shelf: Shelf, given: dict[str, Any]) -> None:
    asked = {"number": 1, "pick": "plain", "before": None, **given}
    assert ask(guard, "/pick", "POST", asked).status in (400, 404)
    assert shelf.saved == []


@pytest.mark.parametrize("head", [{"Cookie": ""}, {"Cookie": "tagseg-0=x"}, {"Host": "evil.example"}, {"Host": ""},
                                  {"Host": "127.0.0.1"}, {"Host": "127.0.0.1:1"}])  # fmt: skip
def test_strangers_see_nothing(guard: Guard, head: dict[str, str]) -> None:
    for path in ("/", "/items.json", "/picture/0/photo", "/pick.js"):
        answer = ask(guard, path, **head)
        assert answer.status in (400, 403, 421)
        assert b"cat" not in text(answer)
    wrong = ask(guard, "/?token=" + guard.token[:-1], Cookie="")
    assert wrong.status == 403


@pytest.mark.parametrize("head", [{"Origin": "http://evil.example"}, {"Origin": ""}, {"Origin": "null"}, {"Cookie": ""},
                                  {"Content_Type": "text/plain"}, {"Content_Type": ""}, {"Host": "evil.example"}])
def test_other_pages_change_nothing(guard: Guard, shelf: Shelf, head: dict[str, str]) -> None:
    answer = ask(guard, "/pick", "POST", {"number": 1, "pick": "plain", "before": None}, **head)
    assert answer.status in (400, 403, 415, 421)
    assert shelf.saved == []


def test_too_much_is_not_read(guard: Guard, shelf: Shelf) -> None:
    assert ask(guard, "/pick", "POST", b" " * (MAX_BODY + 1)).status == 413
    assert shelf.saved == []


@pytest.mark.parametrize("path", ["/../../etc/passwd", "/pick.html/../guard.py", "/guard.py", "/picture/0/..%2f..",
                                  "/picture/0/%00", "/picture/99/plain", "/picture/-1/plain", "/picture/0/..",
                                  "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/pick.js%00.css"])  # fmt: skip
def test_paths_lead_nowhere(guard: Guard, path: str) -> None:
    answer = ask(guard, path)
    assert answer.status in (307, 400, 404, 405)
    assert b"root:" not in text(answer)
    assert b"ASGI" not in text(answer)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"])
def test_other_methods_are_refused(guard: Guard, method: str) -> None:
    assert ask(guard, "/pick", method).status == 405


def test_garbage_on_the_socket_does_not_end_the_server(guard: Guard) -> None:
    for data in (b"\x00\xff" * 50 + b"\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"GET\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", guard.port), timeout=5) as raw:
            raw.sendall(data)
            assert b" 200 " not in raw.recv(200)
    assert ask(guard, "/").status == 200
