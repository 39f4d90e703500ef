import numpy as np

from training.data.cuts import find_cuts
from training.data.frame_store import ExtractConfig, FrameStore, extract_source
from video_distilled_encoder.image_files import open_image
from video_distilled_encoder.sources.video_files import VideoFile
from video_distilled_encoder.video import read_frames, write_video


def test_a_real_clip_of_one_shot_has_no_cut(clip, tmp_path):
    store = FrameStore(extract_source(VideoFile(clip), tmp_path, ExtractConfig()))
    assert (store.shots == 0).all()


def test_the_cut_between_two_scenes_is_found_at_any_frame_rate(clip, photograph, tmp_path):
    first = [frame.image for frame in read_frames(clip)][:30]
    second = np.asarray(open_image(photograph).resize((480, 270)))
    moving = [np.roll(second, 4 * number, axis=1) for number in range(30)]
    write_video(tmp_path / "two.mp4", [*first, *moving], 24)
    whole = FrameStore(extract_source(VideoFile(tmp_path / "two.mp4"), tmp_path, ExtractConfig()))
    assert np.flatnonzero(np.diff(whole.shots)).tolist() == [29]
    slower = FrameStore(extract_source(VideoFile(tmp_path / "two.mp4"), tmp_path, ExtractConfig(fps=8)))
    assert np.flatnonzero(np.diff(slower.shots)).tolist() == [9]


def test_a_fast_camera_is_no_cut_and_one_jump_is():
    rng = np.random.default_rng(0)
    fast = rng.uniform(20, 35, 60)
    fast[0] = 0
    assert find_cuts(fast) == []
    calm = rng.uniform(1, 4, 60)
    calm[40] = 30
    assert find_cuts(calm) == [40]
    assert find_cuts(np.zeros(1)) == []
