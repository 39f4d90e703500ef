import hashlib
import os
import pickle
import random
import subprocess
import sys
import warnings

import pytest

from video_distilled_encoder.errors import CannotWrite, InputError, InputWarning, MissingExtra, prepare_output
from video_distilled_encoder.files import HashedFile, atomic_path, find_files


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


@pytest.mark.parametrize(
    "places",
    [
        [(0, -1)],
        [(0, 7), (7, 3_000_000), (3_000_007, -1)],
        [(3_900_000, -1), (0, 100_000), (100_000, 3_800_000)],  # an index at the end is read first
        [(0, 500_000), (700_000, 10), (600_000, 300_000), (900_000, 5)],  # a part is left out, another read twice
        [(2_000_000, 10), (3_000_000, 10)],
        [],
    ],
)
def test_a_digest_is_that_of_the_whole_file_whatever_is_read_of_it(tmp_path, places):
    content = random.Random(0).randbytes(4_000_000)
    (tmp_path / "x").write_bytes(content)
    file = HashedFile(tmp_path / "x")
    for place, size in places:
        file.seek(place)
        assert file.read(size) == (content[place : place + size] if size >= 0 else content[place:])
    assert file.sha256() == hashlib.sha256(content).hexdigest()
    file.close()


def test_folders_are_gone_through_and_what_is_left_out_is_counted(tmp_path):
    touch(
        tmp_path / "in", "b.mp4", "a/C.MP4", "v_A_g01.avi/1.mp4", "._b.mp4", ".trash/d.mp4", "x.pca.mp4", "x.json", "y"
    )
    (tmp_path / "in" / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    with pytest.warns(InputWarning) as told:
        found = find_files(tmp_path / "in", {".mp4", ".avi"})
    assert [path.relative_to(tmp_path / "in").as_posix() for path in found] == ["a/C.MP4", "b.mp4", "v_A_g01.avi/1.mp4"]
    (message,) = (str(warning.message) for warning in told)
    assert "3 files are used" in message
    for part in (
        "2 hidden",
        "1 written by vde-encode",
        "1 links that lead nowhere",
        "2 of other kinds (.json, without suffix)",
    ):
        assert part in message


def test_links_are_followed_once_and_loops_end(tmp_path):
    touch(tmp_path / "in", "z/1.mp4")
    touch(tmp_path / "disk", "2.mp4", "deep/3.mp4")
    for link, target in (("in/disk", "disk"), ("in/again", "disk"), ("disk/back", "in"), ("in/a", "in/z")):
        (tmp_path / link).symlink_to(tmp_path / target)
    (tmp_path / "in" / "self").symlink_to("self")
    with pytest.warns(InputWarning, match="1 links that lead nowhere"):
        found = find_files(tmp_path / "in", {".mp4"})
    # what a folder itself holds goes before what links lead to; of two links the first is followed
    assert [path.relative_to(tmp_path / "in").as_posix() for path in found] == [
        "again/2.mp4",
        "again/deep/3.mp4",
        "z/1.mp4",
    ]


def test_a_folder_that_cannot_be_listed_stands_for_itself(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.mp4", "b/2.mp4")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert find_files(tmp_path, {".mp4"}) == [tmp_path / "a" / "1.mp4", tmp_path / "b"]


def test_a_file_is_itself_and_nothing_is_refused(tmp_path):
    touch(tmp_path, "a.xyz")
    assert find_files(tmp_path / "a.xyz", {".mp4"}) == [tmp_path / "a.xyz"]
    with pytest.raises(InputError, match="does not exist"):
        find_files(tmp_path / "b.mp4", {".mp4"})


def test_commands_print_in_any_encoding():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "video_distilled_encoder.encode", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert "INPUT\\u2026 --out DIR" in result.stdout


def test_a_warning_about_what_was_handed_in_is_one_line():
    prepare_output()
    assert warnings.formatwarning("3 files are left out", InputWarning, "a.py", 7) == "warning: 3 files are left out\n"
    assert "a.py:7" in warnings.formatwarning("too old", UserWarning, "a.py", 7)


def test_a_missing_package_is_one_sentence_from_another_process_too():
    error = pickle.loads(pickle.dumps(MissingExtra("av", "video")))
    assert isinstance(error, MissingExtra)
    assert str(error) == "av is not installed; install it with: pip install 'video_distilled_encoder[video]'"


def test_a_place_below_a_file_is_one_sentence(tmp_path):
    touch(tmp_path, "file")
    with pytest.raises(CannotWrite, match="cannot write"), atomic_path(tmp_path / "file" / "folder" / "x.json"):
        pass


def test_two_that_write_one_file_write_each_its_own(tmp_path):
    with atomic_path(tmp_path / "x.json") as one, atomic_path(tmp_path / "x.json") as other:
        assert one != other
        one.write_text("1")
        other.write_text("2")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
