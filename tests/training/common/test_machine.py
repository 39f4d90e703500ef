import os
import shutil

import pytest

from training.common import machine


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", 3), ("250000 100000", 2), ("10000 100000", 1), ("9900000 100000", 3)]
)
def test_processors_are_those_allowed_within_the_quota_of_the_control_group(tmp_path, monkeypatch, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 5, 7}, raising=False)
    monkeypatch.setattr(machine, "_GROUP", tmp_path)
    assert machine.processors() == 3
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert machine.processors() == expected


def test_memory_is_that_of_the_machine_within_the_bounds_of_the_control_group(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_GROUP", tmp_path)
    whole = machine.free_memory()
    assert 2**28 < whole < 2**50
    (tmp_path / "memory.current").write_text(f"{2**20}\n")
    (tmp_path / "memory.max").write_text(f"{2**21}\n")
    assert machine.free_memory() == 2**20


def test_shared_memory_is_what_is_free_in_its_folder_if_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_SHARED", tmp_path)
    assert machine.free_shared_memory() == pytest.approx(shutil.disk_usage(tmp_path).free, abs=2**28)
    monkeypatch.setattr(machine, "_SHARED", tmp_path / "none")
    assert machine.free_shared_memory() is None
