import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import os, sys, time
from training.common.spread import worker_pool

def tell(folder):
    open(f"{folder}/{os.getpid()}", "w").close()
    time.sleep(600)

if __name__ == "__main__":
    with worker_pool(2) as pool:
        list(pool.map(tell, [sys.argv[1]] * 2))
"""


def alive(process):
    """Tell whether a process computes yet: an orphan's entry may stay where nothing waits for it."""
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked at in /proc")
def test_workers_end_with_the_process_that_they_work_for_however_it_ends(tmp_path):
    (tmp_path / "told").mkdir()
    script = tmp_path / "work.py"
    script.write_text(SCRIPT)
    root = str(Path(__file__).parents[3])
    parent = subprocess.Popen([sys.executable, script, tmp_path / "told"], env={**os.environ, "PYTHONPATH": root})
    end = time.monotonic() + 60
    while len(workers := os.listdir(tmp_path / "told")) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    assert len(workers) == 2
    assert all(map(alive, workers))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while any(map(alive, workers)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(alive, workers))
