"""The pages say what is there: each equation's file and line, each file and command that a page names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs" / "papers").glob("*.md"))
EVERY_PAGE = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def equation_places(page: str) -> list[tuple[str, str, int]]:
    """(equation, file, line) of the table rows "| 4 | ... | `localize/cam.py:59`, ... |"."""
    rows = re.findall(r"^\| (\d+) \|.*\| ([^|]+) \|$", page, re.M)
    return [(number, file, int(line)) for number, cell in rows for file, line in re.findall(r"`([\w/.]+):(\d+)`", cell)]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_equations_stand_where_the_page_says(page: Path) -> None:
    places = equation_places(page.read_text())
    assert len(places) >= 8
    for number, file, line in places:
        text = (ROOT / "src" / "tagseg" / file).read_text().splitlines()[line - 1]
        cited = re.search(rf"# {page.stem} Eq\. (\d+, )*{number}\b", text)
        assert cited, f"{file}:{line} is not Eq. {number}: {text.strip()}"


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda p: p.name)
def test_commands_exist(page: Path) -> None:
    from tagseg.cli import parser

    known = set(parser()._subparsers._group_actions[0].choices)  # type: ignore[union-attr]
    for command in re.findall(r"^tagseg +([a-z]+)", page.read_text(), re.M):
        assert command in known, f"{page.name} names `tagseg {command}`"
