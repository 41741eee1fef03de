"""What a run is given besides images and tags: saliency from elsewhere, masks of other classes, a person's picks."""

from __future__ import annotations

import json
from dataclasses import replace
from types import ModuleType

from tagseg.artifacts import Weights
from tagseg.data.files import BadFile
from tagseg.data.folder import open_set
from tagseg.data.index import MaskedSet, TaggedSet, check_size
from tagseg.data.other_masks import RESTS, OtherMasks, of_other_classes
from tagseg.data.picks import Picks, read_picks
from tagseg.data.saliency_folder import SaliencyFolder, open_saliency
from tagseg.runs.request import Request
from tagseg.store import RECORD, verify
from tagseg.types import DataError, UsageError

SEEN = "masks_seen.txt"  # beside a run's weights: the images whose masks of other classes it learned from


def given_saliency(request: Request, method: ModuleType) -> SaliencyFolder | None:
    """The folder of saliency maps from elsewhere, if one was given and the method looks at it."""
    if request.saliency is None and request.saliency_from is None:
        return None
    if not getattr(method, "TAKES_SALIENCY", False):
        raise UsageError(f"--saliency: method {request.method!r} uses no saliency maps; leave it out")
    if request.saliency is None:
        raise UsageError(f"--saliency-from {request.saliency_from!r}: found no --saliency, expected the folder of the "
                         "maps, too")
    return open_saliency(request.saliency, request.saliency_from or "")


def given_aux(request: Request, method: ModuleType, tagged: TaggedSet, val: TaggedSet | None
              ) -> tuple[OtherMasks | None, tuple[BadFile, ...]]:  # fmt: skip
    """The masks of other classes, which some methods cannot do without and the others do not look at, and those of them
    that cannot be used.

    Without --aux-splits the images of val, told by content, are left out: outlines of their other classes would say
    where the target's are not.
    """
    needs = getattr(method, "NEEDS_AUX", False)
    if request.aux is None and (request.aux_splits or request.aux_only or request.aux_rest != "background"):
        raise UsageError("--aux-splits, --aux-only, --aux-rest: found no --aux, expected the folder they are about")
    if request.adapt is not None:
        if request.aux is not None:
            raise UsageError("adapt: the decoder stays as it is and looks at no more masks; leave --aux out")
        return None, ()  # what its masks were of is in the model
    if request.aux is None:
        if needs:
            raise UsageError(f"method {request.method!r} learns outlines from masks of other classes: found no --aux, "
                             "expected a folder of images with masks; without any mask use another method")
        return None, ()
    if not needs:
        raise UsageError(f"--aux: method {request.method!r} looks at no masks; leave it out")
    splits = request.aux_splits or (("train",) if request.aux.startswith("scenes:") else None)
    how = replace(request.reading, tags=None, negative=(), limit=None, only=())
    found = open_set(request.aux, splits, how).truth
    if found is None:
        raise DataError(f"--aux {request.aux}: found no masks/ID.png for its images, expected masks of other classes")
    if val is not None and not request.aux_splits:
        held = {val.source.digest(i) for i in val.ids}
        found = found.select([i for i in found.ids if found.tagged.source.digest(i) not in held])
    if request.aux_rest not in RESTS:
        raise UsageError(f"--aux-rest {request.aux_rest}: expected one of {', '.join(RESTS)}")
    able, bad = usable(found, request.reading.max_bad)
    if able is None:
        raise DataError(f"--aux {request.aux}: {len(bad)} of {len(found)} masks cannot be used, more than --max-bad "
                        f"allows; the first: {bad[0].detail}")
    return of_other_classes(able, tagged.classes, request.aux_only, request.aux_rest), bad


def usable(truth: MaskedSet | None, max_bad: float) -> tuple[MaskedSet | None, tuple[BadFile, ...]]:
    """The part of a set whose masks can be used, looked at now and not after hours of work, and what is wrong.

    A fit sees no mask of what it is asked for, so a wrong one stops nothing; above `max_bad` there are no numbers at
    all, for then the masks are not what they are taken for.
    """
    if truth is None:
        return None, ()
    bad = []
    for sample in truth.ids:
        try:
            check_size(sample, truth.mask(sample).shape, truth.tagged.source.size(sample))
        except DataError as error:
            bad.append(BadFile(f"masks: {sample}", "no-truth", str(error)))
    wrong = {row.path.removeprefix("masks: ") for row in bad}
    if not bad:
        return truth, ()
    if len(bad) > max_bad * len(truth):
        return None, tuple(bad)
    return truth.select([i for i in truth.ids if i not in wrong]), tuple(bad)


