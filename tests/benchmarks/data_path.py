"""Clips per second and core of the data path, against the usual loader: PIL and torchvision, all crops on the CPU.

    python tests/benchmarks/data_path.py VIDEO… --recipe vfd-vits16

Both read the same JPEGs out of the same frame stores, draw the same number of views of the same sizes, on one thread.
The usual loader decodes whole frames and works on PIL images, as DINO's DataAugmentationDINO does. Ours leaves the
photometric part to the training device; the third row adds it, done on this core, to compare like with like.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from training.data.batch import Batch, augment
from training.data.clips import ClipIndex
from training.data.extraction import extract_all
from training.data.frame_store import open_stores
from training.data.loading import Place
from training.engine.assembly import clip_views
from training.methods.vfd import plan_views
from training.recipes.recipe import Recipe, read_recipe

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class UsualLoader:
    """The views of `vfd`, written as a torchvision user would write them."""

    def __init__(self, index: ClipIndex, recipe: Recipe, colours: bool) -> None:
        self.index, self.recipe, self.archives = index, recipe, {}
        blur = v2.GaussianBlur(9, (0.1, 2.0))
        jitter = [
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
        ]
        last = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*IMAGENET)]
        parts = [*jitter, v2.RandomApply([blur], p=0.5), v2.RandomSolarize(128, 0.2), *last]
        self.finish = v2.Compose(parts if colours else [v2.PILToTensor()])

    def __getitem__(self, position: int) -> list[torch.Tensor]:
        store, numbers = self.index[position]
        archive = self.archives.setdefault(store.path, zipfile.ZipFile(store.path))
        frames = [Image.open(io.BytesIO(archive.read(f"{n:06d}.jpg"))).convert("RGB") for n in numbers]
        views = plan_views(np.random.default_rng(position), frames[0].size, self.recipe.spec)
        out = []
        for view in views:
            left, top, width, height = view.box
            crop = v2.functional.resized_crop(
                frames[view.frame], top, left, height, width, list(view.size), InterpolationMode.BICUBIC
            )
            out.append(self.finish(v2.functional.horizontal_flip(crop) if view.flip else crop))
        return out


class Ours:
    def __init__(self, index: ClipIndex, recipe: Recipe) -> None:
        self.clips = clip_views(recipe, index)

    def __getitem__(self, position: int) -> Batch:
        return self.clips[Place(position, 1.0)]


class OursWithColours:
    """Ours, with what the training device does."""

    def __init__(self, clips: Ours) -> None:
        self.clips = clips

    def __getitem__(self, position: int) -> Batch:
        return augment(self.clips[position], *map(torch.tensor, IMAGENET))


def clips_per_second(loader, count: int) -> float:
    loader[0]
    start = time.perf_counter()
    for position in range(1, count + 1):
        loader[position]
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--recipe", default="vfd-vits16")
    parser.add_argument("--fps", type=float, default=10.0)
    parser.add_argument("--clips", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    recipe = read_recipe(args.recipe, [f"--extract.fps={args.fps}"])
    with tempfile.TemporaryDirectory() as folder:
        stores = open_stores(extract_all(args.videos, Path(folder), recipe.extract))
        index = ClipIndex(stores, recipe.clips, seed=0)
        ours = Ours(index, recipe)
        loaders = {
            "usual, crops only": UsualLoader(index, recipe, colours=False),
            "ours, crops only": ours,
            "usual, crops and colours": UsualLoader(index, recipe, colours=True),
            "ours, crops and colours": OursWithColours(ours),
        }
        rates = {name: clips_per_second(loader, args.clips) for name, loader in loaders.items()}
    sizes = sorted({store.size for store in stores})
    print(f"frames of {sizes}, recipe {args.recipe}, one of {os.cpu_count()} cores")
    for name, rate in rates.items():
        print(f"{name:26} {rate:8.1f} clips/s")
    crops, usual, colours = (
        rates["ours, crops only"],
        rates["usual, crops and colours"],
        rates["ours, crops and colours"],
    )
    print(f"what workers do, ours / usual: {crops / usual:.1f}")
    print(f"crops only, ours / usual: {crops / rates['usual, crops only']:.1f}")
    print(f"crops and colours, ours / usual: {colours / usual:.1f}")


if __name__ == "__main__":
    main()
