import threading
from time import monotonic

import numpy as np
import pytest
import torch
from PIL import Image

from export.pipeline import export
from video_distilled_encoder import Encoder, InputError
from video_distilled_encoder.encoder import EncoderOutput
from video_distilled_encoder.runtimes import load_runtime
from video_distilled_encoder.runtimes.artefact import Camera
from video_distilled_encoder.stream import Stream

LONG = 30
"""Seconds that are waited at most for what comes at once, unless it is broken."""


class HeldEncoder:
    """Its features are the frame's own pixels; each call is held until the test lets it go."""

    def __init__(self):
        self.started = threading.Semaphore(0)
        self.allowed = threading.Semaphore(0)

    def encode(self, images):
        self.started.release()
        assert self.allowed.acquire(timeout=LONG)
        if isinstance(images, BaseException):
            raise images
        pixels = images if isinstance(images, torch.Tensor) else torch.from_numpy(np.array(images))
        return EncoderOutput(pixels, pixels, pixels, pixels[:0])

    def wait_until_busy(self):
        assert self.started.acquire(timeout=LONG)

    def let_go(self):
        self.allowed.release()


@pytest.fixture
def held():
    return HeldEncoder()


@pytest.fixture
def stream(held):
    stream = Stream(held)
    yield stream
    for _ in range(10):
        held.let_go()
    stream.close()


def frame(value):
    return np.full((2, 2, 3), value, np.uint8)


def value(result):
    return int(result.features.cls.flatten()[0])


def encode_one(stream, held):
    """Let the frame that is being encoded pass, and wait until it has."""
    before = stream.totals.encoded
    held.let_go()
    end = monotonic() + LONG
    while stream.totals.encoded == before:
        assert monotonic() < end
        threading.Event().wait(0.001)


def in_thread(call):
    """Start a call in a thread; returns a function that waits for what it returned or raised."""
    outcome = []

    def run():
        try:
            outcome.append(call())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def wait():
        thread.join(LONG)
        return outcome[0]

    return wait


def test_only_the_newest_waiting_frame_is_encoded_and_the_rest_are_counted(stream, held):
    stream.put(frame(10))
    held.wait_until_busy()
    stream.put(frame(11))  # comes back although the encoder is busy
    stream.put(frame(12))
    held.let_go()
    first = stream.get(LONG)
    assert (value(first), first.number, first.dropped) == (10, 0, 0)
    held.wait_until_busy()
    stream.put(frame(13))
    stream.put(frame(14))
    stream.put(frame(15))
    held.let_go()
    second = stream.get(LONG)
    assert (value(second), second.number, second.dropped) == (12, 2, 1)
    held.let_go()
    third = stream.get(LONG)
    assert (value(third), third.number, third.dropped) == (15, 5, 2)
    assert stream.totals == (6, 3, 3, 0)


def test_a_newer_result_takes_the_place_of_one_nobody_took(stream, held):
    stream.put(frame(0))
    held.wait_until_busy()
    stream.put(frame(1))
    stream.put(frame(2))
    encode_one(stream, held)
    encode_one(stream, held)
    result = stream.get(timeout=0)
    assert (value(result), result.number, result.dropped) == (2, 2, 1)
    with pytest.raises(TimeoutError, match="within 0 s; 3 frames put, 2 encoded"):
        stream.get(timeout=0)


def test_each_result_is_given_once(stream, held):
    stream.put(frame(1))
    held.let_go()
    assert value(stream.get(LONG)) == 1
    with pytest.raises(TimeoutError, match=r"within 0\.01 s; 1 frames put, 1 encoded"):
        stream.get(timeout=0.01)


def test_age_runs_from_put_or_the_given_time_until_the_result_is_taken(stream, held):
    before = monotonic()
    stream.put(frame(0))
    between = monotonic()
    held.wait_until_busy()
    encode_one(stream, held)
    taking = monotonic()
    result = stream.get(LONG)
    assert before <= result.frame_time <= between
    assert taking - between <= result.age <= monotonic() - before
    stream.put(frame(1), time=before - 5)
    held.let_go()
    result = stream.get(LONG)
    assert result.frame_time == before - 5
    assert 5 <= result.age <= monotonic() - before + 5


@pytest.mark.parametrize("ahead", [0.001, 0.9])
def test_a_time_slightly_ahead_counts_as_now(stream, held, ahead):
    stream.put(frame(1), time=monotonic() + ahead)
    held.let_go()
    result = stream.get(LONG)
    assert result.frame_time <= monotonic()
    assert result.age >= 0


@pytest.mark.parametrize("wrong", [1e12, float("nan")])
def test_a_time_of_another_clock_is_refused(stream, wrong):
    with pytest.raises(InputError, match=r"in the future .* time\.monotonic"):
        stream.put(frame(0), time=wrong)
    assert stream.totals.put == 0


@pytest.mark.parametrize("kind", ["array", "tensor", "picture", "cameras"])
def test_a_frame_may_be_overwritten_once_it_is_put(stream, held, kind):
    buffer = frame(1)
    picture = Image.fromarray(frame(1))
    given = {"array": buffer, "tensor": torch.from_numpy(buffer), "picture": picture, "cameras": [buffer, buffer]}[kind]
    stream.put(frame(0))
    held.wait_until_busy()
    stream.put(given)
    buffer[:] = 2
    picture.paste((2, 2, 2), (0, 0, 2, 2))
    encode_one(stream, held)
    held.wait_until_busy()
    encode_one(stream, held)
    assert value(stream.get(LONG)) == 1


