import hashlib
import os
import time

import pytest

from training.common import digests
from training.common.digests import remembered_sha256


@pytest.fixture
def reads(tmp_path, monkeypatch):
    """Return the list of files that were read."""
    monkeypatch.setenv("VDE_CACHE", str(tmp_path / "cache"))
    seen, sha256 = [], digests.sha256
    monkeypatch.setattr(digests, "sha256", lambda *paths: seen.extend(path.name for path in paths) or sha256(*paths))
    return seen


def write(path, content, age=60.0):
    path.write_bytes(content)
    then = time.time() - age
    os.utime(path, (then, then))
    return hashlib.sha256(content).hexdigest()


def test_a_file_is_read_once_until_it_changes(tmp_path, reads):
    file = tmp_path / "a b.mp4"
    digest = write(file, b"one")
    (tmp_path / "link.mp4").symlink_to(file)
    assert [remembered_sha256(path) for path in (file, file, tmp_path / "link.mp4")] == [digest] * 3
    assert reads == [file.name]
    digest = write(file, b"two")
    assert remembered_sha256(file) == digest
    os.replace(file, tmp_path / "kept.mp4")
    other = write(file, b"six")
    os.utime(file, ns=(1, (tmp_path / "kept.mp4").stat().st_mtime_ns))
    assert remembered_sha256(file) == other


def test_several_files_are_read_once_until_one_changes(tmp_path, reads):
    files = [tmp_path / name for name in "abc"]
    sums = [write(file, file.name.encode()) for file in files]
    together = hashlib.sha256("\n".join(sums).encode()).hexdigest()
    assert remembered_sha256(*files) == remembered_sha256(*files) == together
    assert reads == ["a", "b", "c"]
    assert remembered_sha256(*files[::-1]) != together
    write(files[1], b"d")
    assert remembered_sha256(*files) != together
    assert reads == ["a", "b", "c", "c", "b", "a", "a", "b", "c"]


def test_what_was_written_just_now_is_read_again(tmp_path, reads):
    file = tmp_path / "new.mp4"
    digest = write(file, b"one", age=0.5)
    assert remembered_sha256(file) == remembered_sha256(file) == digest
    assert len(reads) == 2


@pytest.mark.parametrize("damage", ["", "[]", '{"sha256": 3}', "\x00"])
def test_a_damaged_note_or_no_place_for_one_costs_a_reading(tmp_path, reads, damage, monkeypatch):
    digest = write(tmp_path / "a.mp4", b"one")
    remembered_sha256(tmp_path / "a.mp4")
    (note,) = (tmp_path / "cache" / "digests").iterdir()
    note.write_text(damage)
    assert remembered_sha256(tmp_path / "a.mp4") == digest
    (tmp_path / "file").touch()
    monkeypatch.setenv("VDE_CACHE", str(tmp_path / "file"))
    assert remembered_sha256(tmp_path / "a.mp4") == digest
    assert len(reads) == 3
