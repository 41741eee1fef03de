"""Headless Chromium driven over a pipe: real keys, no library, no network port."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--hide-scrollbars")


class Browser:
    """One page. `home` is its profile; commands are those of the DevTools protocol."""

    def __init__(self, home: Path) -> None:
        program = shutil.which("chromium")
        assert program, "chromium is needed: apt-get install chromium"
        into, self._out = os.pipe()
        self._in, out_of = os.pipe()
        script = f'exec 3<&{into} 4>&{out_of}; exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "chromium", program, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={home}",
             "--window-size=1300,800", "about:blank"],
            pass_fds=(into, out_of), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        os.close(into)
        os.close(out_of)
        self._number, self._buffer, self._session = 0, b"", ""
        pages = self.call("Target.getTargets")["targetInfos"]
        target = next(p["targetId"] for p in pages if p["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and wait for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + 60
        while time.monotonic() < until:
            while b"\0" in self._buffer:
                text, self._buffer = self._buffer.split(b"\0", 1)
                found = json.loads(text)
                if found.get("id") == self._number:
                    assert "error" not in found, found["error"]
                    result: dict[str, Any] = found["result"]
                    return result
            if select.select([self._in], [], [], 1)[0]:
                self._buffer += os.read(self._in, 2**20)
        raise TimeoutError(method)

    def look(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def press(self, key: str) -> None:
        """Press and release one key, as a person does."""
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def wait(self, expression: str, seconds: float = 20) -> None:
        """Until an expression is true."""
        until = time.monotonic() + seconds
        while not self.look(expression):
            assert time.monotonic() < until, f"{expression}: {self.look('document.body.innerText')}"
            time.sleep(0.05)