def test_without_copy_the_callers_own_memory_is_encoded(stream, held):
    buffer = frame(1)
    stream.put(frame(0))
    held.wait_until_busy()
    stream.put(buffer, copy=False)
    buffer[:] = 2
    encode_one(stream, held)
    held.wait_until_busy()
    encode_one(stream, held)
    assert value(stream.get(LONG)) == 2


@pytest.mark.parametrize("error", [InputError("wrong size"), SystemExit("stop")])
def test_an_error_of_encode_is_raised_once_and_the_stream_goes_on(stream, held, error):
    stream.put(error)
    held.let_go()
    with pytest.raises(type(error), match=str(error)):
        stream.get(LONG)
    stream.put(frame(7))
    held.let_go()
    held.wait_until_busy()
    assert value(stream.get(LONG)) == 7
    assert stream.totals == (2, 1, 0, 1)


def test_get_waits_for_a_frame_and_for_close(stream, held):
    waiting = in_thread(lambda: stream.get(LONG))
    stream.put(frame(3))
    held.let_go()
    assert value(waiting()) == 3
    waiting = in_thread(stream.get)
    stream.close()
    assert isinstance(waiting(), InputError)


def test_close_waits_for_the_frame_being_encoded_and_drops_the_one_that_waits(stream, held):
    stream.put(frame(0))
    held.wait_until_busy()
    stream.put(frame(1))
    closing = in_thread(stream.close)
    held.let_go()
    assert closing() is None
    assert stream.totals == (2, 1, 1, 0)
    assert not stream._thread.is_alive()
    stream.close()
    with pytest.raises(InputError, match="the stream is closed"):
        stream.get(timeout=0)
    with pytest.raises(InputError, match="the stream is closed"):
        stream.put(frame(2))
    assert list(stream) == []


def test_iteration_gives_results_until_the_stream_is_closed(stream, held):
    values = []
    stream.put(frame(0))
    held.let_go()
    for result in stream:
        values.append(value(result))
        if len(values) == 3:
            stream.close()
        else:
            stream.put(frame(len(values)))
            held.let_go()
    assert values == [0, 1, 2]


def test_an_error_leaves_the_iteration_that_may_be_begun_anew(stream, held):
    stream.put(InputError("wrong size"))
    held.let_go()
    with pytest.raises(InputError, match="wrong size"):
        next(stream)
    stream.put(frame(1))
    held.let_go()
    assert value(next(stream)) == 1


def test_many_threads_lose_and_repeat_nothing():
    class Echo:
        def encode(self, images):
            return EncoderOutput(images, images, images, images[:0])

    def produce():
        for _ in range(500):
            stream.put(torch.zeros(1), copy=False)

    def consume():
        results.append(list(stream))

    results = []
    with Stream(Echo()) as stream:
        producers = [threading.Thread(target=produce) for _ in range(3)]
        consumers = [threading.Thread(target=consume) for _ in range(2)]
        for thread in producers + consumers:
            thread.start()
        for thread in producers:
            thread.join(LONG)
    for thread in consumers:
        thread.join(LONG)
    numbers = [[result.number for result in taken] for taken in results]
    assert all(taken == sorted(set(taken)) for taken in numbers)
    assert not set(numbers[0]) & set(numbers[1])
    put, encoded, dropped, failed = stream.totals
    assert (put, failed) == (1500, 0)
    assert encoded + dropped == put
    assert sum(result.dropped for taken in results for result in taken) <= dropped


def test_an_encoder_gives_its_own_features(tiny_directory, photograph):
    encoder = Encoder.from_pretrained(tiny_directory)
    picture = Image.open(photograph).convert("RGB")
    with Stream(encoder, size=(48, 64), crop_mode="squash") as stream:
        stream.put(np.asarray(picture))
        result = stream.get(LONG)
        stream.put(np.zeros((4, 4), np.uint8))
        with pytest.raises(InputError, match="an array must be"):
            stream.get(LONG)
    expected = encoder.encode(picture, size=(48, 64), crop_mode="squash")
    assert not result.features.cls.requires_grad
    for name in EncoderOutput._fields:
        assert torch.equal(getattr(result.features, name), getattr(expected, name)), name


def test_a_runtime_gives_its_own_features_and_tells_of_a_frame_of_another_size(tiny_directory, photograph, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    out = tmp_path / "encoder.onnx"
    export(tiny_directory, out, size=(64, 64), batch=(1, 1, 1), camera=Camera(96, 128), layer_parity=False)
    runtime = load_runtime(out)
    picture = np.array(Image.open(photograph).convert("RGB").resize((128, 96)))
    with Stream(runtime) as stream:
        stream.put(picture[:, :-1])
        with pytest.raises(InputError, match="takes frames of 96x128, got 96x127"):
            stream.get(LONG)
        stream.put(picture)
        features = stream.get(LONG).features
    assert torch.equal(features.grid, runtime.encode(picture).grid)
