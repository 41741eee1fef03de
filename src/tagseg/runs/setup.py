"""From what was asked to what is run: sets opened, weights found, device, precision and every "auto" decided."""

from __future__ import annotations

import platform
import re
import subprocess
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from tagseg import config, methods
from tagseg.artifacts import Weights
from tagseg.data.files import BadFile
from tagseg.data.folder import Opened, open_set
from tagseg.data.index import MaskedSet, TaggedSet
from tagseg.data.other_masks import SAID
from tagseg.data.saliency_folder import check_maps
from tagseg.data.weights import Pretrained, find
from tagseg.disk import write_atomic
from tagseg.methods.protocol import Inputs
from tagseg.runs.given import (
    SEEN,
    check_model,
    given_aux,
    given_model,
    given_picks,
    given_saliency,
    seen_before,
    told_before,
    unused,
    usable,
)
from tagseg.runs.request import Request
from tagseg.training.schedule import recipe_values
from tagseg.types import DataError, EnvironmentFault, UsageError


@dataclass(frozen=True)
class Prepared:
    """A request with everything decided: `cfg` holds no "auto", `inputs` are tags and images without truth."""

    request: Request
    method: ModuleType
    cfg: Any
    inputs: Inputs
    truth: MaskedSet | None
    val: Opened | None
    opened: Opened
    device: str
    precision: str
    backbone: str
    warnings: tuple[str, ...]
    bad_masks: tuple[BadFile, ...] = ()

    @property
    def bad_files(self) -> tuple[BadFile, ...]:
        """Everything that was left out: images that cannot be used, and masks that cannot serve as truth."""
        return (*self.opened.bad, *(self.val.bad if self.val else ()), *self.bad_masks)

    @property
    def cache(self) -> Path:
        return cache_folder(self.request)


def cache_folder(request: Request) -> Path:
    """--cache, else TAGSEG_CACHE, else a folder beside the run."""
    import os

    named = request.cache or (Path(os.environ["TAGSEG_CACHE"]) if os.environ.get("TAGSEG_CACHE") else None)
    return (named or request.out.resolve().parent / ".tagseg-cache").resolve()


def prepare(request: Request) -> Prepared:
    """Open and check everything that can be wrong before the first second of work."""
    method = methods.get(request.method)
    check_numbers(request)
    given = given_saliency(request, method)
    places = [request.data, given.folder if given else None, request.aux]
    for data in (place for place in places if place is not None):
        check_outside(data, request.out)
        check_outside(data, cache_folder(request), "the cache (--cache, TAGSEG_CACHE)")
    device = choose_device(request.device)
    precision = choose_precision(request.precision, device)
    trained = given_model(request, method)
    backbone = _backbone(request, trained)
    cfg = configure(method.Config(), request, device, precision, backbone)
    if trained is not None:
        cfg = method.as_trained(cfg, trained)
    check_backbones(cfg, backbone)
    check_devices(cfg)
    val = open_val(request)
    opened = apart(open_train(request), val) if val and not request.train else open_train(request)
    tagged = opened.images.training()
    if not tagged.tags.any():
        raise DataError(f"{request.data}: no image of {tagged.name!r} has a tag; expected at least one tagged image")
    known = set(opened.truth.ids) if opened.truth else set()
    with_truth = [i for i in tagged.ids if i in known]
    truth = opened.truth.select(with_truth) if opened.truth and with_truth else None
    truth, bad = usable(truth, request.reading.max_bad)
    val_truth, val_bad = usable(val.truth if val else None, request.reading.max_bad)
    val = replace(val, truth=val_truth) if val else None
    if given is not None:
        check_maps(given, tagged.images(), request.workers)
    picks, passed = given_picks(request, method, tagged)
    aux, aux_bad = given_aux(request, method, tagged, val.images if val else None)
    told = [*check_model(trained, tagged, cfg.maps.size), *unused(request)] if trained else []
    inputs = Inputs(tagged, find(request.weights, expected=backbone), aux, given, picks, trained)
    warnings = (
        *opened.warnings,
        *(val.warnings if val else ()),
        *shared_images(tagged, val.images if val else None),
        *shared_images(aux.tagged if aux else None, val.images if val else None, "--aux"),
        *mask_warnings(truth, bad, "training"),
        *mask_warnings(val_truth, val_bad, "val"),
        *aux_warnings(request, aux_bad, val.images if val else None),
        *passed,
        *told,
    )
    masks = (*bad, *val_bad, *aux_bad)
    return Prepared(request, method, cfg, inputs, truth, val, opened, device, precision, backbone, warnings, masks)


