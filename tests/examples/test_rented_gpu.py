import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from video_distilled_encoder.video import probe, read_frames

pytest.importorskip("av")
ROOT = Path(__file__).parents[2]


def pack(*arguments):
    command = [sys.executable, ROOT / "examples" / "rented_gpu" / "pack.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


def test_videos_are_written_again_smaller_in_folders_of_their_own(clip, tmp_path):
    for name in ("a/one.mp4", "b/one.mp4", "b/one.mkv"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, tmp_path / "in" / name)
    out = tmp_path / "out"
    result = pack(tmp_path / "in", "--out", out, "--fps", "5", "--short-side", "64")
    assert result.returncode == 0, result.stderr
    assert "3 videos" in result.stdout
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*.mp4"))
    assert written == ["a/one.mp4", "b/one-2.mp4", "b/one.mp4"]
    before, after = list(read_frames(clip, min_interval=0.2)), list(read_frames(out / "a" / "one.mp4"))
    assert [frame.time for frame in after] == pytest.approx([frame.time for frame in before], abs=2e-3)
    assert min(after[0].image.shape[:2]) == 64
    small, wide = probe(out / "a" / "one.mp4"), probe(clip)
    assert small.width / small.height == pytest.approx(wide.width / wide.height, rel=0.05)


def test_what_does_not_fit_is_said(clip, tmp_path):
    result = pack(clip, "--out", tmp_path / "out", "--max-mib", "0.001")
    assert result.returncode == 1
    assert "do not fit into 0.001 MiB" in result.stderr
