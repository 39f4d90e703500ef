import pickle

import numpy as np
import pytest

from training.data.clips import ClipIndex, ClipsConfig, ClipSpec, clip_frames
from video_distilled_encoder.errors import InputError, InputWarning


def brute_force(times, stride, frames):
    half = 0.51 * np.median(np.diff(times))
    clips = []
    for start in times:
        wanted = [start + k * stride for k in range(frames)]
        nearest = [int(np.argmin(np.abs(times - w))) for w in wanted]
        close = all(abs(times[n] - w) <= half for n, w in zip(nearest, wanted, strict=True))
        if close and all(np.diff(nearest) > 0):
            clips.append(nearest)
    return clips


@pytest.mark.parametrize("fps", [12.5, 25, 29.97, 60])
def test_stride_is_in_seconds_at_any_frame_rate(fps):
    times = np.arange(int(4 * fps)) / fps
    clips = clip_frames(times, np.zeros(len(times), int), (0.0, 0.5, 1.0))
    step = 0.5 * fps
    assert np.abs(np.diff(clips, axis=1) - step).max() <= 1
    assert np.abs(clips[:, 2] - clips[:, 0] - 2 * step).max() <= 0.51
    assert clips[0, 0] == 0
    assert clips[-1, 2] == len(times) - 1


def test_variable_rates_and_gaps_equal_a_brute_force_search():
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.choice([0.03, 0.04, 0.05, 0.9], p=[0.4, 0.3, 0.29, 0.01], size=300))
    times -= times[0]
    clips = clip_frames(times, np.zeros(len(times), int), (0.0, 0.5, 1.0))
    assert clips.tolist() == brute_force(times, 0.5, 3)


def test_no_clip_crosses_a_cut():
    times, shots = np.arange(40) / 10, np.repeat([0, 1], [18, 22])
    clips = clip_frames(times, shots, (0.0, 0.5, 1.0))
    assert clips[:, 0].tolist() == [*range(8), *range(18, 30)]
    assert (shots[clips] == shots[clips[:, :1]]).all()


class FakeStore:
    def __init__(self, frames, folder=""):
        self.folder = folder
        self.times = np.arange(frames) / 10
        self.shots = np.zeros(frames, dtype=int)

    def __len__(self):
        return len(self.times)


def stores(*lengths):
    return [FakeStore(n) for n in lengths]


def test_an_epoch_is_one_pass_and_the_order_a_function_of_seed_and_position():
    index = ClipIndex(stores(30, 5, 25), ClipsConfig(3, 0.5), seed=1)
    assert len(index) == 20 + 15
    first = [(id(index[p][0]), *index[p][1]) for p in range(35)]
    second = [(id(index[p][0]), *index[p][1]) for p in range(35, 70)]
    assert len(set(first)) == 35
    assert set(first) == set(second)
    assert first != second
    again = ClipIndex(index.stores, ClipsConfig(3, 0.5), seed=1)
    assert [(id(again[p][0]), *again[p][1]) for p in reversed(range(35))] == first[::-1]
    other = ClipIndex(index.stores, ClipsConfig(3, 0.5), seed=2)
    assert [(id(other[p][0]), *other[p][1]) for p in range(35)] != first


def test_survives_pickling():
    index = ClipIndex(stores(30), ClipsConfig(3, 0.5), seed=1)
    copy = pickle.loads(pickle.dumps(index))
    assert [copy[p][1].tolist() for p in range(20)] == [index[p][1].tolist() for p in range(20)]


def test_videos_that_are_too_short_say_so():
    with pytest.raises(InputError, match=r"span 1 s, and the longest video has 0\.70 s"):
        ClipIndex(stores(5, 8), ClipsConfig(3, 0.5), seed=0)
    with pytest.raises(InputError, match=r"longest video has 0\.00 s"):
        ClipIndex(stores(1), ClipsConfig(3, 0.5), seed=0)


def test_frames_too_far_apart_are_not_called_a_short_video():
    slow = FakeStore(100)
    slow.times = 2.0 * np.arange(100)
    with pytest.raises(
        InputError, match=r"span 1 s, and those of .* are 2 s apart; choose a clips\.stride .* 2"
    ) as error:
        ClipIndex([slow, *stores(5)], ClipsConfig(3, 0.5), seed=0)
    assert "longer videos" not in str(error.value)
    cut = FakeStore(100)
    cut.shots = np.arange(100) // 5
    with pytest.raises(InputError, match=r"longest video has 9\.90 s, its longest shot 0\.40 s"):
        ClipIndex([cut], ClipsConfig(3, 0.5), seed=0)


