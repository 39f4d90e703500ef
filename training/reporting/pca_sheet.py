"""A sheet of pictures beside the three main directions of several models' features, as red, green and blue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from training.common.tiles import write_tiles
from training.models.model import Model
from video_distilled_encoder.pca import PCA

WIDTH = 320


def draw_pca_sheet(models: Mapping[str, Model], images: Sequence[Path], path: Path, patches: int = 30) -> None:
    """Draw a row for each image: itself, and each model's features, with colours common to the images of a model.

    Args:
        models: by heading.
        images: of one size or several.
        path: the PNG.
        patches: along an image's shorter side.
    """
    pictures = [_shrunk(Image.open(image).convert("RGB")) for image in images]
    columns = [[_title("picture"), *map(np.asarray, pictures)]]
    for title, model in models.items():
        sizes = [_size(model, picture, patches) for picture in pictures]
        grids = [model.encode(image, size).grid[0] for image, size in zip(images, sizes, strict=True)]
        pca = PCA.fit(torch.cat([grid.flatten(1).T for grid in grids]))
        drawn = (pca.picture(grid, (p.height, p.width)) for grid, p in zip(grids, pictures, strict=True))
        columns.append([_title(title), *drawn])
    write_tiles(path, list(zip(*columns, strict=True)), gap=6)


def _title(text: str) -> np.ndarray:
    title = Image.new("RGB", (WIDTH, 18), "white")
    ImageDraw.Draw(title).text((2, 2), text, "black", ImageFont.load_default(14))
    return np.asarray(title)


def _shrunk(image: Image.Image) -> Image.Image:
    return image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)


def _size(model: Model, picture: Image.Image, patches: int) -> tuple[int, int]:
    """Return the (height, width) in pixels whose shorter side is so many patches."""
    scale = patches * model.patch_size / min(picture.size)
    return model.nearest_size(picture.height * scale, picture.width * scale)
