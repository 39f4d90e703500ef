"""DAVIS: the masks of a video's first frame are carried to its other frames by the similarity of patch features.

Nothing is trained: see `training/evaluation/probes/propagation.py` for the procedure and for what --variant means.
Labels are upsampled bilinearly to the annotations' size. Scored as DAVIS-2017, semi-supervised: region similarity J and
boundary accuracy F of each object, averaged over the frames but the first and the last, then over the objects of all
sequences; decay is the mean of the first quarter of the frames minus that of the last. `interval` is J&F's 95 %
bootstrap when sequences are drawn with replacement, `units` holds its mean over the objects of each. Expected:

    JPEGImages/480p/SEQUENCE/*.jpg
    Annotations/480p/SEQUENCE/*.png     palette index of the object, 0 background
    ImageSets/2017/SPLIT.txt            or ImageSets/SPLIT.txt: a sequence per line

The objects are the indices in the first mask; 255 (void) counts as background.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from training.evaluation.data.labels import VOID, check_labels, read_labels
from training.evaluation.data.listing import read_list
from training.evaluation.features import extract
from training.evaluation.metrics.segmentation import (
    Statistics,
    boundary_accuracy,
    region_similarity,
    statistics,
)
from training.evaluation.probes.propagation import VARIANTS, Variant, decide, labels_on_grid, propagate
from training.evaluation.statistics.figures import by_unit, percent
from training.models.model import Model
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.files import atomic_path, find_frames

LAYOUT = "JPEGImages/480p/SEQUENCE/*.jpg, Annotations/480p/SEQUENCE/*.png and ImageSets/2017/SPLIT.txt"


@dataclass(frozen=True)
class Sequence:
    """A video with a mask per frame."""

    name: str
    images: list[Path]
    masks: list[Path]

    def read(self, number: int) -> np.ndarray:
        """Return the (H, W) object numbers of a frame, 0 where there is none."""
        labels = read_labels(self.masks[number])
        labels[labels == VOID] = 0
        return labels


@dataclass(frozen=True)
class Scores:
    """J and F of each object of a sequence."""

    j: list[Statistics]
    f: list[Statistics]

    def j_and_f(self) -> list[float]:
        """Return the mean of J and F for each object."""
        return [(j.mean + f.mean) / 2 for j, f in zip(self.j, self.f, strict=True)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the protocol's options."""
    parser.add_argument("--variant", choices=VARIANTS, default="dino", help="whose numbers (%(default)s)")
    parser.add_argument("--split", default="val", help="list of sequences (%(default)s)")
    parser.add_argument("--sequences", nargs="+", help="only these sequences of it")
    parser.add_argument("--masks", type=Path, help="write the predicted masks here, SEQUENCE/FRAME.png")


def evaluate(model: Model, args: argparse.Namespace) -> dict[str, object]:
    """Propagate and score every sequence."""
    variant = VARIANTS[args.variant]
    sequences = find_sequences(args.data, args.split, args.sequences)
    scores, sizes = {}, set()
    for sequence in tqdm(sequences, desc="propagate", unit="sequence", dynamic_ncols=True):
        height, width = sequence.read(0).shape
        size = variant.input_size(height, width, model.patch_size)
        sizes.add(size)
        scores[sequence.name] = score(sequence, predict(model, sequence, size, variant, args), args.masks)
    return {
        "figures": figures(scores),
        "setting": {
            **variant.setting(),
            "features": "patch tokens, last block",
            "resizing": model.resizing(),
            "encoded_sizes": sorted(sizes),
            "frames_scored": "all but the first and the last",
        },
        "data": {
            "test": f"{args.data.name}/{args.split}, {len(sequences)} sequences, "
            f"{sum(len(s.j) for s in scores.values())} objects, {sum(len(s.images) for s in sequences)} frames"
        },
    }


def figures(scores: dict[str, Scores]) -> dict[str, object]:
    """Return the result's figures, in percent; means are over all objects."""
    j = [statistic for one in scores.values() for statistic in one.j]
    f = [statistic for one in scores.values() for statistic in one.f]
    values = [value for one in scores.values() for value in one.j_and_f()]
    names = [name for name, one in scores.items() for _ in one.j]
    return {
        "j_and_f": percent(values),
        "j": percent([one.mean for one in j]),
        "f": percent([one.mean for one in f]),
        "j_recall": percent([one.recall for one in j]),
        "f_recall": percent([one.recall for one in f]),
        "j_decay": percent([one.decay for one in j]),
        "f_decay": percent([one.decay for one in f]),
        **by_unit(values, names),
        "sequences": {
            name: {measure: percent([statistic.mean for statistic in getattr(one, measure)]) for measure in "jf"}
            for name, one in scores.items()
        },
    }


