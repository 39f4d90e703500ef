"""A killed run goes on to the bit; a run asked to stop leaves a checkpoint and an encoder."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training.engine import checkpoint
from training.engine.log import read_log
from video_distilled_encoder import Encoder

ROOT = Path(__file__).parents[2]


def start(clip, frames, out, *extra, largest_file=None):
    """Start a run; a limit of the size of files, in bytes, stands in for a full disk."""
    command = [sys.executable, "-m", "training.pretrain", "--data", str(clip), "--frames", str(frames)]
    command += ["--out", str(out), "--recipe", "smoke", "--run.steps=24", "--backbone.drop_path=0.2", *extra]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}

    def limit():
        if largest_file:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True, preexec_fn=limit, start_new_session=True
    )


def wait_for_step(run, step):
    deadline = time.monotonic() + 120
    log = run / "log.jsonl"
    while not log.exists() or len(read_log(log)) < step:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    process = start(clip, folder / "frames", folder / "run")
    assert process.wait(300) == 0, process.stderr.read()
    return folder


def assert_equal(run, whole, losses):
    assert losses(run) == losses(whole / "run")
    theirs = (whole / "run" / "encoder" / "model.safetensors").read_bytes()
    assert (run / "encoder" / "model.safetensors").read_bytes() == theirs
    states = [checkpoint.load_newest(folder / "checkpoints") for folder in (run, whole / "run")]
    for kind in ("model", "optimizer"):
        one, other = (getattr(state, kind) for state in states)
        assert one.keys() == other.keys()
        assert all(one[name].equal(other[name]) for name in one)


def test_killed_at_a_random_step_and_resumed_with_other_workers_it_equals_the_whole_run(clip, whole, losses, tmp_path):
    step = random.randint(2, 20)
    process = start(clip, whole / "frames", tmp_path / "run")
    wait_for_step(tmp_path / "run", step)
    process.kill()
    process.wait()
    assert not (tmp_path / "run" / "encoder").exists()
    resumed = start(clip, whole / "frames", tmp_path / "run", "--resume", "--run.workers=1")
    assert resumed.wait(300) == 0, f"killed after step {step}: {resumed.stderr.read()}"
    assert_equal(tmp_path / "run", whole, losses)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_leaves_a_checkpoint_and_goes_on_later(clip, whole, losses, tmp_path, number):
    """A terminal, Slurm and `timeout` ask all processes of the group, those too that load."""
    process = start(clip, whole / "frames", tmp_path / "run", "--run.workers=2")
    wait_for_step(tmp_path / "run", 6)
    os.killpg(process.pid, number)
    assert process.wait(60) == 0
    assert "--resume goes on" in process.stderr.read()
    saved = checkpoint.load_newest(tmp_path / "run" / "checkpoints")
    assert saved.step == len(losses(tmp_path / "run")) < 24
    Encoder.from_pretrained(tmp_path / "run" / "encoder")
    resumed = start(clip, whole / "frames", tmp_path / "run", "--resume")
    assert resumed.wait(300) == 0
    assert_equal(tmp_path / "run", whole, losses)


def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stays(clip, whole, tmp_path):
    process = start(clip, whole / "frames", tmp_path / "run", "--run.checkpoint_every=4")
    wait_for_step(tmp_path / "run", 6)
    process.kill()
    process.wait()
    before = checkpoint.load_newest(tmp_path / "run" / "checkpoints")
    full = start(clip, whole / "frames", tmp_path / "run", "--resume", largest_file=1_000_000)
    assert full.wait(300) == 1
    message = full.stderr.read()
    assert "cannot write" in message
    assert "Traceback" not in message
    assert checkpoint.load_newest(tmp_path / "run" / "checkpoints").step == before.step
    extracted = start(clip, tmp_path / "frames", tmp_path / "other", largest_file=100_000)
    assert extracted.wait(300) == 1
    assert "cannot write" in extracted.stderr.read().splitlines()[-1]
    assert not [path for path in (tmp_path / "frames").rglob("*") if path.is_file()]
