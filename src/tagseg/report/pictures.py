"""Pictures of masks and maps for people: uint8 RGB arrays in and out."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_dilation

from tagseg.report.colours import IGNORE_STRIPE, palette
from tagseg.types import BACKGROUND, IGNORE, DataError

Picture = UInt8[np.ndarray, "h w 3"]
PAPER = (255, 255, 255)
INK = (45, 48, 56)
_JPEG_QUALITY = 84


def colour_mask(labels: UInt8[np.ndarray, "h w"]) -> Picture:
    """A mask in class colours; the background is dark, unsure pixels (255) are light grey with diagonal stripes."""
    picture = palette()[labels]
    picture[_stripes(labels.shape) & (labels == IGNORE)] = IGNORE_STRIPE
    return picture


def overlay(image: Picture, labels: UInt8[np.ndarray, "h w"], alpha: float = 0.45) -> Picture:
    """The photo with classes tinted by `alpha` (0..1) and outlined in their colour with a dark rim, so that the outline
    shows on any photo; background stays as it is, 255 is striped.
    """
    _same_size(image, labels.shape, "labels")
    tinted = _mix(image, colour_mask(labels), np.where(labels == BACKGROUND, 0.0, alpha))
    found = (labels != BACKGROUND) & (labels != IGNORE)
    width = max(1, round(min(labels.shape) / 160))  # the line keeps its weight on large photos
    rim = binary_dilation(found, iterations=width) & ~found
    tinted[rim] = tinted[rim] // 3
    line = binary_dilation(_inner_edge(labels), iterations=width) & found
    tinted[line] = palette()[labels[line]]
    return tinted


def heat(image: Picture, scores: Float32[np.ndarray, "k h w"], classes: Int64[np.ndarray, " k"]) -> Picture:
    """Class maps over the grey photo: at each pixel the colour of the strongest class, as strong as its score.

    Scores lie in 0..1 and may be coarser than the photo (they are enlarged smoothly); K = 0 gives the grey photo.
    """
    grey = _grey(image)
    if len(classes) == 0:
        return grey
    size = (image.shape[1], image.shape[0])
    full = np.stack([np.asarray(Image.fromarray(s).resize(size, Image.Resampling.BILINEAR)) for s in scores])
    full = np.clip(np.nan_to_num(full), 0, 1)
    winner = classes[full.argmax(axis=0)].astype(np.uint8)
    return _mix(grey, palette()[winner], 0.9 * full.max(axis=0))


def sampling(
    image: Picture, offsets: Float32[np.ndarray, "18 h w"], stride: int, offset: float, shown: tuple[int, int]
) -> Picture:
    """Where the nine taps of each cell go, over the grey photo: a line from the cell's centre along their mean.

    `offsets` in cells, (dy, dx) tap by tap; cell i is centred at pixel stride * i + offset of the image as it was
    `shown` (H,W). Lines are drawn longer by one factor, written into the corner, so that long ones span a cell; the
    further a cell's taps go, the warmer its colour.
    """
    side = 320 / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * side)), max(1, round(image.shape[0] * side)))
    canvas = Image.fromarray(_grey(image)).resize(size, Image.Resampling.BILINEAR)
    moved = offsets.reshape(9, 2, *offsets.shape[1:])
    mean, far = moved.mean(0), np.sqrt((moved**2).sum(1)).mean(0)
    longest = float(np.quantile(np.sqrt((mean**2).sum(0)), 0.95))
    factor = 1.0 if longest >= 1 else min(1 / max(longest, 1e-3), 99.0)
    scale = np.array([canvas.height / shown[0], canvas.width / shown[1]])
    draw, top = ImageDraw.Draw(canvas), max(float(far.max()), 1e-6)
    for (y, x), share in np.ndenumerate(far / top):
        at = (np.array([y, x]) * stride + offset + 0.5) * scale
        to = at + mean[:, y, x] * factor * stride * scale
        colour = (int(90 + 165 * share), int(170 - 90 * share), int(210 * (1 - share)))
        draw.line((at[1], at[0], to[1], to[0]), colour, 2)
        draw.ellipse((at[1] - 1, at[0] - 1, at[1] + 1, at[0] + 1), colour)
    text = f"mean reach {far.mean():.2f} cells, drawn x{factor:.0f}" if far.any() else "no offsets"
    font = ImageFont.load_default(12.0)
    draw.rectangle((0, canvas.height - 18, draw.textlength(text, font) + 8, canvas.height), PAPER)
    draw.text((4, canvas.height - 16), text, INK, font)
    return np.array(canvas)


def thumbnail(picture: Picture, side: int = 240, exact: bool = False) -> Picture:
    """The picture with its longer side at most `side` pixels; `exact` keeps colours unmixed (masks)."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    way = Image.Resampling.NEAREST if exact else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(picture).resize(size, way))