def check_numbers(request: Request) -> None:
    """Numbers that no stage would refuse before work was done."""
    limit = request.reading.limit
    for name, value, least in (
        ("--workers", request.workers, 1),
        ("--seed", request.seed, 0),
        ("--k-masks", request.k_masks, 0),
        ("--limit", 1 if limit is None else limit, 1),
    ):
        if value < least:
            raise UsageError(f"{name} {value}: expected {least} or more")


def check_outside(data: str | Path, place: Path, what: str = "--out") -> None:
    """Nothing is written into the data: masks there would take the place of its own, or be read as images next time."""
    if str(data).startswith("scenes:"):
        return
    folder = Path(data).expanduser().resolve()
    folder = folder.parent if folder.name == "images" else folder  # the rest of the layout lies beside images/
    if place.resolve().is_relative_to(folder):
        raise UsageError(f"{what} {place}: found it inside the data folder {folder}, expected a place outside")


def own_folder(out: Path, marker: str) -> None:
    """Take a folder for results: new, empty, or one that was taken before. Other people's files are never replaced."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: found a file, expected a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / marker).exists():
        raise UsageError(
            f"--out {out}: found files that are not a result of this command (no {marker} among them), "
            "expected a new or empty folder: name another"
        )
    if not (out / marker).exists():
        write_atomic(out / marker, b"")


def mask_warnings(truth: MaskedSet | None, bad: tuple[BadFile, ...], which: str) -> tuple[str, ...]:
    """What is said of masks that cannot serve as truth."""
    if not bad:
        return ()
    rest = "nothing is scored on them" if truth is None else f"scored on the other {len(truth)}"
    return (f"{len(bad)} masks of {which} images cannot be used as truth, {rest} (bad_files.csv): {bad[0].detail}",)


def apart(opened: Opened, val: Opened) -> Opened:
    """The images that are not in val: without --train all others are learned from."""
    held = set(val.images.ids)
    ids = [i for i in opened.images.ids if i not in held]
    if not ids:
        raise UsageError("every image is in --val; name the splits to learn from with --train")
    truth = opened.truth.select([i for i in opened.truth.ids if i not in held]) if opened.truth else None
    return replace(opened, images=opened.images.select(ids), truth=truth if truth and len(truth) else None)


def aux_warnings(request: Request, bad: tuple[BadFile, ...], val: TaggedSet | None) -> list[str]:
    """What is said of masks of other classes: those that cannot be used, and val images among those of before."""
    told = []
    if bad:
        told.append(f"{len(bad)} masks of --aux cannot be used, their images were left out (bad_files.csv): "
                    f"{bad[0].detail}")
    if request.adapt is not None and val is not None:
        seen = seen_before(request)
        if seen is None:
            told.append(f"{request.adapt.name}: found no {SEEN}, so whether masks of val images taught its decoder is "
                        "not known")
        twice = [i for i in val.ids if val.source.digest(i) in (seen or ())]
        if twice:
            told.append(f"{len(twice)} images of val are among those whose masks taught the decoder, for example "
                        f"{twice[0]!r}: the val numbers are too good")
    return told


def check_backbones(cfg: Any, backbone: str) -> None:
    """All networks of a run start from one file of weights, so one backbone."""
    other = [
        f"{name}={value}"
        for name, value, _ in config.leaves(cfg)
        if name.rsplit(".", 1)[-1] == "backbone" and value != backbone
    ]
    if other:
        raise UsageError(
            f"--set {other[0]}: the run's backbone is {backbone!r}; choose it with --backbone for all stages"
        )


def open_train(request: Request) -> Opened:
    return open_set(request.data, request.train or (("train",) if _generated(request) else None), request.reading)


def open_val(request: Request) -> Opened | None:
    splits = request.val or (("val",) if _generated(request) else ())
    return open_set(request.data, splits, request.reading) if splits else None


def _backbone(request: Request, trained: Weights | None) -> str:
    """The one that is asked for, that of the model that is adapted, or the usual one for the data."""
    if request.backbone != "auto":
        return request.backbone
    return str(trained.meta["backbone"]) if trained else "small" if _generated(request) else "mobilenet_v2"


def _generated(request: Request) -> bool:
    return request.data.startswith("scenes:")


def configure(default: Any, request: Request, device: str, precision: str, backbone: str) -> Any:
    """Defaults, then the budget, then the config file and --set, then what follows from device and backbone."""
    cfg = config.load(config.with_budget(default, request.budget), request.config, request.sets)
    decided = {"device": device, "precision": precision, "backbone": backbone, "seed": request.seed}
    return config.resolve(config.resolve(cfg, decided), recipe_values(backbone))


def check_devices(cfg: Any) -> None:
    """Every stage's device must be there before work begins: some stages have one of their own (`crf.device`)."""
    for name, value, _ in config.leaves(cfg):
        if name.rpartition(".")[2] == "device":
            choose_device(value, f"setting {name}")


