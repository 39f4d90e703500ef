import argparse

import numpy as np
import pytest
from PIL import Image

from training.evaluation.data.video_frames import (
    add_video_arguments,
    encode_clips,
    load_clips,
    nearest_frames,
    other_frame,
)
from training.models.loading import Pixels
from video_distilled_encoder.errors import InputError, InputWarning
from video_distilled_encoder.sources.source import Asked
from video_distilled_encoder.video import read_frames


def test_frames_are_those_of_the_video_at_these_times(clip):
    every = list(read_frames(clip))
    (found,) = load_clips(clip, [0.1, 0.5, 1.0], frames=4)
    assert found.video == clip.name
    for image, time in zip(found.images, found.times, strict=True):
        number = int(np.argmin([abs(frame.time - time) for frame in every]))
        assert np.array_equal(image, every[number].image)
    for offset, pairs in found.pairs.items():
        assert len(pairs) == 4
        gaps = found.times[pairs[:, 1]] - found.times[pairs[:, 0]]
        assert np.abs(gaps - offset).max() <= 0.5 / 24 + 1e-6
    bases = {tuple(found.times[pairs[:, 0]]) for pairs in found.pairs.values()}
    assert len(bases) == 1
    spacing = np.diff(sorted(bases.pop()))
    assert spacing.max() - spacing.min() < 2.5 / 24


def test_the_nearest_time_stamp_is_taken():
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 10, 200))
    found = nearest_frames(times, [0.3, 1.0], 1000)
    eligible = []
    for base, time in enumerate(times):
        gaps = [np.abs(times - time - offset).min() for offset in (0.3, 1.0)]
        if gaps[0] <= 0.075 and gaps[1] <= 0.25:
            eligible.append(base)
    assert found[0.3][:, 0].tolist() == found[1.0][:, 0].tolist() == eligible
    for offset, pairs in found.items():
        for base, later in pairs:
            assert later == np.argmin(np.abs(times - times[base] - offset))
    assert len(nearest_frames(np.array([0.0]), [0.1], 3)[0.1]) == 0


def test_videos_are_not_mixed_and_draws_repeat(make_video, tmp_path):
    for number in range(4):
        make_video(f"v{number}.mp4", seconds=0.3 if number == 0 else 1.5)
    found = list(load_clips(tmp_path, [0.2, 1.0]))
    assert [clip.video for clip in found] == ["v1.mp4", "v2.mp4", "v3.mp4"]
    draws = [[clip.video for clip in load_clips(tmp_path, [0.2], max_videos=2, seed=5)] for _ in range(2)]
    assert draws[0] == draws[1]
    assert len(set(draws[0])) == 2
    with pytest.raises(InputError, match=r"no video in .* 5 s apart; lower the offsets"):
        list(load_clips(tmp_path, [5]))
    with pytest.raises(InputError, match="does not exist"):
        list(load_clips(tmp_path / "nothing", [1.0]))


def test_no_pair_crosses_from_one_recording_to_the_next_in_a_file(joined_recordings):
    with pytest.warns(InputWarning, match="the clock starts again"):
        (clip,) = load_clips(joined_recordings(15, fps=10), [1.0], frames=100)
    pairs = clip.times[clip.pairs[1.0]]
    # at the end of the second the last frame still serves within the tolerance; at the joint there is another scene
    assert np.allclose(pairs[:, 0], [0, 0.1, 0.2, 0.3, 0.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 2.1], atol=1e-4)
    assert np.allclose(pairs[:, 1], [1.0, 1.1, 1.2, 1.3, 1.4, 2.5, 2.6, 2.7, 2.8, 2.9, 2.9, 2.9], atol=1e-4)


def test_a_folder_that_is_named_like_a_video_holds_a_sequence(tmp_path):
    folder = tmp_path / "v_A_g01.avi"
    folder.mkdir()
    for number in range(30):
        Image.new("RGB", (32, 24), (8 * number, 0, 0)).save(folder / f"{number:04d}.jpg")
    (clip,) = load_clips(tmp_path, [0.5], fps=10, frames=3)
    assert clip.video == "v_A_g01.avi"


