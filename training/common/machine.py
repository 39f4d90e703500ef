"""What this machine has for this process: processors and memory, within the bounds of its control group."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_GROUP = Path("/sys/fs/cgroup")
_SHARED = Path("/dev/shm")
_FACTS = Path("/proc/cpuinfo")


def processors() -> int:
    """Return how many processors this process may use, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (_GROUP / "cpu.max").read_text(encoding="utf-8").split()
        return allowed if quota == "max" else max(1, min(allowed, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return allowed


def free_memory() -> int:
    """Return the bytes of memory that this process may still take."""
    lines = Path("/proc/meminfo")
    if not lines.is_file():
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    facts = dict(line.split(":") for line in lines.read_text(encoding="utf-8").splitlines())
    free = int(facts["MemAvailable"].split()[0]) * 1024
    try:
        limit, used = ((_GROUP / name).read_text(encoding="utf-8").strip() for name in ("memory.max", "memory.current"))
        if limit == "max":
            return free
        counted = (_GROUP / "memory.stat").read_text(encoding="utf-8").split()
        cached = int(counted[counted.index("inactive_file") + 1])  # of files, which give way
        return min(free, int(limit) - int(used) + cached)
    except (OSError, ValueError):
        return free


def free_shared_memory() -> int | None:
    """Return the bytes that processes may still share in /dev/shm, of which containers have 64 MB; None without it."""
    try:
        return shutil.disk_usage(_SHARED).free
    except OSError:
        return None


def has_bf16_units() -> bool:
    """Tell whether the processor multiplies bf16 matrices itself; others emulate it, several times slower than fp32."""
    try:
        words = _FACTS.read_text(encoding="utf-8").split()
    except OSError:
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(words)
