"""What stands before every local page: who may ask, from where, and how much. A page is for one person on this machine.

The address of a page holds a token; the first visit turns it into a cookie, and without either nothing is answered.
Host must be this machine's own address (a name that was re-bound to it is refused), and a request that changes
something must come from the page itself. Nothing may be framed, cached, or loaded from elsewhere.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

MAX_BODY = 16_384
HEADERS = {
    "content-security-policy": "default-src 'none'; img-src 'self'; script-src 'self'; style-src 'self'; "
                               "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}  # fmt: skip

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


def new_token() -> str:
    """256 bits that nobody guesses."""
    return secrets.token_urlsafe(32)


@dataclass(frozen=True)
class Guard:
    """An ASGI application that lets through to `app` what the module's words allow. `port`: where it is served."""

    app: App
    port: int
    token: str = field(default_factory=new_token)

    @property
    def address(self) -> str:
        """What to open in a browser, once."""
        return f"http://127.0.0.1:{self.port}/?token={self.token}"

    @property
    def cookie(self) -> str:
        return f"tagseg-{self.port}"

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        head = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self.refusal(scope, head)
        if refused:
            await answer(send, *refused)
            return
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token")
        if given:  # the first visit: out of the address, into a cookie
            fresh = f"{self.cookie}={self.token}; HttpOnly; SameSite=Strict; Path=/"
            await answer(send, 303, "", {"location": "/", "set-cookie": fresh})
            return
        body = await _body(receive)
        if body is None:
            await answer(send, 413, f"more than {MAX_BODY} bytes")
            return
        await self.app(scope, _again(body), _with_headers(send))

    def refusal(self, scope: Message, head: dict[str, str]) -> tuple[int, str] | None:
        """Status and reason, where a request is not let through."""
        hosts = {f"127.0.0.1:{self.port}", f"localhost:{self.port}"}
        if head.get("host", "").lower() not in hosts:
            return 421, "this page answers to 127.0.0.1 alone"
        if scope["method"] not in ("GET", "POST"):
            return 405, "GET or POST"
        if scope["method"] == "POST":
            if head.get("origin") not in {f"http://{host}" for host in hosts}:
                return 403, "a request from another page"
            if head.get("content-type", "").split(";")[0].strip() != "application/json":
                return 415, "application/json"
        if not self.knows(scope, head):
            return 403, "open the address that tagseg printed"
        return None

    def knows(self, scope: Message, head: dict[str, str]) -> bool:
        """Whether the token is in the cookie or, on a first visit, in the address."""
        cookies = dict(part.strip().partition("=")[::2] for part in head.get("cookie", "").split(";"))
        given = [cookies.get(self.cookie, "")]
        if scope["method"] == "GET" and scope["path"] == "/":
            given += parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        return any(hmac.compare_digest(one.encode(), self.token.encode()) for one in given)


async def answer(send: Send, status: int, text: str, more: dict[str, str] | None = None) -> None:
    """A short plain answer."""
    head = {**HEADERS, "content-type": "text/plain; charset=utf-8", **(more or {})}
    await send({"type": "http.response.start", "status": status, "headers": _encoded(head)})
    await send({"type": "http.response.body", "body": text.encode()})


def _encoded(head: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in head.items()]


async def _body(receive: Receive) -> bytes | None:
    """The body of a request, None where it is too long; no more of it is kept."""
    parts, length = list[bytes](), 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b"".join(parts)
        length += len(message.get("body", b""))
        if length > MAX_BODY:
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _again(body: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def _with_headers(send: Send) -> Send:
    async def outer(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = {name for name, _ in message.get("headers", [])}
            message["headers"] = [*message.get("headers", []), *(h for h in _encoded(HEADERS) if h[0] not in own)]
        await send(message)

    return outer