def test_image_sequences(tmp_path):
    for sequence, length in (("bear", 12), ("cows", 12)):
        folder = tmp_path / "JPEGImages" / "480p" / sequence
        folder.mkdir(parents=True)
        for number in range(length):
            Image.new("RGB", (32, 32), (number, 0, 0)).save(folder / f"{number:05d}.png")
    clips = list(load_clips(tmp_path, [0.5], fps=10))
    assert [clip.video for clip in clips] == ["bear", "cows"]
    pairs = clips[0].images[clips[0].pairs[0.5]][..., 0, 0, 0].astype(int)
    gaps = pairs[:, 1] - pairs[:, 0]
    assert (gaps[:7] == 5).all()
    assert gaps[7:].tolist() == [4]  # within the tolerance: 0.4 s at the end
    flat = tmp_path / "flat"
    flat.mkdir()
    for name in ("0001TP_000030", "0001TP_000060", "0016E5_000030", "0016E5_000060", "0016E5_000180"):
        Image.new("RGB", (32, 32)).save(flat / f"{name}.png")
    found = {clip.video: len(clip.pairs[1.0]) for clip in load_clips(flat, [1.0], fps=30)}
    assert found == {"0001TP": 1, "0016E5": 1}


def test_cameras_and_episodes_of_a_data_set_are_videos(aloha):
    asked = Asked("wrist", range(1, 3), fps=20)
    clips = list(load_clips(aloha, [0.2], frames=4, asked=asked))
    assert [clip.video for clip in clips] == ["fold/wrist/episode_1", "fold/wrist/episode_2"]
    with pytest.importorskip("h5py").File(aloha / "episode_1.hdf5") as file:
        images = file["observations/images/wrist"][:]
    assert np.array_equal(clips[0].images, images[(clips[0].times * 20).round().astype(int)])
    with pytest.raises(InputError, match="--source-fps"):
        list(load_clips(aloha, [0.2]))


def test_controls_are_of_other_videos(make_video, tmp_path):
    for number in range(3):
        make_video(f"videos/v{number}.mp4", seconds=1.5)
    parser = argparse.ArgumentParser()
    add_video_arguments(parser, [0.2, 0.5])
    args = parser.parse_args(["--frames", "4", "--size", "40", "64"])
    args.data, args.seed, args.cache = tmp_path / "videos", 0, tmp_path
    clips = encode_clips(Pixels(), args)
    assert [clip.grid.shape[1:] for clip in clips] == [(2, 4, 768)] * 3
    others = {(clip, other_frame(clips, clip, pair, 0.2)[0]) for clip in range(3) for pair in range(4)}
    assert others == {(a, b) for a in range(3) for b in range(3) if a != b}
    args.data = tmp_path / "videos" / "v0.mp4"
    with pytest.raises(InputError, match="one video"):
        encode_clips(Pixels(), args)


def test_the_rate_that_sources_are_told_is_that_of_pictures_too(clip, tmp_path):
    for number, frame in enumerate(read_frames(clip)):
        Image.fromarray(frame.image).resize((48, 32)).save(tmp_path / f"{number:05}.png")
    (told,) = load_clips(tmp_path, [1.0], frames=2, asked=Asked(fps=10.0))
    (meant,) = load_clips(tmp_path, [1.0], frames=2, fps=10.0)
    assert np.array_equal(told.times, meant.times)
    assert told.times[told.pairs[1.0]][0].tolist() == pytest.approx([told.times[0], told.times[0] + 1])


def test_recordings_of_one_name_stay_two(aloha, tmp_path):
    for day in ("monday", "tuesday"):
        (tmp_path / day / "demos").mkdir(parents=True)
        (tmp_path / day / "demos" / "episode_0.hdf5").write_bytes((aloha / "episode_0.hdf5").read_bytes())
    found = [clip.video for clip in load_clips(tmp_path, [0.5], asked=Asked(cameras=("front",), fps=10.0))]
    assert found == [f"{day}/demos/episode_0.hdf5/demos/front/episode_0" for day in ("monday", "tuesday")]


def test_label_pictures_are_no_videos(tmp_path):
    rng = np.random.default_rng(0)
    for name, shape in (("test", (32, 48, 3)), ("testannot", (32, 48))):
        (tmp_path / name).mkdir()
        for number in range(3):
            pixels = rng.integers(0, 255, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"a_{number}.png")
    with pytest.warns(InputWarning, match="1 of 2 sequences have one channel, as labels do, .* testannot/a"):
        assert [clip.video for clip in load_clips(tmp_path, [1.0], fps=1.0)] == ["test/a"]
    assert [clip.video for clip in load_clips(tmp_path / "testannot", [1.0], fps=1.0)] == ["a"]