def contact_sheet(
    rows: Sequence[Sequence[Picture]], captions: Sequence[str] = (), side: int = 240, gap: int = 10
) -> Picture:
    """Rows of pictures as one picture, each fitted into a `side` x `side` cell; `captions` stand over the columns."""
    columns = max([len(row) for row in rows] + [len(captions)], default=0)
    if columns == 0:
        raise DataError("a contact sheet of no pictures: expected at least one row with one picture")
    head = round(side / 8) if captions else 0
    step = side + gap
    sheet = Image.new("RGB", (columns * step + gap, len(rows) * step + gap + head), PAPER)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            cell = _fitted(picture, side)
            inset = ((side - cell.width) // 2, (side - cell.height) // 2)
            sheet.paste(cell, (gap + c * step + inset[0], gap + head + r * step + inset[1]))
    _write_captions(sheet, captions, side, gap, head)
    return np.array(sheet)


def as_png(picture: Picture) -> bytes:
    """PNG bytes, with a palette where the picture has at most 256 colours (masks become a tenth of the size)."""
    image = Image.fromarray(picture)
    if (colours := image.getcolors(256)) is not None:
        image = image.quantize(max(len(colours), 1), dither=Image.Dither.NONE)
        if not np.array_equal(np.asarray(image.convert("RGB")), picture):  # the quantiser merged near colours
            image = Image.fromarray(picture)
    return _saved(image, "PNG")


def as_jpeg(picture: Picture) -> bytes:
    """JPEG bytes, for photos and for whatever has a photo under it."""
    return _saved(Image.fromarray(picture), "JPEG")


def _saved(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, optimize=True, quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _fitted(picture: Picture, side: int) -> Image.Image:
    """Shrunk or enlarged to the cell. Small pictures are enlarged pixel by pixel: nothing is invented."""
    small = Image.fromarray(thumbnail(picture, side, exact=Image.fromarray(picture).getcolors(256) is not None))
    scale = side / max(small.size)
    size = (max(1, round(small.width * scale)), max(1, round(small.height * scale)))
    return small if scale <= 1 else small.resize(size, Image.Resampling.NEAREST)


def _write_captions(sheet: Image.Image, captions: Sequence[str], side: int, gap: int, head: int) -> None:
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(max(10.0, side / 15))
    for c, text in enumerate(captions):
        draw.text((gap + c * (side + gap) + side / 2, gap / 2 + head / 2), text, INK, font, anchor="mm")


def _grey(image: Picture) -> Picture:
    return np.array(Image.fromarray(image).convert("L").convert("RGB"))


def _mix(under: Picture, over: Picture, alpha: np.ndarray) -> Picture:
    """`over` on `under` with an opacity for each pixel, (h, w) in 0..1."""
    a = alpha[..., None].astype(np.float32)
    return (under * (1 - a) + over * a + 0.5).astype(np.uint8)


def _inner_edge(labels: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Class pixels with another label beside, over or under them. The frame is no edge."""
    padded = np.pad(labels, 1, mode="edge")
    beside = (padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1])
    differs = np.logical_or.reduce([other != labels for other in beside])
    return differs & (labels != BACKGROUND) & (labels != IGNORE)


def _stripes(size: tuple[int, ...]) -> Bool[np.ndarray, "h w"]:
    y, x = np.ogrid[: size[0], : size[1]]
    return (y + x) % 6 < 2


def _same_size(image: Picture, size: tuple[int, ...], what: str) -> None:
    if image.shape[:2] != tuple(size):
        raise DataError(f"{what} of size {tuple(size)} for a photo of size {image.shape[:2]}: expected the same size")