def given_model(request: Request, method: ModuleType) -> Weights | None:
    """The model that is adapted to a set's classes. Errors: `UsageError` for what is none, or asked to be another."""
    if request.adapt is None:
        return None
    if not getattr(method, "ADAPTS", False):
        raise UsageError(f"adapt: a run of {request.method!r} has no decoder that could draw other classes; expected "
                         "one of transfernet")
    if request.out.resolve() == request.adapt.resolve():
        raise UsageError(f"--out {request.out}: found the run that is adapted, expected another folder")
    place = request.adapt / "weights"
    if not (place / RECORD).is_file():
        raise UsageError(f"{request.adapt}: holds no trained model (weights/{RECORD}); give the --out folder of a "
                         "finished `tagseg run transfernet`")
    model = Weights(verify(place)["key"], place)
    if model.meta.get("masked") is None:
        raise UsageError(f"{request.adapt}: holds no model of transfernet; expected a run of this method")
    for one in request.sets:
        name, _, value = one.partition("=")
        own = str(model.meta["shape"].get(name.removeprefix("attend.shape."))).lower()
        if name == "attend.scale" or (name.startswith("attend.shape.") and value.lower() != own):
            raise UsageError(f"--set {one}: adapt keeps the network of {request.adapt} as it is; leave this out")
    return model


def told_before(request: Request) -> list[str]:
    """The ledger of the run that is adapted, as it left it."""
    assert request.adapt is not None
    try:
        lines = json.loads((request.adapt / "scores.json").read_text("utf-8"))["ledger"]
        return [str(line) for line in lines]
    except (OSError, ValueError, KeyError, TypeError):
        return [f"what {request.adapt.name} was told is not known: it has no scores.json with a ledger"]


def seen_before(request: Request) -> frozenset[str] | None:
    """Digests of the images whose masks taught the run that is adapted, as it left them; None where it left none."""
    assert request.adapt is not None
    file = request.adapt / SEEN
    return frozenset(file.read_text("ascii").split()) if file.is_file() else None


def unused(request: Request) -> list[str]:
    """A warning on settings of what adapting leaves as it is: encoder and decoder."""
    given = [one for one in request.sets if one.startswith(("encoder=", "start.", "classifier.", "draw."))]
    return [f"--set {', '.join(given)}: adapt keeps encoder and decoder as they are, so nothing follows from it"
            ] if given else []  # fmt: skip


def check_model(model: Weights, tagged: TaggedSet, looked: int) -> list[str]:
    """`UsageError` where a decoder that is adapted has seen masks of a class that is asked for; a warning where images
    are shown to it at another size (`looked`) than it learned from.
    """
    masked = model.meta["masked"]
    known = {name.casefold() for name in masked}
    if model.meta["grid"] and looked != model.meta["size"]:
        raise UsageError(f"adapt: attention {model.meta['shape']['attention']!r} was built for images of "
                         f"{model.meta['size']} pixels a side, found {looked}: choose the --budget of its run, or set "
                         "attend.augment.size, maps.size, predict.maps.size and post.maps.size")
    if shared := [name for name in tagged.classes if name.casefold() in known]:
        raise UsageError(f"adapt: the decoder has learned from masks of {', '.join(shared)}; expected classes that it "
                         f"has not seen (it has seen {', '.join(masked)})")
    if looked != model.meta["size"]:
        return [f"the decoder has learned from images of {model.meta['size']} pixels a side and is shown {looked}: "
                "choose the --budget of its run, or --set maps.size, predict.maps.size and post.maps.size"]
    return []


def given_picks(request: Request, method: ModuleType, tagged: TaggedSet) -> tuple[Picks | None, list[str]]:
    """The picks of these images, if a file was given and the method offers candidates; a warning on picks of others."""
    if request.picks is None:
        return None, []
    if not getattr(method, "TAKES_PICKS", False):
        raise UsageError(f"--picks: method {request.method!r} has no candidate masks to pick from; leave it out")
    picks = read_picks(request.picks, method.CANDIDATES)
    mine = picks.among(tagged.ids)
    if len(picks) and not len(mine):
        raise DataError(f"{request.picks}: none of its {len(picks)} images is among the {len(tagged)} training images; "
                        "give the file that belongs to this set")
    left = len(picks) - len(mine)
    return mine, [f"{request.picks}: {left} of {len(picks)} picks are of other images"] if left else []