def choose_device(asked: str, name: str = "--device") -> str:
    """ "auto" is the GPU where there is one."""
    import torch

    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", asked):
        raise UsageError(f"{name} {asked!r}: expected one of auto, cpu, cuda, or cuda:N")
    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise EnvironmentFault(f"{name} {asked}: torch finds no usable GPU here; use cpu or auto")
    number, found = int(asked.partition(":")[2] or 0), torch.cuda.device_count()
    if asked.startswith("cuda") and number >= found:
        raise EnvironmentFault(f"{name} {asked}: torch finds {found} GPU(s) here, cuda:0 to cuda:{found - 1}")
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return asked


def choose_precision(asked: str, device: str) -> str:
    """ "auto" is bf16 where the hardware computes in it (emulated bf16 is many times slower than fp32)."""
    if asked not in ("auto", "bf16", "fp32"):
        raise UsageError(f"--precision {asked!r}: expected auto, bf16 or fp32")
    if asked != "auto":
        return asked
    return "bf16" if device.startswith("cuda") or {"avx512_bf16", "amx_bf16"} & cpu_flags() else "fp32"


@cache
def cpu_flags() -> frozenset[str]:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.split(":", 1)[1].split())
    return frozenset()


@cache
def cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def device_text(device: str, precision: str) -> str:
    """The device as reports name it."""
    import torch

    if device.startswith("cuda"):
        return f"cuda ({torch.cuda.get_device_name(device)}, {precision})"
    return f"cpu ({cpu_name()}, {torch.get_num_threads()} threads, {precision})"


def shared_images(train: TaggedSet | None, val: TaggedSet | None, what: str = "train") -> tuple[str, ...]:
    """The leak that is found by content: one image in both train and val, or in val and among other classes' masks."""
    if train is None or val is None:
        return ()
    known = {train.source.digest(i): i for i in train.ids}
    twice = [(known[d], i) for i in val.ids if (d := val.source.digest(i)) in known]
    if not twice:
        return ()
    return (
        f"{len(twice)} images are in {what} and in val, for example {twice[0][0]!r} and {twice[0][1]!r}: "
        "the val numbers are too good",
    )


def commit() -> str | None:
    """The commit of the source tree that runs, with "+dirty" where tracked files were changed; None without git.

    Rows of results that were added meanwhile (docs/results) are no change: they are read by nothing that runs.
    """
    here = Path(__file__).resolve().parent
    with suppress(OSError, subprocess.CalledProcessError):

        def git(*words: str) -> str:
            return subprocess.run(["git", "-C", str(here), *words], check=True, capture_output=True, text=True).stdout

        if "src/tagseg" not in git("ls-files", "--full-name", "setup.py"):
            return None
        name = git("rev-parse", "--short=12", "HEAD").strip()
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":(top,exclude)docs/results").strip()
        return name + ("+dirty" if changed else "")
    return None


def ledger(prepared: Prepared) -> list[str]:
    """Every kind of supervision that went in, in words."""
    tagged, weights = prepared.inputs.tagged, prepared.inputs.pretrained
    lines = [
        f"tags of {len(tagged)} images ({len(tagged.classes)} classes, {int((~tagged.tags.any(1)).sum())} negatives)"
    ]
    lines.append(weights_line(weights))
    if prepared.inputs.aux is not None:
        aux = prepared.inputs.aux
        lines.append(f"pixel masks and tags of {len(aux.tagged)} images of {aux.tagged.name!r}, of other classes: "
                     f"{', '.join(aux.classes)}{aux.said}")
    if prepared.inputs.trained is not None:
        masked, rest = prepared.inputs.trained.meta["masked"], prepared.inputs.trained.meta.get("rest", "background")
        rest = "" if rest == "background" else SAID[rest]  # "background" also where there was nothing of the target
        lines.append(f"a decoder taught by pixel masks of other classes: {', '.join(masked)}{rest}")
        lines += [f"before it was adapted: {line}" for line in told_before(prepared.request)]
    if prepared.inputs.saliency is not None:
        lines.append(f"saliency maps from elsewhere: {prepared.inputs.saliency.origin}")
    picks = prepared.inputs.picks
    if picks is not None and len(picks):
        many = len(prepared.method.CANDIDATES)
        lines.append(f"a person picked the masks of {len(picks)} images among {many} candidates")
    if prepared.request.k_masks and prepared.truth is not None:
        lines.append(f"{prepared.request.k_masks} masks of training images, for the k operating point alone")
    return lines


def weights_line(weights: Pretrained) -> str:
    if weights.is_random:
        return f"no pretrained weights ({weights.name} from random numbers)"
    return f"ImageNet weights of {weights.name} (sha256 {weights.sha256[:12]}...)"
