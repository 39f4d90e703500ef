"""`python tests/training/evaluation/davis_as_coco.py DAVIS OUT`: a small real set in COCO's layout, to try detection.

Each sequence's mask is one object of the only category. The first 60 % of a sequence's frames are trained on, the last
30 % tested on, every fourth frame of each. The test shows known objects later on, so its AP is comparable with nothing.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as rle

STEP = 4


def write(davis, out):
    masks = sorted((davis / "Annotations" / "480p").iterdir())
    for split, part in (("train2017", slice(0, 0.6)), ("val2017", slice(0.7, 1))):
        chosen = []
        for folder in masks:
            frames = sorted(folder.glob("*.png"))
            chosen += frames[round(part.start * len(frames)) : round(part.stop * len(frames)) : STEP]
        write_split(davis, chosen, out, split)


def write_split(davis, masks, out, split):
    (out / split).mkdir(parents=True)
    (out / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for number, path in enumerate(masks, start=1):
        mask = np.asfortranarray(np.array(Image.open(path)) == 1)
        name = f"{path.parent.name}-{path.stem}.jpg"
        shutil.copy(davis / "JPEGImages" / "480p" / path.parent.name / f"{path.stem}.jpg", out / split / name)
        images.append({"id": number, "file_name": name, "height": mask.shape[0], "width": mask.shape[1]})
        if mask.any():
            code = rle.encode(mask.astype(np.uint8))
            shape = {"area": float(rle.area(code)), "bbox": rle.toBbox(code).tolist(), "iscrowd": 0}
            segmentation = {**code, "counts": code["counts"].decode()}
            annotations.append(
                {"id": number, "image_id": number, "category_id": 1, "segmentation": segmentation, **shape}
            )
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    (out / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


if __name__ == "__main__":
    write(*map(Path, sys.argv[1:]))
