from pathlib import Path

import pytest

from training.evaluation.data.listing import by_stem, read_list, split_use
from video_distilled_encoder import InputError
from video_distilled_encoder.files import find_frames, natural_order


def test_numbers_count_by_their_value():
    names = [f"{number}.jpg" for number in range(24)]
    assert [path.name for path in natural_order(map(Path, sorted(names)))] == names
    mixed = ["a/2/x9.png", "a/10/x1.png", "a/10/x1_2.png", "a/10/x10.png", "b/1.png"]
    assert [path.as_posix() for path in natural_order(map(Path, reversed(mixed)))] == mixed
    padded = [f"0016E5_{number:05}.png" for number in (390, 7959, 8159)] + ["Seq05VD_f00000.png"]
    assert [path.name for path in natural_order(map(Path, padded[::-1]))] == sorted(padded)
    others = ["1²3.jpg", "b/2.jpg", "١/1.jpg", "①/1.jpg"]
    assert [path.as_posix() for path in natural_order(map(Path, others[::-1]))] == others


def test_hidden_files_and_others_are_no_frames(tmp_path):
    for name in ("10.JPG", "9.jpg", "._9.jpg", ".DS_Store", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in find_frames(tmp_path, {".jpg"})] == ["9.jpg", "10.JPG"]
    assert find_frames(tmp_path / "none") == []


def test_two_files_of_one_name_are_refused():
    with pytest.raises(InputError, match=r"1\.jpg and 1\.png have one name"):
        by_stem([Path("1.jpg"), Path("1.png")])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_list_is_its_lines(tmp_path, encoding):
    path = tmp_path / "val.txt"
    path.write_bytes("first video\r\n\r\n  zweites-Vidéo\t\r\n3".encode(encoding))
    assert read_list(path) == ["first video", "zweites-Vidéo", "3"]
    with pytest.raises(InputError, match=r"none\.txt does not exist"):
        read_list(tmp_path / "none.txt")


def test_bytes_that_are_no_utf8_name_the_file_that_they_name(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"gr\xfcn\n")
    assert read_list(tmp_path / "list.txt") == [b"gr\xfcn".decode("utf-8", "surrogateescape")]


def test_a_name_may_hold_spaces():
    assert split_use("#A [x] (1).avi  2") == ("#A [x] (1).avi", "2")
    assert split_use("a b.avi\t0") == ("a b.avi", "0")
    assert split_use("alone.avi") == ("alone.avi", "")
