import os
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from training.evaluation import cache as store
from training.evaluation.features import extract
from training.models.loading import Constant, Pixels
from video_distilled_encoder import InputError


class Counting(Pixels):
    """Pixels that count how many images they were asked for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def encode(self, images, *args, **options):
        self.count += len(images)
        return super().encode(images, *args, **options)


@pytest.fixture
def files(photograph, tmp_path):
    image = Image.open(photograph).convert("RGB")
    paths = []
    for number in range(10):
        paths.append(tmp_path / f"{number}.png")
        image.crop((number * 10, 0, number * 10 + 64, 48)).save(paths[-1])
    return paths


def test_features_are_extracted_once_by_content(files, tmp_path):
    model = Counting()
    first = extract(model, files, (48, 64), cache=tmp_path / "cache")
    assert (first.cls.shape, first.grid.shape, first.grid.dtype) == ((10, 768), (10, 3, 4, 768), torch.float16)
    direct = Pixels().encode([Image.open(file) for file in files], (48, 64))
    assert torch.equal(first.grid, direct.grid.movedim(1, -1).half())
    assert torch.equal(first.cls, direct.cls.half())
    again = extract(model, files, (48, 64), cache=tmp_path / "cache")
    assert model.count == 10
    assert torch.equal(again.grid, first.grid)
    files[3].write_bytes(files[4].read_bytes())
    extract(model, files, (48, 64), cache=tmp_path / "cache")
    assert model.count == 20


def test_another_model_or_size_is_another_entry(files, tmp_path):
    extract(Pixels(), files, (48, 64), cache=tmp_path / "cache")
    assert extract(Constant(), files, (48, 64), cache=tmp_path / "cache").grid.shape[-1] == 8
    assert extract(Pixels(), files, (32, 32), cache=tmp_path / "cache").grid.shape[1:3] == (2, 2)
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_pixels_in_memory_are_keyed_by_content_too(files, tmp_path):
    arrays = [np.array(Image.open(file)) for file in files]
    model = Counting()
    for _ in range(2):
        extract(model, arrays, (48, 64), cache=tmp_path / "cache")
    assert model.count == 10


def test_an_entry_whose_deletion_was_killed_is_extracted_again(files, tmp_path):
    model = Counting()
    first = extract(model, files, (48, 64), cache=tmp_path / "cache")
    (entry,) = (tmp_path / "cache").iterdir()
    (entry / "cls.npy").unlink()
    again = extract(model, files, (48, 64), cache=tmp_path / "cache")
    assert model.count == 20
    assert torch.equal(first.cls, again.cls)


def test_nothing_is_left_of_an_extraction_that_failed(files, tmp_path):
    files[5].write_bytes(b"no image")
    with pytest.raises(InputError, match=r"5\.png"):
        extract(Pixels(), files, (48, 64), cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(InputError, match="no images"):
        extract(Pixels(), [], (48, 64), cache=tmp_path / "cache")


class Loud(Pixels):
    """Pixels of which the bright ones come to more than float16 holds, as those of models without a final norm do."""

    def _features(self, pixels, layers):
        cls, grid = super()._features(pixels, layers)
        return tuple(torch.where(feature > 0, feature * 1e6, feature) for feature in (cls, grid))


@pytest.mark.parametrize("first", [0, 9])
def test_features_too_large_for_float16_are_kept_in_float32(tmp_path, first):
    dark, bright = np.zeros((48, 64, 3), np.uint8), np.full((48, 64, 3), 255, np.uint8)
    images = [dark] * first + [bright] * 2 + [dark]
    found = extract(Loud(), images, (48, 64), cache=tmp_path / "cache")
    expected = Loud().encode(images, (48, 64))
    assert found.grid.dtype == found.cls.dtype == torch.float32
    assert torch.equal(found.grid[first:-1], expected.grid.movedim(1, -1)[first:-1])
    assert torch.allclose(found.cls, expected.cls, rtol=1e-3)
    again = extract(Loud(), images, (48, 64), cache=tmp_path / "cache")
    assert torch.equal(again.grid, found.grid)
    assert {file.name for file in next((tmp_path / "cache").iterdir()).iterdir()} == {"cls.npy", "grid.npy"}


def test_features_that_are_no_numbers_are_refused(files, tmp_path):
    model = Pixels()
    model._features = lambda pixels, layers: (pixels[:, :, 0, 0], pixels / 0)
    with pytest.raises(InputError, match="features that are not finite"):
        extract(model, files, (48, 64), cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("change", [{"mean": (0, 0, 0)}, {"std": (1, 1, 1)}, {"interpolation": "bilinear"}])
def test_another_preprocessing_is_another_entry(files, tmp_path, change):
    model = Pixels()
    first = extract(model, files, (32, 48), cache=tmp_path / "cache")
    model.config = replace(model.config, **change)
    assert not torch.equal(extract(model, files, (32, 48), cache=tmp_path / "cache").grid, first.grid)


def test_what_was_used_longest_ago_makes_room(files, tmp_path, monkeypatch):
    cache = tmp_path / "cache"

    def entry_of(images, hours_ago):
        before = set(cache.glob("*"))
        extract(Pixels(), images, (48, 64), cache=cache)
        (entry,) = set(cache.glob("*")) - before
        for path in (*entry.iterdir(), entry):
            os.utime(path, (time.time() - 3600 * hours_ago,) * 2)
        return entry

    oldest, old, used_again, recent = (entry_of(files[n : n + 1], hours) for n, hours in enumerate((9, 8, 10, 0.5)))
    extract(Pixels(), files[2:3], (48, 64), cache=cache)
    killed = cache / f".{oldest.name}.k2j_9xab"
    oldest.rename(killed)
    mine = cache / "results"
    mine.mkdir()
    (mine / "figures.npy").write_bytes(bytes(100_000))
    os.utime(mine, (0, 0))
    checksum = cache / ("0" * 32)
    checksum.write_bytes(b"a file of the user's with an entry's name")

    size = sum(file.stat().st_size for file in old.iterdir())
    monkeypatch.setattr(store, "CACHE_BYTES", 4 * size)
    new = entry_of(files[4:5], 0)
    assert set(cache.iterdir()) == {old, used_again, recent, new, mine, checksum}, (
        "the killed one goes first, and is enough"
    )
    monkeypatch.setattr(store, "CACHE_BYTES", 0)
    newest = entry_of(files[5:6], 0)
    assert set(cache.iterdir()) == {used_again, recent, new, newest, mine, checksum}, (
        "what is in use stays, whatever the limit"
    )
