"""CheckMask from end to end: a run, picks with keys in a real browser, and the next run with them."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny
from devtools import Browser
from tagseg.data.picks import read_picks
from tagseg.methods import priors
from tagseg.runs import run as runs
from tagseg.runs.setup import prepare
from tagseg.store import Run
from tiny import Tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny.make(tmp_path_factory.mktemp("browser") / "run", "priors")


@pytest.fixture
def address(made: Tiny) -> Iterator[str]:
    words = [sys.executable, "-m", "tagseg.cli", "pick", str(made.out), "--limit", "4"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr
    lines = []
    for line in process.stderr:
        lines.append(line)
        if found := re.search(r"open (http://127\.0\.0\.1:\d+/\?token=\S+)", line):
            break
    else:
        raise AssertionError("".join(lines))
    yield found.group(1)
    process.terminate()
    process.wait(20)


def test_picks_with_keys_change_the_masks_of_the_next_run_and_nothing_else(
    made: Tiny, address: str, tmp_path: Path
) -> None:  # fmt: skip
    file = made.out / "picks.csv"
    with Browser(tmp_path / "home") as page:
        page.open(address)
        page.wait("document.querySelectorAll('#row img').length === 8")
        assert "token" not in page.look("location.href")  # the token is in a cookie by now
        page.wait("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
        first = page.look("document.getElementById('name').textContent")
        page.press("2")
        page.wait("document.title === '1 of 4 picked'")
        second = page.look("document.getElementById('name').textContent")
        assert second != first  # one key picks and goes on
        assert dict(read_picks(file, priors.CANDIDATES).chosen) == {first: "wider"}  # saved at once
        held = "document.dispatchEvent(new KeyboardEvent('keydown', {key: '4', repeat: true}))"
        page.look(f"for (let k = 0; k < 3; k++) {held}")
        assert page.look("document.title") == "1 of 4 picked"  # a key that is held down picks no further
        page.press("4")
        page.wait("document.title === '2 of 4 picked'")
        page.press("ArrowLeft")
        page.wait(f"document.getElementById('name').textContent === {second!r}")
        page.wait("document.querySelector('button.picked .label').textContent.includes('raw')")
        page.press("0")
        page.wait("document.title === '1 of 4 picked'")
        assert dict(read_picks(file, priors.CANDIDATES).chosen) == {first: "wider"}
        shot = base64.b64decode(page.call("Page.captureScreenshot")["data"])
        (tmp_path / "pick.png").write_bytes(shot)
        assert np.asarray(Image.open(tmp_path / "pick.png")).shape[1] == 1300
        assert page.look("document.documentElement.scrollWidth <= innerWidth")
    request = tiny.request(tmp_path / "next", method="priors", cache=made.cache, picks=file)
    document = runs.run(request)
    assert any("a person picked" in line for line in document["supervision"])
    prepared = prepare(request)
    fitted = priors.fit(Run(made.cache, workers=1), prepared.inputs, prepared.cfg)
    before = {one.id: one.pixels for one in made.fitted.labels}
    changed = [one.id for one in fitted.labels if not np.array_equal(one.pixels, before[one.id])]
    assert changed == [first]
    for old, new in zip((made.fitted.classifier, made.fitted.maps, made.fitted.point),
                        (fitted.classifier, fitted.maps, fitted.point), strict=True):  # fmt: skip
        assert old.key == new.key


def test_a_tag_with_markup_is_text_and_another_page_gets_nothing(made: Tiny, address: str, tmp_path: Path) -> None:
    with Browser(tmp_path / "home") as page:
        page.open(address)
        page.wait("document.querySelectorAll('#row img').length === 8")
        page.look("items[at].tags = ['<img src=x onerror=\"document.title=1\">']; show(); 0")
        assert page.look("document.querySelectorAll('#tags img').length") == 0
        port = re.search(r":(\d+)/", address).group(1)  # type: ignore[union-attr]
        other = tmp_path / "evil.html"
        other.write_text(f"<script>fetch('http://127.0.0.1:{port}/items.json',{{credentials:'include'}})"
                         ".then(() => document.title='read', () => document.title='blocked')</script>")
        page.open(other.as_uri())
        page.wait("document.title !== ''")
        assert page.look("document.title") == "blocked"
