import asyncio
import subprocess
import sys
import threading
import weakref
from time import monotonic

import numpy as np
import pytest
import torch
from PIL import Image

from video_distilled_encoder import Encoder, InputError
from video_distilled_encoder.encoder import EncoderOutput
from video_distilled_encoder.runtimes import load_runtime
from video_distilled_encoder.runtimes.artefact import Camera
from video_distilled_encoder.stream import Stream
from video_distilled_encoder.stream.work import same_bytes

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
    assert stream.totals == (6, 3, 0, 3, 0, 0)  # put, encoded, reused, dropped, failed, late


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
    assert stream.totals == (2, 1, 0, 0, 1, 0)


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
    assert closing() is True
    assert stream.totals == (2, 1, 0, 1, 0, 0)
    assert not stream._thread.is_alive()
    assert stream.close() is True
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
            pixels = torch.stack(images) if isinstance(images, list) else images[None]
            return EncoderOutput(pixels, pixels, pixels, pixels[:, :0])

    def produce(camera):
        for number in range(500):
            stream.put(torch.full((1,), number // 2), copy=False, camera=camera)

    def consume():
        results.append(list(stream))

    results = []
    with Stream(Echo()) as stream:
        producers = [threading.Thread(target=produce, args=(camera,)) for camera in ("left", "left", "wrist")]
        consumers = [threading.Thread(target=consume) for _ in range(2)]
        for thread in producers + consumers:
            thread.start()
        for thread in producers:
            thread.join(LONG)
    for thread in consumers:
        thread.join(LONG)
    for camera in ("left", "wrist"):
        numbers = [[result.number for result in taken if result.camera == camera] for taken in results]
        assert all(taken == sorted(set(taken)) for taken in numbers)
        assert not set(numbers[0]) & set(numbers[1])
    put, encoded, reused, dropped, failed, late = stream.totals
    assert (put, failed, late) == (1500, 0, 0)
    assert encoded + reused + dropped == put
    assert sum(result.dropped for taken in results for result in taken) <= dropped


class Eyes(HeldEncoder):
    """Its class token is the mean of the image, as of one that is encoded alone or with others."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def encode(self, images):
        self.calls.append(images)
        self.started.release()
        assert self.allowed.acquire(timeout=LONG)
        batch = images if isinstance(images, list) else [images]
        shapes = {image.shape for image in batch}
        if len(shapes) > 1 or shapes == {(1, 1, 3)}:
            raise InputError(f"shapes {sorted(shapes)}")
        cls = torch.from_numpy(np.stack([image.reshape(-1, 1).mean(0) for image in batch]))
        return EncoderOutput(cls, cls[:, None], cls[..., None, None], cls[:, None, :0])


@pytest.fixture
def eyes():
    """A stream, its encoder, and the frame that it is busy with."""
    encoder = Eyes()
    stream = Stream(encoder)
    stream.put(frame(0), camera="first")
    encoder.wait_until_busy()
    yield stream, encoder
    for _ in range(10):
        encoder.let_go()
    stream.close()


def test_the_newest_frames_of_all_cameras_are_one_call_and_each_has_its_own_times(eyes):
    stream, encoder = eyes
    now = monotonic()
    stream.put(frame(10), now - 4, camera="left")
    stream.put(frame(20), now - 3, camera="wrist")
    stream.put(frame(11), now - 2, camera="left")
    for _ in range(2):
        encoder.let_go()
    left, wrist = stream.get(LONG, camera="left"), stream.get(LONG, camera="wrist")
    assert len(encoder.calls) == 2
    assert [int(image.mean()) for image in encoder.calls[1]] == [11, 20]
    assert (value(left), left.camera, left.number, left.dropped, left.frame_time) == (11, "left", 1, 1, now - 2)
    assert (value(wrist), wrist.camera, wrist.number, wrist.dropped, wrist.frame_time) == (20, "wrist", 0, 0, now - 3)
    assert 2 <= left.age < wrist.age < LONG
    assert left.features.patches.shape == (1, 1, 1)
    assert stream.totals == (4, 3, 0, 1, 0, 0)


def test_results_of_any_camera_come_the_oldest_first_and_of_a_camera_alone_when_asked(eyes):
    stream, encoder = eyes
    now = monotonic()
    for name, age in (("a", 1), ("b", 3), ("c", 2)):
        stream.put(frame(age), now - age, camera=name)
    encoder.let_go()
    encoder.let_go()
    assert stream.get(LONG, camera="c").camera == "c"
    assert [stream.get(LONG).camera for _ in range(2)] == ["b", "a"]
    assert stream.get(LONG).camera == "first"
    with pytest.raises(TimeoutError, match=r"no new features of camera 'b' within 0 s"):
        stream.get(0, camera="b")


def test_a_bad_frame_of_a_camera_is_not_the_others_error(eyes):
    stream, encoder = eyes
    stream.put(frame(5), camera="good")
    stream.put(np.zeros((1, 1, 3), np.uint8), camera="bad")
    for _ in range(4):  # the first, both, each
        encoder.let_go()
    with pytest.raises(InputError, match="shapes"):
        stream.get(LONG, camera="bad")
    assert value(stream.get(LONG, camera="good")) == 5
    assert stream.totals == (3, 2, 0, 0, 1, 0)


def test_cameras_of_different_sizes_are_encoded_one_after_another(eyes):
    stream, encoder = eyes
    stream.put(frame(5), camera="small")
    stream.put(np.full((4, 4, 3), 6, np.uint8), camera="large")
    for _ in range(4):
        encoder.let_go()
    assert [value(stream.get(LONG, camera=name)) for name in ("small", "large")] == [5, 6]


def test_joined_cameras_get_the_features_of_each_alone(tiny_directory, photograph):
    encoder = Encoder.from_pretrained(tiny_directory)
    rng = np.random.default_rng(0)
    picture = Image.open(photograph).convert("RGB")
    frames = {"left": np.asarray(picture), "right": np.asarray(picture)[:, ::-1], "wrist": picture.resize((50, 40))}
    pair = [rng.integers(0, 256, (40, 40, 3), np.uint8) for _ in range(2)]
    calls = []

    class Counted:
        def encode(self, images, **options):
            calls.append(len(images) if isinstance(images, list) else 0)
            if len(calls) == 1:
                assert all_are_put.wait(LONG)
            return encoder.encode(images, **options)

    all_are_put = threading.Event()
    with Stream(Counted(), size=48) as stream:
        stream.put(frame(0))
        while not calls:
            threading.Event().wait(0.001)
        for name, image in frames.items():
            stream.put(image, camera=name)
        all_are_put.set()
        got = {name: stream.get(LONG, camera=name).features for name in frames}
        stream.put(pair, camera="stereo")
        stereo = stream.get(LONG, camera="stereo").features
    assert calls == [0, 3, 2]
    for name, image in frames.items():
        for one, other in zip(got[name], encoder.encode(image, size=48), strict=True):
            assert one.shape == other.shape
            torch.testing.assert_close(one, other)
    for one, other in zip(stereo, encoder.encode(pair, size=48), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", ["array", "float array", "tensor", "picture", "list"])
def test_equal_bytes_get_the_last_features_and_are_not_encoded_again(stream, held, kind):
    def make(number):
        pixels = frame(number)
        pixels[1, 1, 2] = number + 1  # the last byte
        kinds = {"array": pixels, "float array": pixels / 255, "tensor": torch.from_numpy(pixels)}
        return {**kinds, "picture": Image.fromarray(pixels), "list": [pixels, pixels]}[kind]

    stream.put(make(3))
    held.let_go()
    first = stream.get(LONG)
    held.wait_until_busy()
    before = monotonic()
    stream.put(make(3))
    again = stream.get(LONG)  # although nobody lets an encoder go
    assert (first.reused, again.reused, again.number) == (False, True, 1)
    assert again.features is first.features
    assert before <= again.frame_time
    other = make(3)
    target = np.asarray(other) if kind == "tensor" else other[1] if kind == "list" else other
    if kind == "picture":
        other.putpixel((1, 1), (3, 3, 3))
    else:
        target[1, 1, 2] = 0
    stream.put(other)
    held.let_go()
    different = stream.get(LONG)
    assert (different.reused, different.number) == (False, 2)
    assert stream.totals == (3, 2, 1, 0, 0, 0)


def test_what_cannot_be_told_or_differs_in_form_is_encoded(stream, held):
    buffer = frame(2)
    for given in (buffer, buffer, buffer[:], frame(2).view(np.int8), frame(2)[:, :, :1], [], [frame(2)]):
        stream.put(given, copy=False)
        held.let_go()
        assert not stream.get(LONG).reused
    assert not same_bytes("camera.png", "camera.png")  # a file may be written again


def test_each_camera_has_its_own_last_frame(eyes):
    stream, encoder = eyes
    stream.put(frame(0), camera="second")
    encoder.let_go()
    encoder.let_go()
    assert not stream.get(LONG, camera="second").reused
    stream.put(frame(0), camera="first")
    stream.put(frame(9), camera="second")
    encoder.let_go()
    assert stream.get(LONG, camera="first").features is not None
    assert not stream.get(LONG, camera="second").reused
    assert stream.totals.reused == 1


def test_a_frame_that_is_too_old_is_not_encoded(held):
    with Stream(held, max_age=1) as stream:
        stream.put(frame(1), monotonic() - 5)
        with pytest.raises(TimeoutError, match=r"0\.05 s; 1 frames put, 0 encoded so far, 1 dropped as older than 1 s"):
            stream.get(0.05)
        assert stream.totals == (1, 0, 0, 1, 0, 1)
        stream.put(frame(2))
        held.let_go()
        result = stream.get(LONG)
        assert (value(result), result.dropped) == (2, 1)
        assert [held.started.acquire(blocking=False) for _ in range(2)] == [True, False]


def test_a_result_that_is_too_old_is_dropped_and_counted_never_returned(held):
    with Stream(held, max_age=0.3) as stream:
        stream.put(frame(1))
        encode_one(stream, held)
        threading.Event().wait(0.35)
        with pytest.raises(TimeoutError, match=r"1 encoded so far, 1 dropped as older than 0\.3 s"):
            stream.get(0)
        stream.put(frame(2))
        held.wait_until_busy()
        held.wait_until_busy()
        threading.Event().wait(0.35)  # an encoder that is too slow
        waiting = in_thread(lambda: stream.get(1))
        held.let_go()
        assert isinstance(waiting(), TimeoutError)
        assert stream.totals == (2, 2, 0, 0, 0, 2)
        stream.put(frame(3))
        held.let_go()
        assert stream.get(LONG).age <= 0.3


@pytest.mark.parametrize("wrong", [0, -1.0, float("nan")])
def test_a_wrong_deadline_is_one_sentence(held, wrong):
    with pytest.raises(InputError, match="max_age is a number of seconds more than 0, got"):
        Stream(held, max_age=wrong)


def test_close_gives_up_in_time_and_can_be_asked_again(stream, held):
    stream.put(frame(0))
    held.wait_until_busy()
    before = monotonic()
    assert stream.close(timeout=0.1) is False
    assert 0.1 <= monotonic() - before < LONG / 2
    with pytest.raises(InputError, match="the stream is closed"):
        stream.get(0)
    held.let_go()
    assert stream.close(timeout=LONG) is True


ENDS = """
import sys, time
import numpy as np, torch
from video_distilled_encoder import Encoder, Stream

class Hung:
    def encode(self, images):
        time.sleep(1000)

class Busy:
    def encode(self, images):
        while True:
            torch.randn(300, 300) @ torch.randn(300, 300)

class Stubborn:
    def encode(self, images):
        torch.randn(40_000_000).sort()  # one call of C++ code that is longer than is waited for

encoder = Encoder.from_pretrained(sys.argv[2]) if sys.argv[1] == "Encoder" else globals()[sys.argv[1]]()
stream = Stream(encoder)
stream.put(np.zeros((64, 64, 3), np.uint8))
while stream._exchange._cameras[""].waiting:
    pass
print("done")
"""


@pytest.mark.parametrize("kind", ["Hung", "Busy", "Stubborn", "Encoder"])
def test_a_stream_that_nobody_closes_does_not_hold_up_the_end_of_the_process(kind, tiny_directory):
    command = [sys.executable, "-c", ENDS, kind, tiny_directory]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "done\n", "")


def test_a_stream_that_nobody_holds_lets_its_encoder_go():
    held = HeldEncoder()
    encoder, stream = weakref.ref(held), Stream(held)
    stream.put(frame(1))
    held.let_go()
    stream.get(LONG)
    thread = stream._thread
    del stream, held
    thread.join(LONG)
    assert not thread.is_alive()
    assert encoder() is None


# asyncio


def test_results_are_awaited_without_a_thread_each(stream, held):
    async def wait_for_all():
        before = threading.active_count()
        waiting = [asyncio.create_task(stream.get_async(LONG, camera=str(number))) for number in range(20)]
        await asyncio.sleep(0.01)
        assert threading.active_count() == before
        for number in range(20):
            stream.put(frame(number), camera=str(number))
        for _ in range(60):
            held.let_go()
        return await asyncio.gather(*waiting)

    results = asyncio.run(wait_for_all())
    assert [(result.camera, value(result)) for result in results] == [(str(n), n) for n in range(20)]
    assert not stream._exchange._waiters


def test_a_wait_that_is_cancelled_takes_no_result(stream, held):
    async def cancel():
        early = asyncio.create_task(stream.get_async())
        late = asyncio.create_task(stream.get_async())
        await asyncio.sleep(0.01)
        early.cancel()
        await asyncio.gather(early, return_exceptions=True)
        assert early.cancelled()
        stream.put(frame(1))
        encode_one(stream, held)  # the loop does not run meanwhile: both were told, none has looked
        late.cancel()
        await asyncio.gather(late, return_exceptions=True)
        assert late.cancelled()
        assert value(await stream.get_async(0)) == 1
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(stream.get_async(), 0.01)
        with pytest.raises(TimeoutError, match=r"no new features within 0\.01 s; 1 frames put, 1 encoded"):
            await stream.get_async(0.01)

    asyncio.run(cancel())
    assert not stream._exchange._waiters


def test_an_async_iteration_tells_errors_and_ends_when_the_stream_is_closed(stream, held):
    async def iterate():
        stream.put(InputError("wrong size"))
        held.let_go()
        with pytest.raises(InputError, match="wrong size"):
            await anext(stream)
        values = []
        stream.put(frame(0))
        held.let_go()
        async for result in stream:
            values.append(value(result))
            if len(values) < 3:
                stream.put(frame(len(values)))
                held.let_go()
            else:
                asyncio.get_running_loop().call_later(0.01, stream.close)
        return values

    assert asyncio.run(iterate()) == [0, 1, 2]


def test_threads_and_tasks_share_results(stream, held):
    def in_task():
        return asyncio.run(stream.get_async(LONG))

    waiting = [in_thread(call) for call in (in_task, lambda: stream.get(LONG), in_task)]
    for number in range(3):
        end = monotonic() + LONG
        stream.put(frame(number))
        encode_one(stream, held)
        while stream._exchange._cameras[""].result:
            assert monotonic() < end
            threading.Event().wait(0.001)
    assert sorted(wait().number for wait in waiting) == [0, 1, 2]


def test_an_event_loop_that_is_gone_is_no_harm(stream, held):
    loop = asyncio.new_event_loop()
    task = loop.create_task(stream.get_async())
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()  # with a task that still waits
    stream.put(frame(4))
    held.let_go()
    assert value(stream.get(LONG)) == 4
    assert not stream._exchange._waiters
    task._log_destroy_pending = False


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


def test_a_runtime_gives_its_own_features_and_tells_of_a_frame_of_another_size(export_once, photograph):
    runtime = load_runtime(export_once("onnx", batch=(1, 1, 1), camera=Camera(96, 128)))
    picture = np.array(Image.open(photograph).convert("RGB").resize((128, 96)))
    with Stream(runtime) as stream:
        stream.put(picture[:, :-1])
        with pytest.raises(InputError, match="takes frames of 96x128, got 96x127"):
            stream.get(LONG)
        stream.put(picture)
        features = stream.get(LONG).features
    assert torch.equal(features.grid, runtime.encode(picture).grid)
