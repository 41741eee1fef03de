"""Which rows stand beside a method's own."""

from __future__ import annotations

from typing import Any

from benchmarks.results import beside


def row(method: str, data: str = "fashion", backbone: str = "small", **more: Any) -> dict[str, Any]:
    return {"method": method, "data": data, "backbone": backbone, "budget": "standard", **more}


def test_a_methods_rows_stand_behind_those_of_cam_on_the_same_data_and_network() -> None:
    plain, mine = row("cam"), [row("mine"), row("mine", "things", note="adapted")]
    elsewhere = [row("cam", "tiles"), row("cam", backbone="vgg16"), row("cam", "things") | {"budget": "paper"}]
    found = [mine[0], row("cam", note="a control"), *elsewhere, plain, row("other"), mine[1]]
    assert beside(found, "mine") == [plain, *mine]
