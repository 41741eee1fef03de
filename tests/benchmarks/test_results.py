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


def test_a_run_is_added_once_even_when_its_row_was_given_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                                ) -> None:  # fmt: skip
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    (tmp_path / "scores.json").write_text(json.dumps({"method": "cam", "data": "tiles", "commit": "abc", "seed": 0}))
    (tmp_path / "request.json").write_text(json.dumps({"reading": {"only": []}}))
    assert results.add(tmp_path).endswith("added to cam.jsonl")
    file = tmp_path / "results" / "cam.jsonl"
    noted = {**json.loads(file.read_text()), "note": "by hand"}
    file.write_text(json.dumps(noted) + "\n")
    assert results.add(tmp_path).endswith("already there")
    assert [json.loads(line) for line in file.read_text().splitlines()] == [noted]
    (tmp_path / "scores.json").write_text(json.dumps({"method": "cam", "data": "tiles", "commit": "abc", "seed": 1}))
    assert results.add(tmp_path).endswith("added to cam.jsonl")


def test_a_run_is_added_with_the_note_that_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    (tmp_path / "scores.json").write_text(json.dumps({"method": "cam", "data": "tiles", "commit": "abc", "seed": 0}))
    (tmp_path / "request.json").write_text(json.dumps({"reading": {"only": []}}))
    assert results.add(tmp_path, "a control").endswith("added to cam.jsonl")
    assert results.add(tmp_path, "another").endswith("already there")
    row = json.loads((tmp_path / "results" / "cam.jsonl").read_text())
    assert row == {"method": "cam", "data": "tiles", "commit": "abc", "seed": 0, "note": "a control"}
