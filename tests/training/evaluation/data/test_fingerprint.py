import os

import pytest

from training.evaluation.data.fingerprint import fingerprint


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data" / "train").mkdir(parents=True)
    for name, content in (("train/a.png", b"aaaa"), ("train/b.png", b"bbbb"), ("list.txt", b"a\nb")):
        (tmp_path / "data" / name).write_bytes(content)
    return tmp_path / "data"


def test_the_same_data_anywhere_have_one_fingerprint(data, tmp_path):
    before = fingerprint(data)
    data.rename(tmp_path / "elsewhere")
    data.mkdir()
    (data / "train").symlink_to(tmp_path / "elsewhere" / "train")
    (data / "list.txt").write_bytes(b"a\nb")
    assert fingerprint(data) == before
    (data / ".DS_Store").write_bytes(b"hidden")
    (data / "train" / "loop").symlink_to(data)
    assert fingerprint(data) == before


def test_a_file_that_was_mended_moved_or_added_changes_it(data):
    seen = [fingerprint(data)]
    label = data / "train" / "b.png"
    label.write_bytes(b"cccc")
    seen.append(fingerprint(data))
    label.rename(data / "train" / "c.png")
    seen.append(fingerprint(data))
    label.write_bytes(b"bbbb")
    seen.append(fingerprint(data))
    assert len(set(seen)) == 4


def test_size_and_time_alone_do_not_tell(data, tmp_path):
    """A folder that was unpacked with fixed times, in place of another."""
    before = fingerprint(data)
    data.rename(tmp_path / "old")
    (data / "train").mkdir(parents=True)
    for name, content in (("train/a.png", b"AAAA"), ("train/b.png", b"bbbb"), ("list.txt", b"a\nb")):
        (data / name).write_bytes(content)
        os.utime(data / name, (0, 0))
    assert fingerprint(data) != before


def test_what_is_written_beside_the_data_is_no_part_of_them(data):
    before = fingerprint(data)
    (data / "cache").mkdir()
    (data / "cache" / "x.npy").touch()
    (data / "result.json").touch()
    assert fingerprint(data, [data / "cache", data / "result.json"]) == before


def test_a_file_is_its_content(data):
    copy = data / "copy.png"
    copy.write_bytes((data / "train" / "a.png").read_bytes())
    assert fingerprint(copy) == fingerprint(data / "train" / "a.png") != fingerprint(data / "list.txt")
