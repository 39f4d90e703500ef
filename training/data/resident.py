"""Frames kept decoded: in memory that worker processes share, or on the device that trains, where they are cut as well.

All frames of all videos lie in one flat tensor of pixels, one after another, each row by row.

Legend: P = pixels of all frames, F = frames, n = crops, h, w = largest height and width of a piece's crops, S, T =
height and width of a view.
"""

from __future__ import annotations

import gc
import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training.common.machine import free_memory, processors
from training.data.frame_store import FrameStore
from training.data.views import View
from video_distilled_encoder.errors import InputError

_BLOCK = 32
"""Frames that a thread decodes at a time."""
_PIECES = 4
"""Parts that a batch's crops are cut in, from small to large ones, for each is worked on as large as its largest."""


class ResidentFrames:
    """The frames of several stores on one device.

    Args:
        stores: whose frames are decoded now.
        device: where they are kept.

    Raises:
        InputError: they do not fit.
    """

    def __init__(self, stores: Sequence[FrameStore], device: torch.device) -> None:
        needed = sum(store.bytes_in_memory() for store in stores)
        _check_room(needed, device)
        self.pixels = _allocate(needed, device).view(-1, 3)
        """(P, 3) uint8."""
        areas = np.concatenate([np.full(len(store), store.size[0] * store.size[1]) for store in stores])
        widths = np.concatenate([np.full(len(store), store.size[0]) for store in stores])
        firsts = np.cumsum(areas) - areas
        self._firsts, self._widths = (torch.from_numpy(array).to(device) for array in (firsts, widths))
        begins = np.cumsum([0, *map(len, stores)])
        for store, begin in zip(stores, begins, strict=False):
            store.first_resident = int(begin)
        self._decode(stores, firsts[begins[:-1]])

    def _decode(self, stores: Sequence[FrameStore], firsts: np.ndarray) -> None:
        """Decode all frames into their places, in parallel over frames."""
        places = []
        for store, first in zip(stores, firsts, strict=True):
            width, height = store.size
            place = self.pixels[first : first + len(store) * width * height].view(len(store), height, width, 3)
            places += [(store, place, start) for start in range(0, len(store), _BLOCK)]
            if not place.is_cuda:
                store.pixels = place
        bar = tqdm(total=sum(map(len, stores)), desc="decode", unit="frame", dynamic_ncols=True)
        with ThreadPoolExecutor(processors()) as pool, bar:
            for count in pool.map(_decode_block, *zip(*places, strict=True)):
                bar.update(count)

    def cut(self, table: Tensor) -> Tensor:
        """Cut crops: antialiased and bicubic, as torch.nn.functional.interpolate does it, by two matrix products.

        A 112-pixel view of a 256x455 crop takes 0.1 GFLOP and moves about 3 MB; nothing waits for the device, since the
        table, from which all sizes follow, is on the CPU.

        Args:
            table: (..., 8) int64 on the CPU, see `table_of`; all views have one size.

        Returns:
            (..., 3, S, T) uint8.
        """
        device, rows = self.pixels.device, table.flatten(0, -2)
        size = int(rows[0, 6]), int(rows[0, 7])
        order = torch.argsort(rows[:, 3] * rows[:, 4])
        rows, places = rows[order], order
        if device.type == "cuda":
            rows, places = rows.pin_memory(), places.pin_memory()
        moved, places = rows.to(device, non_blocking=True), places.to(device, non_blocking=True)
        views = torch.empty(len(rows), 3, *size, dtype=torch.uint8, device=device)
        step = -(-len(rows) // _PIECES)
        for start in range(0, len(rows), step):
            piece = slice(start, start + step)
            width, height = (-(-int(side) // 16) * 16 for side in rows[piece, 3:5].amax(0))
            views.index_copy_(0, places[piece], self._cut_piece(moved[piece], height, width, size))
        return views.unflatten(0, table.shape[:-1])

    def _cut_piece(self, rows: Tensor, height: int, width: int, size: tuple[int, int]) -> Tensor:
        """Cut (n, 8) crops of at most height x width pixels: (n, 3, S, T) uint8."""
        frame, left, top, across, down, flip = rows[:, :6].unbind(1)
        device = rows.device
        # beyond a crop's edge its last row and column are read again, with a weight of 0
        y = top[:, None] + torch.minimum(torch.arange(height, device=device), down[:, None] - 1)
        x = left[:, None] + torch.minimum(torch.arange(width, device=device), across[:, None] - 1)
        at = (self._firsts[frame, None] + y * self._widths[frame, None])[:, :, None] + x[:, None]
        region = self.pixels[at].movedim(3, 2).float()  # (n, h, 3, w)
        vertical = bicubic_weights(down, size[0], height)  # (n, S, h)
        horizontal = bicubic_weights(across, size[1], width)  # (n, T, w)
        horizontal = torch.where(flip.bool()[:, None, None], horizontal.flip(1), horizontal)
        lines = (vertical @ region.flatten(2)).view(len(rows), size[0] * 3, width)
        views = (lines @ horizontal.transpose(1, 2)).view(len(rows), size[0], 3, size[1])
        return views.transpose(1, 2).round_().clamp_(0, 255).to(torch.uint8)


def table_of(views: Sequence[View], frames: Sequence[int]) -> Tensor:
    """Describe crops by numbers.

    Args:
        views: what to cut.
        frames: number of each view's frame among the resident ones.

    Returns:
        (n, 8) int64: frame, left, top, width, height, mirrored or not, height and width of the view.
    """
    rows = [(frame, *view.box, view.flip, *view.size) for view, frame in zip(views, frames, strict=True)]
    return torch.tensor(rows, dtype=torch.int64)


def bicubic_weights(lengths: Tensor, size: int, width: int) -> Tensor:
    """Return by how much each pixel of a line counts for each pixel of the resized line.

    Keys' cubic with a = -0.5, stretched where lines become shorter, as PIL and torch have it with antialiasing.

    Args:
        lengths: (n,) pixels of the lines.
        size: pixels of the resized lines.
        width: of the result, at least the largest length.

    Returns:
        (n, size, width) float32; rows sum to 1.
    """
    positions = torch.arange(width, device=lengths.device)
    scale = (lengths.float() / size)[:, None, None]
    centres = (torch.arange(size, device=lengths.device)[:, None] + 0.5) * scale
    x = ((positions + 0.5 - centres) / scale.clamp(min=1)).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0)) * (positions < lengths[:, None, None])
    return weights / weights.sum(-1, keepdim=True)


def _decode_block(store: FrameStore, place: Tensor, start: int) -> int:
    """Decode some frames into their place among a store's (F, H, W, 3); return how many."""
    part = place[start : start + _BLOCK]
    buffer = torch.empty(part.shape, dtype=torch.uint8, pin_memory=True) if part.is_cuda else part
    for number, frame in enumerate(buffer.numpy()):
        frame[:] = store.decode(start + number)
    if part.is_cuda:
        part.copy_(buffer)
    return len(part)


def _allocate(count: int, device: torch.device) -> Tensor:
    """Return so many bytes; on the CPU memory that forked workers share, and which /dev/shm does not limit."""
    if device.type == "cpu":
        return torch.frombuffer(mmap.mmap(-1, max(count, 1)), dtype=torch.uint8)[:count]
    return torch.empty(count, dtype=torch.uint8, device=device)


def _check_room(needed: int, device: torch.device) -> None:
    free, share = free_memory(), 0.8
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()  # what an earlier run of this process had is torch's still, and free to be taken
        free, share = torch.cuda.mem_get_info(device)[0], 0.6
    if needed > share * free:
        raise InputError(
            f"the frames take {needed / 2**30:.1f} GiB decoded and {free / 2**30:.1f} GiB of memory are free, of which "
            f"{share:.0%} may be taken; leave clips.in_memory out, or lower extract.fps or extract.short_side"
        )
