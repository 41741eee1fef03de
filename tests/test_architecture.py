"""Who may know whom, who opens files, who prints. Each check is itself tested on a source that breaks the rule."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "tagseg"
FILES = sorted(p.relative_to(SOURCE).as_posix() for p in SOURCE.rglob("*.py"))

OPENS_FILES: tuple[str, ...] = (
    "data/",
    "report/",
    "viewer/",
    "store.py",
    "disk.py",
    "artifacts.py",
    "cache.py",
    "config.py",
    "runs",
    "cli.py",
)
OPENS_FILES += ("evaluate/folders.py", "training/checkpoint.py")
PRINTS = ("cli.py", "report/")
FORBIDDEN_NAMES = {"utils", "util", "common", "base", "helpers", "helper", "manager", "misc"}
PATH_METHODS = {"open", "read_text", "read_bytes", "write_text", "write_bytes", "unlink", "mkdir", "touch", "rmdir"}
NUMPY_FILES = {"load", "save", "savez", "savez_compressed", "savetxt", "loadtxt", "genfromtxt", "fromfile", "memmap"}


def calls(source: str) -> Iterator[tuple[int, str, str]]:
    """(line, what stands before the last dot, the called name) of every call; local names of imports are resolved."""
    tree = ast.parse(source)
    full: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            full |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom):
            full |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            head, dot, rest = ast.unparse(node.func).partition(".")
            before, _, name = (full.get(head, head) + dot + rest).rpartition(".")
            yield node.lineno, before, name


def file_access(source: str) -> list[str]:
    """Calls that open, read or write files themselves."""
    found = []
    for line, before, name in calls(source):
        root = before.split(".")[0]
        if (
            (not before and name == "open")
            or (before and name in PATH_METHODS)
            or (root in ("numpy", "np") and name in NUMPY_FILES)
            or (root == "torch" and "." not in before and name in ("load", "save"))
            or (root in ("skimage", "imageio", "cv2", "torchvision") and name in ("imread", "imwrite", "read_image"))
        ):
            found.append(f"line {line}: {before}.{name}".replace(": .", ": "))
    return found


def printing(source: str) -> list[str]:
    """Calls of print and writes to the standard streams."""
    return [
        f"line {line}: {before}.{name}"
        for line, before, name in calls(source)
        if (not before and name == "print") or (before in ("sys.stdout", "sys.stderr") and name == "write")
    ]


def imports(source: str) -> set[str]:
    """Dotted names of all that is imported, anywhere in the source."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{'.' * node.level}{node.module or ''}.{a.name}" for a in node.names}
    return found


def torch_imports(source: str) -> list[str]:
    """Direct imports of torch and of what is built on it."""
    return sorted(n for n in imports(source) if n.split(".")[0] in ("torch", "torchvision", "timm"))


def knows_masks(source: str) -> list[str]:
    """Uses of the set that holds pixel truth, imported or reached through a module."""
    reached = {ast.unparse(n) for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Attribute)}
    return sorted(n for n in imports(source) | reached if n.split(".")[-1] == "MaskedSet")


def beyond_types(source: str, room: str) -> list[str]:
    """What a file of `ops` or `nets` imports from tagseg besides the types and its own room."""
    own = ("tagseg.types", f"tagseg.{room}")
    ours = (n for n in imports(source) if n.split(".")[0] in ("tagseg", ""))
    return sorted(n for n in ours if not n.startswith(tuple(f"{o}." for o in own)) and n not in own)


def bad_name(path: str) -> list[str]:
    return [part for part in path.removesuffix(".py").split("/") if part.strip("_") in FORBIDDEN_NAMES]


def of(*starts: str) -> list[str]:
    return [f for f in FILES if f.startswith(starts)]


def violations(files: list[str], check: Callable[[str], list[str]]) -> dict[str, list[str]]:
    found = {f: check((SOURCE / f).read_text(encoding="utf-8")) for f in files}
    return {f: broken for f, broken in found.items() if broken}


def test_there_is_something_to_check() -> None:
    assert {"types.py", "store.py", "artifacts.py", "config.py", "cache.py"} <= set(FILES)
    assert all(of(room) for room in ("ops/", "nets/", "localize/", "data/"))


def test_stages_ops_and_nets_open_no_files() -> None:
    assert violations([f for f in FILES if not f.startswith(OPENS_FILES)], file_access) == {}


def test_only_the_command_line_and_the_report_print() -> None:
    assert violations([f for f in FILES if not f.startswith(PRINTS)], printing) == {}


def test_methods_do_not_import_torch() -> None:
    assert violations(of("methods/"), torch_imports) == {}


def test_pixel_truth_is_out_of_reach_of_what_learns() -> None:
    assert violations(of("localize/", "refine/", "segment/"), knows_masks) == {}


@pytest.mark.parametrize("room", ["ops", "nets"])
def test_ops_and_nets_know_only_the_types(room: str) -> None:
    assert violations(of(f"{room}/"), lambda source: beyond_types(source, room)) == {}


def test_names_say_what_is_inside() -> None:
    assert {f: bad for f in FILES if (bad := bad_name(f))} == {}


