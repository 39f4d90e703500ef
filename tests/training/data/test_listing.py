import json
from argparse import ArgumentTypeError

import numpy as np
import pytest
from PIL import Image

from training.data.clips import ClipIndex, ClipsConfig
from training.data.frame_store import FrameStore
from training.extract import main
from video_distilled_encoder.sources.options import parse_range


@pytest.fixture
def recordings(tmp_path, make_video):
    """A LeRobot data set of v2 with two cameras and three episodes, videos beside it, and a folder of pictures."""
    feature = {"dtype": "video", "shape": [48, 64, 3], "names": ["height", "width", "channels"]}
    features = {"top": feature, "wrist": feature, "depth": feature | {"info": {"video.is_depth_map": True}}}
    root = tmp_path / "all" / "push"
    (root / "meta").mkdir(parents=True)
    info = {
        "codebase_version": "v2.0",
        "fps": 10,
        "features": features,
        "video_path": "{video_key}/{episode_index}.mp4",
    }
    (root / "meta" / "info.json").write_text(json.dumps(info))
    lines = [json.dumps({"episode_index": number, "length": 12 + 2 * number}) for number in range(3)]
    (root / "meta" / "episodes.jsonl").write_text("\n".join(lines))
    for number, seconds in enumerate((1.2, 1.4, 1.6)):
        for camera, size in (("top", (64, 48)), ("wrist", (64, 64))):
            make_video(f"all/push/{camera}/{number}.mp4", seconds, size=size)
    make_video("all/dog.mp4", 3)
    (tmp_path / "all" / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "all" / "frames").mkdir()
    for number in range(4):
        Image.fromarray(np.full((32, 48, 3), number, np.uint8)).save(tmp_path / "all" / "frames" / f"{number}.png")
    return tmp_path / "all"


def test_the_list_names_groups_and_what_is_left_out_and_decodes_nothing(run_command, recordings, capsys, monkeypatch):
    for reader in ("lerobot", "video_files"):
        monkeypatch.setattr(f"video_distilled_encoder.sources.{reader}.read_frames", None)
    assert run_command(main, recordings, "--list") is None
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    assert rows[f"{recordings}/push/top"] == ["3", "0", "to", "2", "0.00", "10", "64x48"]
    assert rows[str(recordings)] == ["1", "-", "0.00", "10", "64x48"]
    assert "7 recordings in 3 groups, 0.00 hours" in lines
    assert f"left out: {recordings}/push, depth: depth" in lines
    assert any(line.startswith("left out") and "4 pictures without a clock" in line for line in lines)
    assert any(line.startswith("cannot be read") and "bad.mp4" in line for line in lines)
    assert not list(recordings.rglob("*.zip"))


@pytest.mark.filterwarnings("ignore:left out", "ignore:of what is in")
def test_what_is_asked_for_is_extracted_and_no_clip_leaves_its_episode(run_command, recordings, tmp_path, capsys):
    chosen = "--cameras", "t*", "--episodes", "1:", "--source-fps", "8", "--frames", tmp_path / "stores"
    assert run_command(main, recordings / "push", recordings / "frames", *chosen, "--workers", 1) is None
    stores = {store.source: store for store in map(FrameStore, (tmp_path / "stores").rglob("*.zip"))}
    assert {name: len(store) for name, store in stores.items()} == {
        "push/top/episode_000001": 14,
        "push/top/episode_000002": 16,
        "frames": 4,
    }
    assert np.allclose(stores["frames"].times, np.arange(4) / 8)
    episodes = [store for name, store in stores.items() if name != "frames"]
    assert len(ClipIndex(episodes, ClipsConfig(3, 0.5), 0).frames) == 14 + 16 - 2 * 10
    assert "3 frame stores" in capsys.readouterr().out
    assert "must be positive" in run_command(main, recordings, "--source-fps", 0)


def test_ranges():
    assert [parse_range(text)[:3] for text in ("2:4", ":2", "7:")] == [range(2, 4), range(2), range(7, 10)]
    for text in ("4", "4:4", "a:b", "-1:2"):
        with pytest.raises(ArgumentTypeError, match="a range is written A:B"):
            parse_range(text)
