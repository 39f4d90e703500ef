import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from training import evaluate
from training.evaluation.protocols import jhmdb
from video_distilled_encoder.errors import InputError

scipy_io = pytest.importorskip("scipy.io")


def build(root, name, seed=0, frames=4):
    """A video of 15 joints, each a square of its colour that moves 8 pixels a frame; the last is outside the frame."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 256, (15, 3))
    start = np.stack([24 + 64 * (np.arange(15) % 4), 24 + 56 * (np.arange(15) // 4)], 1)
    start[14] = (-30, 20)
    images = root / "Rename_Images" / "wave" / name
    joints = root / "joint_positions" / "wave" / name
    images.mkdir(parents=True)
    joints.mkdir(parents=True)
    background = rng.normal(128, 5, (240, 320, 3))
    places = np.stack([start + np.array([8 * frame, 0]) for frame in range(frames)])
    for frame, now in enumerate(places):
        picture = background.copy()
        for (x, y), colour in zip(now, colours, strict=True):
            picture[max(y - 16, 0) : y + 16, max(x - 16, 0) : max(x + 16, 0)] = colour
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(images / f"{frame + 1:05}.png")
    scipy_io.savemat(joints / "joint_positions.mat", {"pos_img": places.transpose(2, 1, 0) + 1.0})
    return places


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "jhmdb"
    for seed, name in enumerate(("one", "two", "train")):
        build(root, name, seed)
    (root / "splits").mkdir()
    (root / "splits" / "wave_test_split1.txt").write_text("one.avi 2\ntrain.avi 1\ntwo.avi 2\n")
    return root


@pytest.fixture
def run(run_command, root, tmp_path):
    def run(model, *extra):
        out = tmp_path / f"{model}.json"
        arguments = ["jhmdb", "--data", root, "--cache", tmp_path / "cache", "--model", model, "--out", out, *extra]
        return run_command(evaluate.main, *arguments) or json.loads(out.read_text())

    return run


def test_frames_and_lists_of_any_kind(root, tmp_path):
    (root / "Rename_Images" / "wave" / "one").rename(root / "Rename_Images" / "wave" / "one take")
    line = "Rename_Images/wave/one take joint_positions/wave/one/joint_positions.mat"
    (root / "testlist_split1.txt").write_bytes(f"{line}\r\n".encode("utf-8-sig"))
    ((folder, positions),) = jhmdb.find_videos(root, 1)
    assert (folder.name, positions.parent.name) == ("one take", "one")
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"{number + 8}.png")
    assert [path.stem for path in jhmdb.read_video(folder, positions).images] == ["8", "9", "10", "11"]


def test_joints_are_followed(run, root):
    pixels, constant = run("pixels"), run("constant")
    figures = pixels["figures"]
    assert figures["pck_0.1"] > 70
    assert figures["pck_0.2"] >= figures["pck_0.1"] > constant["figures"]["pck_0.1"] + 30
    assert "left-ankle" not in figures["joints"]  # outside the first frame
    assert len(figures["joints"]) == 14
    assert pixels["data"] == {"test": "jhmdb/split 1, 2 videos, 8 frames"}
    assert pixels["setting"]["encoded_size"] == [320, 320]
    assert pixels["setting"]["resizing"] == "squash, bicubic with antialiasing"
    assert pixels["setting"]["top_k"] == 7
    row = "Rename_Images/wave/{0} joint_positions/wave/{0}/joint_positions.mat\n"
    (root / "testlist_split1.txt").write_text(row.format("one") + row.format("two"))
    assert run("pixels")["figures"] == figures


def test_joints_come_back_from_their_gaussians():
    rng = np.random.default_rng(0)
    joints = rng.uniform((20, 20), (300, 220), (15, 2))
    joints[3] = (-1, 50)
    maps = jhmdb.draw_joints(joints, (240, 320), (20, 20))
    assert maps.shape == (20, 20, 15)
    found = jhmdb.find_joints(maps, (240, 320))
    assert np.isnan(found[3]).all()
    # A patch is 16 x 12 pixels of the frame.
    others = np.arange(15) != 3
    assert (np.abs(found - joints)[others] < (6, 4.5)).all()


def test_a_gaussian_by_hand():
    # The centre of the patch in row 1, column 2 of 16 x 12 pixels is at x = 39.5, y = 17.5.
    maps = jhmdb.draw_joints(np.array([[39.5, 17.5]]), (240, 320), (20, 20))[..., 0]
    assert maps[1, 2] == 1
    assert maps[1, 3].item() == pytest.approx(np.exp(-2), rel=1e-6)
    assert maps[2, 3].item() == pytest.approx(np.exp(-4), rel=1e-6)


def test_pck_by_hand():
    truth = np.zeros((3, 15, 2))
    truth[:, :, 0] = np.arange(15) * 10
    truth[:, 14, 1] = 105  # the box is 140 x 105: its diagonal 175, the unit 105
    truth[0, 5] = (400, 10)  # outside the first frame
    video = jhmdb.Video("", [], truth, (240, 320))
    found = truth[1:].copy()
    found[0, 0] += (10.4, 0)
    found[0, 1] += (0, 10.6)
    found[1, 2] += (0, 22)
    found[1, 3] = np.nan
    distances = jhmdb.relative_distances(found, video)
    assert distances[0, 0] == pytest.approx(10.4 / 105)
    assert np.isnan(distances[:, 5]).all()
    tenth, fifth = jhmdb.pck(distances, 0.1), jhmdb.pck(distances, 0.2)
    assert tenth[:6].tolist()[:5] == [1, 0.5, 0.5, 0.5, 1]
    assert fifth[:5].tolist() == [1, 1, 0.5, 0.5, 1]
    assert np.isnan(tenth[5])


def test_a_lost_joint_is_wrong_wherever_it_is():
    maps = torch.zeros(4, 4, 1)
    assert np.isnan(jhmdb.find_joints(maps, (64, 64))).all()


def test_wrong_data_is_one_sentence(run, root, monkeypatch):
    assert "no video to test on for split 2; expected Rename_Images/ACTION/VIDEO" in run("pixels", "--split", "2")
    positions = root / "joint_positions" / "wave" / "one" / "joint_positions.mat"
    scipy_io.savemat(positions, {"pos_img": np.zeros((2, 15, 9))})
    assert "has 4 frames" in run("pixels")
    scipy_io.savemat(positions, {"pos_img": np.zeros((2, 13, 4))})
    assert "has shape (2, 13, 4), expected (2, 15, frames)" in run("pixels")
    positions.write_bytes(b"no")
    assert "cannot be read as JHMDB's joint positions" in run("pixels")
    positions.unlink()
    assert "joint_positions.mat does not exist" in run("pixels")
    (root / "testlist_split1.txt").write_text("one\n")
    assert "a folder of frames and a .mat file in each line" in run("pixels")
    monkeypatch.setitem(sys.modules, "scipy.io.matlab", None)
    with pytest.raises(InputError, match="scipy is not installed"):
        jhmdb.read_joints(positions)
