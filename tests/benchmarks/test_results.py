"""Which rows stand beside a method's own, and what rows name."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.results import beside

from benchmarks import results


def row(method: str, data: str = "fashion", backbone: str = "small", **more: Any) -> dict[str, Any]:
    return {"method": method, "data": data, "backbone": backbone, "budget": "standard", **more}


def test_a_methods_rows_stand_behind_those_of_cam_on_the_same_data_and_network() -> None:
    plain, mine = row("cam"), [row("mine"), row("mine", "things", note="adapted")]
    elsewhere = [row("cam", "tiles"), row("cam", backbone="vgg16"), row("cam", "things") | {"budget": "paper"}]
    found = [mine[0], row("cam", note="a control"), *elsewhere, plain, row("other"), mine[1]]
    assert beside(found, "mine") == [plain, *mine]


def test_rows_name_the_command_that_made_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{tmp_path}/transfernet.py", "--cache", f"{tmp_path}/kept", "--only", "a, b|c"])
    results.append("rows.jsonl", [{"seed": 0}], "abc+dirty")
    assert not (tmp_path / "rows.jsonl").exists()
    results.append("rows.jsonl", [{"seed": 0}, {"seed": 1, "command": "its own"}], "abc")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert rows == [{"seed": 0, "command": "python -m benchmarks.transfernet --cache kept --only 'a, b|c'"},
                    {"seed": 1, "command": "its own"}]  # fmt: skip


def test_a_run_that_did_not_come_to_its_end_gives_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    with pytest.raises(SystemExit, match=r"scores\.json: found no such file, expected a finished run"):
        results.add(tmp_path)
    assert not (tmp_path / "results").exists()
