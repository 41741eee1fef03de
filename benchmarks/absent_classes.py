"""`python -m benchmarks.absent_classes RUN DATA SPLIT`: does a transfernet's attention depend on what is there?

Attention is asked for every class that it knows in the first photos of a split, and the classifier says what it was
shown. Where it names classes that a photo has not as readily as those that it has, the two have agreed on a sign for
each class and tags have taught nothing. No mask is looked at.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from tagseg.data.folder import open_set
from tagseg.inference import net_shape, resized
from tagseg.runs.predict import trained
from tagseg.segment.train_decoder import load

PHOTOS = 60


@torch.inference_mode()
def main(run: Path, data: Path, split: str) -> None:
    known, tagged = trained(run, "cpu"), open_set(data, (split,)).images
    model = load(known.model)
    classes = [*known.classes, *known.model.meta["others"]]
    columns = [tagged.classes.index(name) for name in classes]
    every, named, sure, there = torch.eye(len(classes)).bool(), [], [], []
    for sample in tagged.ids[:PHOTOS]:
        image = tagged.source.read(sample)
        shape = net_shape((image.shape[1], image.shape[2]), known.cfg.maps.size, 1.0, model.backbone.min_size)
        x = model.backbone.preprocess(torch.from_numpy(resized(image, shape))[None].float() / 255)
        _, _, logits = model(model.encode(x).rows(torch.zeros(len(classes), dtype=torch.long)), every)
        named.append((logits.argmax(1) == torch.arange(len(classes))).numpy())
        sure.append(logits.softmax(1).diagonal().numpy())
        there.append(tagged.tags_of(sample)[columns])
    right, share, present = (np.concatenate(found) for found in (named, sure, there))
    above = stats.mannwhitneyu(share[present], share[~present]).statistic / (present.sum() * (~present).sum())
    print(f"named: {right[present].mean():.3f} of {present.sum()} that are there, {right[~present].mean():.3f} of "
          f"{(~present).sum()} that are not; area under the curve {above:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
