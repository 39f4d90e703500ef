import argparse
import json

import numpy as np
import pytest
import torch

from training import evaluate
from training.evaluation.data.image_folder import ClassTokens
from training.evaluation.protocols import action_recognition as protocol
from training.models.loading import Pixels
from video_distilled_encoder import InputError
from video_distilled_encoder.video import read_frames, write_video

ACTIONS = ("Archery", "Biking", "Diving")


pytestmark = pytest.mark.usefixtures("one_thread")


def write_coloured(path, number, level=100, frames=5):
    """A tiny video of one colour, with noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(level)
    images = (
        (np.eye(3)[number] * 100 + level + rng.normal(0, 5, (32, 48, 3))).clip(0, 255).astype(np.uint8)
        for _ in range(frames)
    )
    write_video(path, images, 10)


@pytest.fixture
def ucf(tmp_path):
    """UCF-101's files, with three actions; the lists have Windows line ends, as UCF-101's have."""
    root = tmp_path / "ucf"
    lists = root / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    train, test = [], []
    for number, action in enumerate(ACTIONS):
        for group in range(1, 6):
            name = f"{action}/v_{action}_g{group:02d}_c01"
            write_coloured(root / "videos" / f"{name}.mp4", number, 40 + 15 * group)
            line = f"{name}.avi {number + 1}" if group > 2 else f"{name}.avi"
            (train if group > 2 else test).append(line)
    (lists / "trainlist01.txt").write_bytes("\r\n".join(train).encode() + b"\r\n")
    (lists / "testlist01.txt").write_bytes("\r\n".join(test).encode())
    return root


@pytest.fixture
def hmdb(tmp_path):
    """HMDB-51's files, with two actions; names have its odd characters."""
    root = tmp_path / "hmdb"
    (root / "test_train_splits").mkdir(parents=True)
    for action in ("brush_hair", "wave"):
        (root / "hmdb51_org" / action).mkdir(parents=True)
        lines = []
        for index, use in enumerate("11102"):
            name = f"#A_[{action}]_&_({index});_goo_0.avi"
            (root / "hmdb51_org" / action / name).touch()
            lines.append(f"{name} {use} \n")
        (root / "test_train_splits" / f"{action}_test_split2.txt").write_text("".join(lines))
    return root


def test_a_video_to_train_and_to_test_on_is_refused(ucf, hmdb):
    lists = ucf / "ucfTrainTestlist"
    both = (lists / "trainlist01.txt").read_bytes() + b"Archery/v_Archery_g01_c01.avi 1\r\n"
    (lists / "trainlist01.txt").write_bytes(both)
    with pytest.raises(InputError, match=r"1 videos of split 1 .* both of its lists, e\.g\. Archery/v_Archery_g01_c01"):
        protocol.find_split(ucf, 1)
    listing = hmdb / "test_train_splits" / "wave_test_split2.txt"
    listing.write_text(listing.read_text() + "#A_[wave]_&_(4);_goo_0.avi 1\n")
    with pytest.raises(InputError, match="both of its lists"):
        protocol.find_split(hmdb, 2)


def test_names_in_lists_may_hold_spaces(ucf):
    lists = ucf / "ucfTrainTestlist"
    (lists / "trainlist01.txt").write_bytes("A/one take.avi 1\r\nA/two.avi\r\n".encode("utf-8-sig"))
    assert protocol.read_ucf(lists / "trainlist01.txt") == ["A/one take.avi", "A/two.avi"]


def test_ucfs_lists_are_read(ucf):
    train, test = protocol.find_split(ucf, 1)
    assert [video.path.relative_to(ucf / "videos").as_posix() for video in test[:2]] == [
        "Archery/v_Archery_g01_c01.mp4",
        "Archery/v_Archery_g02_c01.mp4",
    ]
    assert [video.action for video in train] == [action for action in ACTIONS for _ in range(3)]


def test_hmdbs_lists_are_read(hmdb):
    train, test = protocol.find_split(hmdb, 2)
    assert [video.path.name for video in test] == ["#A_[brush_hair]_&_(4);_goo_0.avi", "#A_[wave]_&_(4);_goo_0.avi"]
    assert [video.action for video in train] == ["brush_hair"] * 3 + ["wave"] * 3


@pytest.mark.parametrize(("frames", "expected"), [(20, [1, 3, 6, 8, 11, 13, 16, 18]), (3, [0, 0, 0, 1, 1, 2, 2, 2])])
def test_frames_are_evenly_spaced(make_video, frames, expected):
    video = make_video(seconds=frames / 10)
    images = [frame.image for frame in read_frames(video)]
    assert len(images) == frames
    got = protocol.spaced_frames(video, 8)
    assert all(np.array_equal(one, images[number]) for one, number in zip(got, expected, strict=True))


