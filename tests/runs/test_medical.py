"""X-rays as archives write them: DICOM in, masks of their size and spacing out, and the window is remembered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dicoms
import tiny
from tagseg.artifacts import read_png
from tagseg.data.folder import Reading
from tagseg.data.scenes import preset, render
from tagseg.runs.predict import load, predict
from tagseg.runs.run import run

SIZE = (40, 56)


def xrays(root: Path, first: int = 0, count: int = 12) -> Path:
    """12-bit inverted X-rays without a suffix, half of them with an opacity; 40x56 pixels of .5 x .25 mm."""
    cfg, rows = replace(preset("lesions"), size=max(SIZE)), []
    (root / "images").mkdir(parents=True)
    for k in range(first, first + count):
        scene = render(cfg, 5, k)
        grey = 4095 - 16 * scene.image.mean(0)[: SIZE[0], : SIZE[1]].astype(np.uint16)
        dicoms.write(root / "images" / f"IM{k:06d}", grey, bits=12, PhotometricInterpretation="MONOCHROME1",
                     PixelSpacing=[0.5, 0.25])
        rows.append(f"IM{k:06d},{'opacity' if scene.tags.any() else ''}")
    (root / "tags.csv").write_text("\n".join(["file,tags", *rows, ""]))
    return root


def spacing(path: Path) -> list[float]:
    """Millimetres between rows and columns that a PNG tells."""
    with Image.open(path) as image:
        assert image.size == (SIZE[1], SIZE[0])
        across, down = image.info["dpi"]
    return [25.4 / down, 25.4 / across]


@pytest.mark.parametrize("window", [None, (2000.0, 3000.0)])
def test_from_dicom_files_to_masks_of_their_size_and_spacing(
    tmp_path: Path, window: tuple[float, float] | None
) -> None:  # fmt: skip
    data = xrays(tmp_path / "data")
    out = tmp_path / "run"
    document = run(tiny.request(out, data=str(data), reading=Reading(window=window), sets=(
        "classifier.schedule.max_images=16", "segmenter.schedule.max_images=16")))  # fmt: skip
    assert document["tags"]["negatives"] > 0
    assert any("MONOCHROME1 inverted" in text for text in document["warnings"])
    masks = sorted((out / "masks").glob("*.png"))
    assert len(masks) == 12
    assert spacing(masks[0]) == pytest.approx([0.5, 0.25], rel=1e-3)
    fresh = xrays(tmp_path / "new", 50, 3)
    done = predict(out, fresh, tmp_path / "found", device="cpu", workers=1)
    assert done["images"] == 3
    model = load(out, device="cpu")
    assert model.trained.window == window
    for k in (50, 51, 52):
        found = tmp_path / "found" / f"IM{k:06d}.png"
        assert spacing(found) == pytest.approx([0.5, 0.25], rel=1e-3)
        one = model(fresh / "images" / f"IM{k:06d}")
        assert one.spacing == (0.5, 0.25)
        assert np.array_equal(one.pixels, read_png(found.read_bytes()))
