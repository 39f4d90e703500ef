"""A killed run goes on to the bit; a run asked to stop leaves a checkpoint and an encoder."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training import checkpoint
from video_distilled_encoder import Encoder

ROOT = Path(__file__).parents[2]


def start(clip, frames, out, *extra):
    command = [sys.executable, "-m", "training.pretrain", "--data", str(clip), "--frames", str(frames)]
    command += ["--out", str(out), "--recipe", "smoke", "--run.steps=24", "--backbone.drop_path=0.2", *extra]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def losses(run):
    log = run / "log.jsonl"
    return [json.loads(line)["loss"] for line in log.read_text().splitlines()] if log.exists() else []


def wait_for_step(run, step):
    deadline = time.monotonic() + 120
    while len(losses(run)) < step:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    process = start(clip, folder / "frames", folder / "run")
    assert process.wait(300) == 0, process.stderr.read()
    return folder


def assert_equal(run, whole):
    assert losses(run) == losses(whole / "run")
    theirs = (whole / "run" / "encoder" / "model.safetensors").read_bytes()
    assert (run / "encoder" / "model.safetensors").read_bytes() == theirs
    states = [checkpoint.load_newest(folder / "checkpoints") for folder in (run, whole / "run")]
    for kind in ("model", "optimizer"):
        one, other = (getattr(state, kind) for state in states)
        assert one.keys() == other.keys()
        assert all(one[name].equal(other[name]) for name in one)


def test_killed_at_a_random_step_and_resumed_with_other_workers_it_equals_the_whole_run(clip, whole, tmp_path):
    step = random.randint(2, 20)
    process = start(clip, whole / "frames", tmp_path / "run")
    wait_for_step(tmp_path / "run", step)
    process.kill()
    process.wait()
    assert not (tmp_path / "run" / "encoder").exists()
    resumed = start(clip, whole / "frames", tmp_path / "run", "--resume", "--run.workers=1")
    assert resumed.wait(300) == 0, f"killed after step {step}: {resumed.stderr.read()}"
    assert_equal(tmp_path / "run", whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_leaves_a_checkpoint_and_goes_on_later(clip, whole, tmp_path, number):
    process = start(clip, whole / "frames", tmp_path / "run")
    wait_for_step(tmp_path / "run", 6)
    process.send_signal(number)
    assert process.wait(60) == 0
    assert "--resume goes on" in process.stderr.read()
    saved = checkpoint.load_newest(tmp_path / "run" / "checkpoints")
    assert saved.step == len(losses(tmp_path / "run")) < 24
    Encoder.from_pretrained(tmp_path / "run" / "encoder")
    resumed = start(clip, whole / "frames", tmp_path / "run", "--resume")
    assert resumed.wait(300) == 0
    assert_equal(tmp_path / "run", whole)