@pytest.mark.parametrize("claimed", [0, 7, 24])
def test_a_wrong_number_of_frames_in_the_header_does_no_harm(make_video, monkeypatch, claimed):
    video = make_video()
    expected = protocol.spaced_frames(video, 8)
    monkeypatch.setattr(protocol, "probe", lambda path: argparse.Namespace(frames=claimed))
    assert np.array_equal(protocol.spaced_frames(video, 8), expected)


def test_the_feature_is_the_mean_over_frames(make_video):
    video = make_video()
    frames = [frame.image for frame in read_frames(video)]
    tokens = Pixels().encode([frames[number] for number in (2, 7, 12, 17)], 256, crop_mode="squash").cls.mean(0)
    got = protocol.encode_video(ClassTokens(Pixels()), video, 4, 1)
    assert got.shape == tokens.shape
    assert torch.allclose(got, tokens, atol=0.3)
    each = [ClassTokens(Pixels()).encode(frames[n], 224, crop_mode="center").cls[0] for n in (2, 7, 12, 17)]
    assert torch.allclose(got, torch.stack(each).mean(0), atol=1e-5)


def test_command_on_colours_decodes_once(run_command, ucf, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(protocol, "GROUP", 4)
    arguments = ["action-recognition", "--data", ucf, "--cache", tmp_path / "cache", "--epochs", "5", "--frames", "2"]
    assert run_command(evaluate.main, *arguments, "--model", "pixels") is None
    result = json.loads(capsys.readouterr().out)
    assert result["figures"]["top1"] == 100
    assert result["data"]["train"] == "ucf, split 1, 9 videos of 3 classes"
    assert result["setting"]["features"] == "mean class token of 2 frames, last 1 block(s)"
    assert len(list((tmp_path / "cache").iterdir())) == 3 + 2
    monkeypatch.setattr(protocol, "encode_video", None)
    assert run_command(evaluate.main, *arguments, "--model", "pixels") is None
    assert json.loads(capsys.readouterr().out) == result


def test_tokens_too_large_for_float16_are_kept(make_video, tmp_path):
    class Loud(Pixels):
        def _features(self, pixels, layers):
            return tuple(feature * 1e6 for feature in super()._features(pixels, layers))

    video = make_video()
    loud, plain = (
        protocol.encode_videos(
            model, [video], argparse.Namespace(cache=tmp_path / str(n), layers=1, frames=2), "encode"
        )
        for n, model in enumerate((Loud(), Pixels()))
    )
    assert torch.allclose(loud, 1e6 * plain.float(), rtol=0.01, atol=1e4)


def test_constant_features_are_at_chance(run_command, ucf, tmp_path, capsys):
    arguments = ["--data", ucf, "--cache", tmp_path, "--epochs", "2", "--frames", "1", "--model", "constant"]
    assert run_command(evaluate.main, "action-recognition", *arguments) is None
    assert json.loads(capsys.readouterr().out)["figures"]["top1"] == pytest.approx(100 / 3, abs=0.01)


def test_wrong_data_is_one_sentence(run_command, ucf, hmdb, tmp_path):
    def error(root, *extra):
        arguments = ["--data", root, "--cache", tmp_path / "cache", "--model", "constant", "--frames", "1", *extra]
        return run_command(evaluate.main, "action-recognition", *arguments)

    assert "holds neither UCF-101 nor HMDB-51; expected videos/CLASS/*.avi" in error(tmp_path)
    assert "trainlist03.txt does not exist" in error(ucf, "--split", "3")
    assert "holds no CLASS_test_split1.txt" in error(hmdb, "--split", "1")
    assert "goo_0.avi is empty" in error(hmdb, "--split", "2")
    assert "--frames 0 is no number of frames" in error(ucf, "--frames", "0")
    listing = hmdb / "test_train_splits" / "wave_test_split2.txt"
    listing.write_text("a.avi 1\nb.avi 2\n")
    assert "2 of 4 listed videos" not in error(hmdb, "--split", "2")
    assert "listed videos are not in" in error(hmdb, "--split", "2")
    listing.write_text("a.avi 3\n")
    assert "not NAME.avi 0|1|2: 'a.avi 3'" in error(hmdb, "--split", "2")
    listing = ucf / "ucfTrainTestlist" / "testlist01.txt"
    listing.write_text("v_Archery_g01_c01.avi\n")
    with pytest.raises(InputError, match=r"not CLASS/NAME\.avi \[NUMBER\]"):
        protocol.find_split(ucf, 1)
    listing.write_text("Archery/v_Archery_g01_c01.avi\nSkiing/v_Skiing_g01_c01.avi\n")
    assert "must train and test the same classes; ['Biking', 'Diving', 'Skiing']" in error(ucf)