BROKEN = [
    (file_access, "open('x')"),
    (file_access, "def f():\n    with open(p, 'w') as h: pass"),
    (file_access, "io.open('x')"),
    (file_access, "os.open('x', 0)"),
    (file_access, "path.read_text()"),
    (file_access, "(folder / 'x').write_bytes(b'')"),
    (file_access, "Path('x').open()"),
    (file_access, "import numpy as np\nnp.load('x')"),
    (file_access, "import numpy\nnumpy.save('x', a)"),
    (file_access, "from numpy import load\nload('x')"),
    (file_access, "from numpy import load as read\nread('x')"),
    (file_access, "from PIL import Image\nImage.open('x')"),
    (file_access, "import PIL.Image\nPIL.Image.open('x')"),
    (file_access, "from PIL.Image import open as look\nlook('x')"),
    (file_access, "torch.load('x')"),
    (file_access, "import torch as t\nt.save(a, 'x')"),
    (printing, "print('x')"),
    (printing, "import sys\nsys.stdout.write('x')"),
    (printing, "from sys import stderr\nstderr.write('x')"),
    (torch_imports, "import torch"),
    (torch_imports, "def f():\n    from torch.nn import functional"),
    (torch_imports, "import torchvision.models as m"),
    (knows_masks, "from tagseg.data.index import MaskedSet"),
    (knows_masks, "from tagseg.data.index import MaskedSet as Tagged"),
    (knows_masks, "if TYPE_CHECKING:\n    from tagseg.data.index import MaskedSet"),
    (knows_masks, "from tagseg.data import index\nindex.MaskedSet('x')"),
    (lambda s: beyond_types(s, "ops"), "from tagseg import config"),
    (lambda s: beyond_types(s, "ops"), "from tagseg.store import Work"),
    (lambda s: beyond_types(s, "ops"), "import tagseg.nets.vgg"),
    (lambda s: beyond_types(s, "ops"), "from .. import store"),
    (bad_name, "ops/utils.py"),
    (bad_name, "common/x.py"),
    (bad_name, "nets/_base.py"),
    (bad_name, "data/helpers.py"),
    (bad_name, "manager.py"),
]


@pytest.mark.parametrize(("check", "source"), BROKEN)
def test_each_check_finds_a_broken_rule(check: Callable[[str], list[str]], source: str) -> None:
    assert check(source)


@pytest.mark.parametrize(
    ("check", "source"),
    [
        (file_access, "work.tick(1)\nmodel.load(x)\nshards.bytes('x')\nwrite_maps(work, [])"),
        (printing, "blueprint(1)\nstream.write('x')\nlog.print('x')"),
        (torch_imports, "from tagseg.training import loop\nimport torchless"),
        (knows_masks, "from tagseg.data.index import TaggedSet\nmasked_set = 1"),
        (lambda s: beyond_types(s, "ops"), "from tagseg.types import U8\nfrom tagseg import types"),
        (bad_name, "data/baseline.py"),
    ],
)
def test_the_checks_let_good_sources_pass(check: Callable[[str], list[str]], source: str) -> None:
    assert check(source) == []


# ------------------------------------------------------------------------------------------------- import-linter


def lint(config: Path, sources: Path) -> subprocess.CompletedProcess[str]:
    code = f"from importlinter.cli import lint_imports; raise SystemExit(lint_imports({str(config)!r}, no_cache=True))"
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(sources), "PYTHONSAFEPATH": "1"}
    return subprocess.run(command, cwd=config.parent, env=environment, capture_output=True, text=True, check=False)


def layers() -> list[str]:
    (contract,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return contract["layers"]


def test_the_layers_hold() -> None:
    pytest.importorskip("importlinter")
    found = lint(ROOT / "pyproject.toml", ROOT / "src")
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("store", "tagseg.artifacts"),
        ("types", "tagseg.config"),
        ("ops.bad", "tagseg.data.x"),
        ("ops.bad", "tagseg.nets.x"),
        ("refine.bad", "tagseg.localize.x"),
        ("segment.bad", "tagseg.evaluate.x"),
        ("report.bad", "tagseg.methods.x"),
        ("runs.x", "tagseg.cli"),
    ],
)
def test_the_linter_finds_a_broken_layer(tmp_path: Path, module: str, imported: str) -> None:
    pytest.importorskip("importlinter")
    rooms = [room.strip() for layer in layers() for room in layer.split("|")]
    for room in rooms:
        single = (SOURCE / f"{room.rpartition('.')[2]}.py").exists()
        place = tmp_path / room.replace(".", "/")
        for file in [place.with_suffix(".py")] if single else [place / "__init__.py", place / "x.py"]:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    (tmp_path / "tagseg" / "__init__.py").touch()
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    (tmp_path / "tagseg" / f"{module.replace('.', '/')}.py").write_text(f"import {imported}\n")
    found = lint(tmp_path / "pyproject.toml", tmp_path)
    assert found.returncode == 1, found.stdout + found.stderr
    assert f"tagseg.{module} -> {imported}" in found.stdout