def find_sequences(root: Path, split: str, only: list[str] | None = None) -> list[Sequence]:
    """Return the sequences of a split.

    Raises:
        InputError: a file is missing or has no counterpart that lies as it does, or a name in `only` is not in the
            split.
    """
    listings = [root / "ImageSets" / "2017" / f"{split}.txt", root / "ImageSets" / f"{split}.txt"]
    listing = next((path for path in listings if path.is_file()), None)
    if listing is None:
        raise InputError(f"{listings[0]} does not exist, nor {listings[1]}; expected {LAYOUT} in {root}")
    names = read_list(listing)
    unknown = sorted(set(only or ()) - set(names))
    if unknown or not names:
        raise InputError(f"{listing} does not list {unknown[0]}" if unknown else f"{listing} lists no sequence")
    return [_find_sequence(root, name) for name in names if not only or name in only]


def _find_sequence(root: Path, name: str) -> Sequence:
    images = find_frames(root / "JPEGImages" / "480p" / name, {".jpg"})
    masks = find_frames(root / "Annotations" / "480p" / name, {".png"})
    odd = sorted({path.stem for path in images} ^ {path.stem for path in masks})
    if odd:
        raise InputError(f"images and masks of {name} in {root} do not match, e.g. {odd[:3]}; expected {LAYOUT}")
    if len(images) < 3:
        raise InputError(f"{name} in {root} has {len(images)} frames, at least 3 are needed; expected {LAYOUT}")
    for image, mask in zip(images, masks, strict=True):
        check_labels(image, mask)
    return Sequence(name, images, masks)


def predict(
    model: Model, sequence: Sequence, size: tuple[int, int], variant: Variant, args: argparse.Namespace
) -> Iterator[np.ndarray]:
    """Yield the (H, W) object numbers of every frame, in order, beginning with the given ones of the first.

    Raises:
        InputError: the first mask holds no object.
    """
    first = sequence.read(0)
    numbers = np.unique(np.append(first, 0)).tolist()
    if len(numbers) < 2:
        raise InputError(
            f"{sequence.masks[0]} holds no object; its palette indices must be 0 for background and 1, 2, …"
        )
    grids = extract(model, sequence.images, size, cache=args.cache, in_order=True, desc=f"encode {sequence.name}").grid
    labels = labels_on_grid(first, numbers, (grids.shape[1], grids.shape[2]))
    yield first
    for carried in propagate(grids, labels, variant, model.device):
        yield decide(carried, numbers, first.shape)


def score(sequence: Sequence, predictions: Iterator[np.ndarray], folder: Path | None = None) -> Scores:
    """Return J and F of the objects of a sequence; write the masks to `folder` if there is one.

    Raises:
        InputError: a mask has another size than the first.
    """
    j: list[list[float]] = []
    f: list[list[float]] = []
    numbers = [number for number in np.unique(sequence.read(0)).tolist() if number]
    for frame, prediction in enumerate(predictions):
        if folder:
            write_mask(prediction, folder / sequence.name / sequence.masks[frame].name)
        if frame in (0, len(sequence.masks) - 1):
            continue
        truth = sequence.read(frame)
        if truth.shape != prediction.shape:
            raise InputError(f"{sequence.masks[frame]} is not of the size of the sequence's first mask")
        j.append([region_similarity(prediction == n, truth == n) for n in numbers])
        f.append([boundary_accuracy(prediction == n, truth == n) for n in numbers])
    return Scores(*([statistics(values) for values in np.array(measure).T] for measure in (j, f)))


def write_mask(labels: np.ndarray, path: Path) -> None:
    """Write (H, W) object numbers as a palette PNG in the colours of DAVIS and PASCAL VOC."""
    image = Image.fromarray(labels)
    image.putpalette(_palette())
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def _palette() -> list[int]:
    """256 RGB colours: the bits of a number dealt out in turn to red, green and blue, high bits first."""
    return [
        sum((number >> 3 * bit + channel & 1) << 7 - bit for bit in range(8))
        for number in range(256)
        for channel in range(3)
    ]
