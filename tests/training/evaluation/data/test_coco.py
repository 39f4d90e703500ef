import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from training.evaluation.data.coco import read_instances
from training.evaluation.finetune.detection import CocoSplit, average_precision, coco_results
from video_distilled_encoder.errors import InputError, InputWarning

TRIANGLE = [[10, 10, 30, 10, 10, 30]]
MASK = np.asfortranarray(np.pad(np.ones((20, 30), np.uint8), ((10, 10), (20, 10))))
"""An object in a picture of 40 rows and 60 columns."""
COUNTS = rle.encode(MASK)["counts"].decode()
WHOLE = {
    "id": 7, "image_id": 3, "category_id": 5, "iscrowd": 0, "area": 600.0, "bbox": [20, 10, 30, 20],
    "segmentation": {"size": [40, 60], "counts": COUNTS},
}  # fmt: skip


def without(*names, **changes):
    return {name: value for name, value in (WHOLE | changes).items() if name not in names}


@pytest.fixture
def write(tmp_path):
    def write(*annotations, encoding="utf-8", **changes):
        (tmp_path / "val").mkdir(exist_ok=True)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        Image.new("RGB", (60, 40)).save(tmp_path / "val" / "ä.png")
        content = {
            "images": [{"id": 3, "file_name": "ä.png", "height": 40, "width": 60}],
            "annotations": list(annotations),
            "categories": [{"id": 5, "name": "tree"}],
        }
        path = tmp_path / "annotations" / "instances_val.json"
        path.write_text(json.dumps({**content, **changes}, ensure_ascii=False), encoding=encoding)
        return path

    return write


def read(path):
    return read_instances(path, path.parents[1] / "val")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_what_is_whole_stays_as_it_is_but_for_its_number(write, encoding):
    content, filled = read(write(WHOLE, {**WHOLE, "id": 0}, encoding=encoding))
    assert content["annotations"] == [{**WHOLE, "id": 1}, {**WHOLE, "id": 2}]
    assert filled == ""


@pytest.mark.parametrize("empty", [None, [], [[]]])
@pytest.mark.parametrize("crowd", [0, 1])
def test_what_is_left_out_and_has_a_plain_meaning_is_filled_in(write, empty, crowd):
    runs = {"size": [40, 60], "counts": [20 * 40 + 10, *[20, 20] * 29, 20, 10 + 10 * 40]}
    content, filled = read(
        write(
            without("iscrowd"),
            without("area", iscrowd=crowd, bbox=empty),
            without("area", "bbox", segmentation=runs),
            without("area", segmentation=empty),
            without("bbox", segmentation=TRIANGLE),
        )
    )
    found = content["annotations"]
    assert found[0] == {**WHOLE, "id": 1}
    assert found[1] == {**WHOLE, "iscrowd": crowd, "id": 2}
    assert (found[2]["area"], found[2]["bbox"], found[2]["segmentation"]) == (600, [20, 10, 30, 20], runs)
    assert (found[3]["area"], found[3]["segmentation"]) == (600, [[20, 10, 50, 10, 50, 30, 20, 30]])
    assert found[4]["bbox"] == [10, 10, 19, 19]  # of its pixels
    assert filled == (
        "iscrowd 0 of 1, box from the mask of 3, area from the mask of 2, mask from the box of 1, "
        "area from the box of 1"
    )


