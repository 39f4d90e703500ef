"""COCO's instances JSON, as labelling tools write it: what is left out and has a plain meaning is filled in.

    iscrowd        0
    segmentation   the box, as a polygon
    bbox           around the mask
    area           of the mask, or of the box where there is no mask

Anything else that is missing or wrong is refused, naming file and annotation, before hours of training. Annotations
are numbered anew from 1, for pycocotools takes the number 0 for no annotation.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from training.evaluation.data.labels import check_size
from video_distilled_encoder.errors import InputError, import_extra

_PARTS = ("images", "annotations", "categories")
_EMPTY: tuple[Any, ...] = (None, [], [[]], {})
"""How tools write that there is no mask or no box."""


class Instances(NamedTuple):
    """What pycocotools takes as a data set, and what was filled in."""

    content: dict[str, Any]
    """Images, annotations and categories, complete."""
    filled: str
    """What was filled in, and how often; empty if nothing was."""


def read_instances(path: Path, folder: Path) -> Instances:
    """Read annotations and check them, and that their images are there.

    Args:
        path: the JSON file.
        folder: of the images.

    Raises:
        InputError: the file is not COCO's instances, an annotation cannot be used, or an image is missing or of another
            size than the file says.
        MissingExtra: pycocotools is not installed.
    """
    import_extra("pycocotools.mask", "evaluation")
    content = _read(path)
    categories = _by_id(content["categories"], "category", path)
    images = _by_id(content["images"], "image", path)
    if not images or not categories:
        raise InputError(f"{path} lists no images or no categories; expected COCO's instances")
    _check_images(content["images"], path, folder)
    filled: Counter[str] = Counter()
    for number, annotation in enumerate(content["annotations"], start=1):
        try:
            if annotation.get("category_id") not in categories:
                raise _Wrong(f"has the category_id {annotation.get('category_id')!r}, which is none of its categories")
            if annotation.get("image_id") not in images:
                raise _Wrong(f"has the image_id {annotation.get('image_id')!r}, which is none of its images")
            filled.update(complete(annotation, images[annotation["image_id"]]))
        except (_Wrong, TypeError) as error:  # what cannot be a key of a dictionary is no id either
            identity = f" (id {annotation['id']!r})" if "id" in annotation else ""
            raise InputError(f"{path}: annotation {number}{identity} {error}; mend or remove it") from error
        annotation["id"] = number
    return Instances(content, ", ".join(f"{what} of {count}" for what, count in filled.items()))


class _Wrong(ValueError):
    """What is wrong with an annotation."""


def complete(annotation: dict[str, Any], image: dict[str, Any]) -> list[str]:
    """Fill in what an annotation lacks, and return what that was.

    Args:
        annotation: is changed.
        image: its entry.

    Raises:
        ValueError: something is wrong, or it has neither mask nor box.
    """
    filled = []
    for name in ("iscrowd", "area"):
        value = annotation.get(name)
        if value is not None and not (_finite([value]) and value >= 0 and (name == "area" or value in (0, 1))):
            raise _Wrong(f"has the {name} {value!r}")
    if annotation.get("iscrowd") is None:
        annotation["iscrowd"] = 0
        filled.append("iscrowd 0")
    has_mask, has_box = (annotation.get(name) not in _EMPTY for name in ("segmentation", "bbox"))
    if not has_mask and not has_box:
        raise _Wrong("has neither segmentation nor bbox")
    if has_mask:
        _check_mask(annotation["segmentation"], [image["height"], image["width"]])
    if has_box:
        _check_box(annotation["bbox"])
    if not has_mask:
        left, top, width, height = annotation["bbox"]
        right, bottom = left + width, top + height
        annotation["segmentation"] = [[left, top, right, top, right, bottom, left, bottom]]
        filled.append("mask from the box")
    if not has_box:
        annotation["bbox"] = _box(annotation["segmentation"], image)
        filled.append("box from the mask")
    if annotation.get("area") is None:
        box = annotation["bbox"]
        annotation["area"] = _area(annotation["segmentation"], image) if has_mask else float(box[2] * box[3])
        filled.append(f"area from the {'mask' if has_mask else 'box'}")
    return filled


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the three parts of the file, each a list of objects."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not COCO's instances JSON: it is not JSON in UTF-8 ({error})") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    parts = {name: content.get(name) if isinstance(content, dict) else None for name in _PARTS}
    for name, part in parts.items():
        if not isinstance(part, list) or not all(isinstance(entry, dict) for entry in part):
            raise InputError(f"{path} is not COCO's instances JSON: it needs {name!r}, a list of objects")
    return parts  # type: ignore[return-value]


def _by_id(entries: list[dict[str, Any]], kind: str, path: Path) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for number, entry in enumerate(entries, start=1):
        identity = entry.get("id")
        if type(identity) is not int or identity in found:
            what = "that another one has" if isinstance(identity, int) else "which is no whole number"
            raise InputError(f"{path}: {kind} {number} has the id {identity!r}, {what}; mend it")
        found[identity] = entry
    return found


def _check_images(images: list[dict[str, Any]], path: Path, folder: Path) -> None:
    for number, image in enumerate(images, start=1):
        if not isinstance(image.get("file_name"), str) or not image["file_name"]:
            raise InputError(f"{path}: image {number} (id {image['id']}) has no file_name; mend it")
        if not all(type(image.get(side)) is int and image[side] > 0 for side in ("height", "width")):
            raise InputError(f"{path}: image {image['file_name']} has no height and width in whole pixels; mend it")
    missing = [image["file_name"] for image in images if not (folder / image["file_name"]).is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(images)} images of {path} are not in {folder}, e.g. {missing[0]}; add them"
        )
    for image in images:
        check_size(folder / image["file_name"], (image["width"], image["height"]), f"its annotations in {path}")


def _check_box(box: Any) -> None:
    if not isinstance(box, list) or len(box) != 4 or not _finite(box) or min(box[2:]) < 0:
        raise _Wrong(f"has the bbox {box!r}, which is not [left, top, width, height]")


def _check_mask(mask: Any, size: list[int]) -> None:
    if isinstance(mask, dict):
        _check_runs(mask, size)
        return
    if not isinstance(mask, list) or not all(isinstance(polygon, list) for polygon in mask):
        raise _Wrong("has a segmentation that is neither polygons [[x, y, x, y, x, y, …], …] nor run lengths")
    for polygon in mask:
        if len(polygon) < 6 or len(polygon) % 2:
            raise _Wrong(f"has a polygon of {len(polygon) / 2:g} points, and a polygon has at least 3")
        if not _finite(polygon):
            raise _Wrong("has a polygon whose coordinates are not all numbers")


def _check_runs(mask: dict[str, Any], size: list[int]) -> None:
    """Check run lengths: pycocotools fills a mask that they do not cover with what happens to lie in memory."""
    if mask.get("size") != size:
        raise _Wrong(f"has a mask of the size {mask.get('size')!r}, and its image is {size[0]} x {size[1]}")
    counts = mask.get("counts")
    try:
        runs: Any = _decode(counts) if isinstance(counts, str) else counts
        sound = isinstance(runs, list) and all(type(run) is int and run >= 0 for run in runs)
    except IndexError:
        sound = False
    if not sound or sum(runs) != size[0] * size[1]:
        raise _Wrong("has a mask whose run lengths do not cover its image")


def _decode(text: str) -> list[int]:
    """Return the run lengths of COCO's compressed form.

    Five bits a character, the sixth says that more follow, the number is signed; from the fourth on each is the
    difference to the one two before.
    """
    runs: list[int] = []
    place = 0
    while place < len(text):
        value = shift = 0
        more = True
        while more:
            bits = ord(text[place]) - 48
            value |= (bits & 0x1F) << shift
            more, place, shift = bool(bits & 0x20), place + 1, shift + 5
        if bits & 0x10:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs


def _box(segmentation: Any, image: dict[str, Any]) -> list[float]:
    from pycocotools import mask as rle

    box: list[float] = rle.toBbox(_mask(segmentation, image)).tolist()
    if min(box[2:]) <= 0:
        raise _Wrong("has an empty mask and no bbox")
    return box


def _area(segmentation: Any, image: dict[str, Any]) -> float:
    from pycocotools import mask as rle

    return float(rle.area(_mask(segmentation, image)))


def _mask(segmentation: Any, image: dict[str, Any]) -> Any:
    """Return a mask in pycocotools' form."""
    from pycocotools import mask as rle

    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], str):
        return segmentation
    found = rle.frPyObjects(segmentation, image["height"], image["width"])
    return rle.merge(found) if isinstance(found, list) else found


def _finite(numbers: list[Any]) -> bool:
    """Tell whether all are numbers, none of them infinite."""
    try:
        return math.isfinite(sum(numbers))
    except (TypeError, OverflowError):
        return False
