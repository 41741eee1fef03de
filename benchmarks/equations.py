"""Refresh the file:line places in docs/papers/METHOD.md from the `# METHOD Eq. N` comments in the source."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def places(method: str) -> dict[str, list[str]]:
    """Equation number -> `file:line`, in the order of files."""
    found: dict[str, list[str]] = {}
    for file in sorted((ROOT / "src" / "tagseg").rglob("*.py")):
        for line, text in enumerate(file.read_text().splitlines(), 1):
            if numbers := re.search(rf"# {method} Eq\. ([\d, ]+)", text):
                for number in numbers.group(1).replace(" ", "").strip(",").split(","):
                    place = file.relative_to(ROOT / "src" / "tagseg").as_posix()
                    found.setdefault(number, []).append(f"`{place}:{line}`")
    return found


def main() -> None:
    for page in sorted((ROOT / "docs" / "papers").glob("*.md")):
        known, lines = places(page.stem), page.read_text().split("\n")
        for k, line in enumerate(lines):
            row = re.match(r"^\| (\d+) \|(.*)\| [^|]+ \|$", line)
            if row and row.group(1) in known:
                lines[k] = f"| {row.group(1)} |{row.group(2)}| {', '.join(known[row.group(1)])} |"
        page.write_text("\n".join(lines))
        print(f"{page.name}: {len(known)} equations")


if __name__ == "__main__":
    main()
