"""The report of a run in headless Chromium: it draws, it is whole, and it asks the network for nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--hide-scrollbars")


def chromium(page: Path, home: Path, *words: str) -> str:
    """Open a local page and return what chromium prints; its own log is kept out."""
    program = shutil.which("chromium")
    assert program, "chromium is needed: apt-get install chromium"
    done = subprocess.run([program, *FLAGS, f"--user-data-dir={home}", *words, page.as_uri()],
                          capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tiny

    return tiny.make(tmp_path_factory.mktemp("browser") / "run").out / "report.html"


def test_page_is_drawn_with_its_pictures(page: Path, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    chromium(page, tmp_path / "home", f"--screenshot={picture}", "--window-size=1200,2400")
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert pixels.shape[:2] == (2400, 1200)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500  # photos and plots, not an empty or broken page


@pytest.mark.parametrize("width", [390, 1200])
def test_page_does_not_scroll_sideways(page: Path, tmp_path: Path, width: int) -> None:
    frame = tmp_path / "frame.html"
    frame.write_text(f"<iframe id=f src='{page.as_uri()}' style='width:{width}px;height:900px;border:0'></iframe>"
                     "<script>f.onload=()=>{try{document.title=f.contentDocument.documentElement.scrollWidth}"
                     "catch(e){document.title='blocked'}}</script>")
    words = ("--allow-file-access-from-files", "--virtual-time-budget=4000", "--dump-dom")
    dom = chromium(frame, tmp_path / "home", *words)
    found = re.search(r"<title>(\d+)</title>", dom)
    assert found, dom[:300]
    assert int(found.group(1)) <= width + 1


def test_page_carries_everything_in_itself(page: Path, tmp_path: Path) -> None:
    dom = chromium(page, tmp_path / "home", "--dump-dom")
    assert "mIoU" in dom
    assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", dom)
    assert "<script" not in dom
    assert dom.count("<img") > 4
