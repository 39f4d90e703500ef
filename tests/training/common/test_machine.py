import os
import shutil

import pytest

from training.common import machine
from training.recipes.recipe import RunConfig


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
    (tmp_path / "memory.stat").write_text("anon 1\nactive_file 7\ninactive_file 4096\n")
    assert machine.free_memory() == 2**20 + 4096  # the cache of files gives way


def test_shared_memory_is_what_is_free_in_its_folder_if_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_SHARED", tmp_path)
    assert machine.free_shared_memory() == pytest.approx(shutil.disk_usage(tmp_path).free, abs=2**28)
    monkeypatch.setattr(machine, "_SHARED", tmp_path / "none")
    assert machine.free_shared_memory() is None


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 gfni\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile amx_int8\n", True),
        ("Features\t: fp asimd i8mm bf16\n", True),
        ("flags\t\t: fpu avx512f avx512_vnni amx_tile\n", False),
        (None, False),
    ],
)
def test_bf16_is_taken_where_the_processor_has_units_for_it(tmp_path, monkeypatch, facts, expected):
    monkeypatch.setattr(machine, "_FACTS", tmp_path / "cpuinfo")
    if facts:
        (tmp_path / "cpuinfo").write_text(facts)
    assert machine.has_bf16_units() == expected
    auto, bf16, fp32 = (RunConfig(precision=precision) for precision in ("auto", "bf16", "fp32"))
    assert (auto.uses_bf16("cpu"), bf16.uses_bf16("cpu"), fp32.uses_bf16("cpu")) == (expected, True, False)
    assert (auto.uses_bf16("cuda"), fp32.uses_bf16("cuda")) == (True, False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for capability, found in (((7, 5), False), ((8, 0), True), ((12, 0), True)):
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda capability=capability: capability)
        assert auto.uses_bf16("cuda") == found
    assert auto.precision_on("cuda") == "bf16"
    said = "bf16 (the processor has bf16 units)" if expected else "fp32 (the processor has no bf16 units)"
    assert auto.precision_on("cpu") == said
    assert ("fp32 is several times faster" in bf16.precision_on("cpu")) == (not expected)