def test_videos_that_give_no_clip_beside_others_are_mentioned():
    with pytest.warns(InputWarning, match=r"2 of 3 videos give no clip: .* the longest video has 0\.70 s"):
        index = ClipIndex(stores(30, 5, 8), ClipsConfig(3, 0.5), seed=0)
    assert len(index) == 20


def test_folders_are_drawn_from_as_asked():
    videos = [
        FakeStore(60, "robot"),
        FakeStore(60, "robot"),
        FakeStore(12, "street"),
        FakeStore(22, "garden"),
        FakeStore(5, "x"),
    ]
    counts = np.array([100, 2, 12])
    for balance, weights in ((0.5, counts**0.5), (1.0, np.ones(3))):
        index = ClipIndex(videos, ClipsConfig(3, 0.5, balance), seed=0)
        assert len(index) == 114
        for epoch in range(3):
            drawn = [index[p][0].folder for p in range(114 * epoch, 114 * (epoch + 1))]
            shares = [drawn.count(folder) for folder in ("robot", "street", "garden")]
            assert np.abs(shares - 114 * weights / weights.sum()).max() <= 1


def test_a_balanced_folder_is_gone_through_before_a_clip_comes_again():
    index = ClipIndex([FakeStore(110, "robot"), FakeStore(20, "street")], ClipsConfig(3, 0.5, 1.0), seed=0)
    assert len(index) == 110  # 100 and 10, so 55 of each in an epoch
    clips = [(index[p][0].folder, int(index[p][1][0])) for p in range(220)]
    robot, street = ([frame for folder, frame in clips if folder == name] for name in ("robot", "street"))
    assert len(robot) == len(street) == 110
    assert len(set(robot)) == 100
    assert sorted(set(street)) == list(range(10))
    assert {street.count(frame) for frame in range(10)} == {11}
    again = pickle.loads(pickle.dumps(index))
    assert [(again[p][0].folder, int(again[p][1][0])) for p in reversed(range(220))] == clips[::-1]


def test_a_gap_is_drawn_anew_for_every_clip_and_stays_in_the_video():
    spec = ClipSpec((0.0, 0.2), gap=(0.3, 2.0), draws=2)
    index = ClipIndex(stores(60, 45), ClipsConfig(), seed=3, spec=spec)
    assert len(index) == (60 - 22) + (45 - 22)
    assert index.samples == 2 * len(index)
    clips = [index[position] for position in range(4 * len(index))]
    for (store, one), (same, other) in zip(clips[::2], clips[1::2], strict=True):
        assert store is same  # two samples of one clip, one after another
        assert one.tolist() == other.tolist()
    gaps = np.array([(frames[2] - frames[1]) / 10 for _, frames in clips[::2]])
    assert all(frames[2] < len(store) and frames[1] - frames[0] == 2 for store, frames in clips)
    assert 0.3 <= gaps.min() < 0.5 < 1.8 < gaps.max() <= 2.0
    assert gaps[: len(index)].tolist() != gaps[len(index) :].tolist()  # other gaps in the next epoch
    again = pickle.loads(pickle.dumps(index))
    assert [again[position][1].tolist() for position in range(20)] == [frames.tolist() for _, frames in clips[:20]]


def test_the_seconds_between_frames_are_those_of_the_videos():
    index = ClipIndex(stores(40), ClipsConfig(3, 0.083), seed=0)
    assert index.offsets() == pytest.approx([0.0, 0.1, 0.2])  # ten frames a second have no 0.083 s


@pytest.mark.parametrize("spec", [None, ClipSpec((0.0, 0.2), gap=(0.3, 1.0), draws=2)])
def test_still_clips_are_the_first_frames_of_the_same_clips(spec):
    videos = stores(60, 45)
    moving, still = (ClipIndex(videos, ClipsConfig(3, 0.5, still=s), seed=1, spec=spec) for s in (False, True))
    assert len(moving) == len(still)
    for position in range(2 * moving.samples):
        (store, frames), (same, repeated) = moving[position], still[position]
        assert store is same
        assert repeated.tolist() == [frames[0]] * 3
    assert still.offsets() == [0.0, 0.0, 0.0]


def test_clips_are_told_in_words():
    assert str(ClipsConfig(frames=3, stride=0.5).regular()) == "3 frames, 0.5 s apart"
    assert str(ClipsConfig(frames=1).regular()) == "1 frame"
    assert str(ClipSpec((0.0,), gap=(0.13, 1.6))) == "2 frames, the last 0.13 to 1.6 s after the one before"
    assert str(ClipSpec((0.0, 0.1, 0.3))) == "3 frames, at 0, 0.1, 0.3 s"
