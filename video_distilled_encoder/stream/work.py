"""What a stream's thread does with frames: reuse what is known, encode the rest in one call."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from video_distilled_encoder.encoder import EncoderOutput
from video_distilled_encoder.preprocessing import Images
from video_distilled_encoder.runtimes.recording import gpus
from video_distilled_encoder.stream.exchange import Exchange, Frame

Encode = Callable[[Images], EncoderOutput]


def work(exchange: Exchange, encode: Encode) -> None:
    """Encode the frames of an exchange until that is closed. What it keeps goes when it returns."""
    last: dict[str, tuple[Images, EncoderOutput]] = {}
    while frames := exchange.next_frames():
        _hand_on(frames, exchange, encode, last)


def _hand_on(
    frames: list[Frame], exchange: Exchange, encode: Encode, last: dict[str, tuple[Images, EncoderOutput]]
) -> None:
    fresh = []
    for frame in frames:
        known = last.get(frame.camera)
        if known and same_bytes(known[0], frame.image):
            exchange.publish(frame, known[1], reused=True)
        else:
            fresh.append(frame)
    outcomes = encode_all(encode, [frame.image for frame in fresh])
    for frame, outcome in zip(fresh, outcomes, strict=True):
        if isinstance(outcome, BaseException):
            exchange.fail(frame, outcome)
        else:
            last[frame.camera] = frame.image, outcome
            exchange.publish(frame, outcome)


def encode_all(encode: Encode, images: list[Images]) -> list[EncoderOutput | BaseException]:
    """Encode several cameras' images in one call, and return the features, or what went wrong, of each.

    Where the call fails, each is encoded alone: a camera's bad frame is its own error, not the others'.
    """
    if len(images) > 1:
        try:
            return list(_split(_finished(encode(images)), len(images)))
        except BaseException:
            pass  # the calls below tell what is wrong, and with which
    return [_attempt(encode, image) for image in images]


def _attempt(encode: Encode, image: Images) -> EncoderOutput | BaseException:
    try:
        return _finished(encode(image))
    except BaseException as error:  # else the thread would end, and get() wait for ever
        return error


def _finished(features: EncoderOutput) -> EncoderOutput:
    """Wait until features are computed: a GPU's are handed out before, and would seem younger than they are."""
    if features.cls.is_cuda:
        with gpus.inside():
            torch.cuda.current_stream(features.cls.device).synchronize()
    return features


def _split(features: EncoderOutput, count: int) -> list[EncoderOutput]:
    """Return the features of each of `count` images as `encode` gives them for it alone, with a leading dimension."""
    single = features.cls.ndim == 2  # images, not lists of them
    parts = [[part[None] if single else part for part in feature.unbind()] for feature in features]
    return [EncoderOutput(*(feature[number] for feature in parts)) for number in range(count)]


def same_bytes(one: Images, other: Images) -> bool:
    """Whether two images hold equal bytes, in memory apart; of what lies in the same memory nothing can be told."""
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same_bytes, one, other))
    if isinstance(one, Image.Image):
        return one is not other and one == other
    if type(one) not in (np.ndarray, Tensor) or (one.dtype, one.shape) != (other.dtype, other.shape) or not one.ndim:
        return False
    if isinstance(one, Tensor):
        apart = one.device == other.device and one.data_ptr() != other.data_ptr()
        return apart and torch.equal(one, other)
    apart = not one.dtype.hasobject and not np.may_share_memory(one, other)
    # in the first row two frames of a camera differ already, if by its noise alone
    return apart and np.array_equal(one[:1], other[:1]) and np.array_equal(one, other)


def copy_image(image: Images) -> Images:
    """Copy what a camera may overwrite; a path is left as it is."""
    if isinstance(image, Tensor):
        return image.detach().clone()
    if isinstance(image, (np.ndarray, Image.Image)):
        return image.copy()
    if isinstance(image, (list, tuple)):
        return [copy_image(part) for part in image]
    return image
