"""Shared test set-up: array shapes are checked against their annotations, torch is single-threaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from jaxtyping import install_import_hook

# Signatures in ops and nets are checked at run time. The lattice kernels are compiled by numba, which cannot wrap.
CHECKED = [
    "tagseg.ops.geometry",
    "tagseg.ops.scores",
    "tagseg.ops.pooling",
    "tagseg.ops.confusion",
    "tagseg.ops.crf",
    "tagseg.ops.boundary",
    "tagseg.ops.flattening",
    "tagseg.ops.colour",
    "tagseg.ops.background_saliency",
    "tagseg.ops.bayes",
    "tagseg.ops.regions",
    "tagseg.ops.tag_losses",
    "tagseg.nets",
]
install_import_hook(CHECKED, "beartype.beartype")

if TYPE_CHECKING:
    from tiny import Tiny


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """One finished tiny run of method `cam`, shared by all tests; nobody changes it."""
    import torch

    import tiny

    torch.set_num_threads(1)
    return tiny.make(tmp_path_factory.mktemp("tiny") / "run")


def shared_folder() -> Path | None:
    """The folder with real data and weights: TAGSEG_SHARED, else ../shared beside the checkout."""
    named = os.environ.get("TAGSEG_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    return folder if (folder / "data").is_dir() else None


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = shared_folder()
    if folder is None:
        pytest.skip("real data: set TAGSEG_SHARED to the folder that holds data/ and weights/")
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


# A skip is allowed only for these reasons; every other one fails the suite.
ALLOWED_SKIPS = (
    "real data: set TAGSEG_SHARED",
    "weights: no ",
    "pydensecrf2 is not installed",
    "this user may read everything",
    "no graphics card",
    "needs Linux with glibc",
)
_skipped: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-browser", action="store_true", help="the tests that need chromium (make test-browser)")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if collection_path.name == "browser" and not config.getoption("--run-browser") else None


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and isinstance(report.longrepr, tuple):
        _skipped.append(str(report.longrepr[2]))


def pytest_sessionfinish(session: pytest.Session) -> None:
    unlisted = [reason for reason in _skipped if not any(allowed in reason for allowed in ALLOWED_SKIPS)]
    if unlisted:
        session.exitstatus = 1
        for reason in unlisted:
            session.config.get_terminal_writer().line(f"\nskip without a listed reason: {reason}", red=True)
