"""How the report says numbers, times and missing things, the same on the page and in the terminal."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from typing import Any

NOTHING = "–"
NOT_MEASURED = "not measured"
_ALLOWED = "\n\u200c\u200d"  # line end, and the joiners that Persian, Hindi and emoji are written with


def finite(value: object) -> float | None:
    """The value as a float, or None for whatever is not a finite number (null, NaN, text, an absent entry)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def percent(value: object) -> str:
    """A share 0..1 as percent with one digit, without the sign: 0.4123 -> "41.2"."""
    number = finite(value)
    return NOTHING if number is None else f"{100 * number:.1f}"


def points(value: object) -> str:
    """A difference of shares in percent points, with its sign: -0.013 -> "−1.3"."""
    number = finite(value)
    if number is None:
        return NOTHING
    text = f"{100 * number:+.1f}".replace("-", "−")
    return "0.0" if text in ("−0.0", "+0.0") else text


def ratio(value: object) -> str:
    """A number with two digits."""
    number = finite(value)
    return NOTHING if number is None else f"{number:.2f}"


def count(value: object) -> str:
    """A whole number; from five digits on with (unbreakable) spaces between thousands."""
    number = finite(value)
    if number is None:
        return NOTHING
    return f"{number:.0f}" if abs(number) < 10_000 else f"{number:,.0f}".replace(",", "\u00a0")


def duration(value: object) -> str:
    """Seconds in the unit that reads best: "0.4 s", "52 s", "3 min 20 s", "2 h 05 min"."""
    number = finite(value)
    if number is None or number < 0:
        return NOTHING
    if number < 9.95:
        return f"{number:.1f} s"
    if number < 99.5:
        return f"{number:.0f} s"
    minutes, seconds = divmod(round(number), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    hours, minutes = divmod(round(number / 60), 60)
    return f"{hours} h {minutes:02d} min"


def memory(value: object) -> str:
    """Megabytes: "900 MB", "1.8 GB"."""
    number = finite(value)
    if number is None or number <= 0:
        return NOTHING
    return f"{number:.0f} MB" if number < 1000 else f"{number / 1000:.1f} GB"


def clean(text: object) -> str:
    """Text that can be shown anywhere: control characters, turned writing and broken Unicode become visible codes."""
    whole = str(text)
    return whole if whole.isprintable() else "".join(f"\\u{ord(c):04x}" if _unfit(c) else c for c in whole)


def _unfit(character: str) -> bool:
    kind = unicodedata.category(character)
    return character not in _ALLOWED and (kind in ("Cc", "Cf", "Cs") or character in "\ufffe\uffff")


def mapping(value: object) -> Mapping[str, Any]:
    """The value where it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def listed(value: object) -> list[Any]:
    """The value where it is a JSON list, else an empty one."""
    return value if isinstance(value, list) else []