def test_filled_in_annotations_score_as_whole_ones_do(write):
    path = write(without("iscrowd", "area", "bbox", "id"), without("segmentation", bbox=[1, 2, 8, 7]))
    with pytest.warns(InputWarning, match=r"instances_val.json leaves something out, which is filled in: iscrowd 0 of"):
        split = CocoSplit(path.parents[1], "val")
    target = split.target(3)
    assert target["boxes"].tolist() == [[20, 10, 50, 30], [1, 2, 9, 9]]
    assert (np.asarray(target["masks"][0]) == MASK).all()
    assert np.asarray(target["masks"][1])[2:9, 1:9].all()
    detections = {
        "boxes": target["boxes"], "labels": target["labels"], "scores": target["boxes"][:, 0] * 0 + 0.9,
        "masks": target["masks"][:, None].float(),
    }  # fmt: skip
    for kind, results in zip(("bbox", "segm"), coco_results(split, 3, detections), strict=True):
        assert average_precision(split, results, kind)["ap"] == 100


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (without(category_id=6), r"annotation 2 \(id 7\) has the category_id 6, which is none of its categories"),
        (without("id", category_id=[5]), "annotation 2 .*list"),
        (without(image_id=4), "the image_id 4, which is none of its images"),
        (without("image_id"), "the image_id None"),
        (without("bbox", segmentation=[]), "has neither segmentation nor bbox"),
        (without(segmentation=[[1, 2, 3, 4]]), "has a polygon of 2 points, and a polygon has at least 3"),
        (without(segmentation=[TRIANGLE[0], []]), "has a polygon of 0 points"),
        (without(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), r"has a polygon of 3\.5 points"),
        (without(segmentation=[[1, 2, 3, 4, 5, None]]), "coordinates are not all numbers"),
        (without(segmentation=[[1, 2, 3, 4, 5, float("nan")]]), "coordinates are not all numbers"),
        (without(segmentation=TRIANGLE[0]), "neither polygons"),
        (without(segmentation="x"), "neither polygons"),
        (without(segmentation={"size": [60, 40], "counts": COUNTS}), r"mask of the size \[60, 40\].* is 40 x 60"),
        (without(segmentation={"size": [40, 60], "counts": COUNTS[:-1]}), "run lengths do not cover its image"),
        (without(segmentation={"size": [40, 60], "counts": "\xff"}), "run lengths do not cover its image"),
        (without(segmentation={"size": [40, 60], "counts": [0, 99]}), "run lengths do not cover its image"),
        (without(segmentation={"size": [40, 60]}), "run lengths do not cover its image"),
        (without("bbox", segmentation=[[1, 1, 1, 1, 1, 1]]), "has an empty mask and no bbox"),
        (without(bbox=[1, 2, -3, 4]), r"the bbox \[1, 2, -3, 4\], which is not"),
        (without(bbox=[1, 2, 3]), r"which is not \[left, top, width, height\]"),
        (without(bbox=[1, 2, 3, "4"]), r"which is not \[left"),
        (without(iscrowd=2), "has the iscrowd 2"),
        (without(area="large"), "has the area 'large'"),
    ],
)
def test_what_has_no_meaning_is_refused_by_file_and_annotation(write, annotation, message):
    with pytest.raises(InputError, match=r"instances_val.json: annotation 2 .*mend or remove it") as found:
        read(write(WHOLE, annotation))
    found.match(message)


IMAGE = {"id": 3, "file_name": "ä.png", "height": 40, "width": 60}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": []}, "lists no images"),
        ({"categories": []}, "or no categories"),
        ({"annotations": None}, "it needs 'annotations', a list of objects"),
        ({"images": [1]}, "it needs 'images'"),
        ({"images": [{**IMAGE, "id": "3"}]}, "image 1 has the id '3', which is no whole number"),
        ({"images": [IMAGE, IMAGE]}, "image 2 has the id 3, that another one has"),
        ({"categories": [{"id": 5}, {"id": 5}]}, "category 2 has the id 5, that another one has"),
        ({"images": [{"id": 3}]}, r"image 1 \(id 3\) has no file_name"),
        ({"images": [{"id": 3, "file_name": "ä.png"}]}, "has no height and width"),
        ({"images": [{**IMAGE, "width": 61}]}, "is 40 x 60 but its annotations in .*json are 40 x 61"),
        ({"images": [IMAGE, {**IMAGE, "id": 4, "file_name": "b.png"}]}, r"1 of the 2 images of .*, e\.g\. b\.png"),
    ],
)
def test_lists_that_cannot_be_used_are_refused(write, changes, message):
    with pytest.raises(InputError, match=message):
        read(write(WHOLE, **changes))


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe{\0", b"[" * 100_000, b'"\xe4"'])
def test_other_files_are_refused(write, content):
    path = write(WHOLE)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"instances_val.json is not COCO's instances JSON"):
        read(path)


def test_run_lengths_of_any_mask_are_read(write):
    rng = np.random.default_rng(0)
    masks = [np.asfortranarray(rng.random((40, 60)) < share, np.uint8) for share in (0, 0.001, 0.3, 0.99, 1)]
    annotations = [
        without(segmentation={"size": [40, 60], "counts": rle.encode(mask)["counts"].decode()}) for mask in masks
    ]
    assert read(write(*annotations)).filled == ""
