"""A sheet of pictures beside the three main directions of several models' features, as red, green and blue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from training.models.loading import Model
from video_distilled_encoder.files import atomic_path
from video_distilled_encoder.pca import PCA

WIDTH, TITLE, GAP = 320, 24, 6


def draw_pca_sheet(models: Mapping[str, Model], images: Sequence[Path], path: Path, patches: int = 30) -> None:
    """Draw a row for each image: itself, and each model's features, with colours common to the images of a model.

    Args:
        models: by heading.
        images: of one size or several.
        path: the PNG.
        patches: along an image's shorter side.
    """
    columns = [[_shrunk(Image.open(image).convert("RGB")) for image in images]]
    for model in models.values():
        sizes = [_size(model, picture, patches) for picture in columns[0]]
        grids = [model.encode(image, size).grid[0] for image, size in zip(images, sizes, strict=True)]
        pca = PCA.fit(torch.cat([grid.flatten(1).T for grid in grids]))
        columns.append(
            [Image.fromarray(pca.picture(g, (p.height, p.width))) for g, p in zip(grids, columns[0], strict=True)]
        )
    heights = [picture.height for picture in columns[0]]
    sheet = Image.new("RGB", (len(columns) * (WIDTH + GAP) - GAP, TITLE + sum(heights) + GAP * len(heights)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for number, (title, pictures) in enumerate(zip(["picture", *models], columns, strict=True)):
        left, top = number * (WIDTH + GAP), TITLE
        pen.text((left + 2, 3), title, "black", font)
        for picture in pictures:
            sheet.paste(picture, (left, top))
            top += picture.height + GAP
    with atomic_path(path) as temporary:
        sheet.save(temporary)


def _shrunk(image: Image.Image) -> Image.Image:
    return image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)


def _size(model: Model, picture: Image.Image, patches: int) -> tuple[int, int]:
    """Return the (height, width) in pixels whose shorter side is so many patches."""
    scale = patches * model.patch_size / min(picture.size)
    return model.nearest_size(picture.height * scale, picture.width * scale)
