"""A killed run goes on to the bit; a run asked to stop leaves a checkpoint and an encoder."""

import os
import random
import signal
import time

import pytest

from training.engine import checkpoint
from training.engine.log import read_log
from training.engine.run import pretrain
from training.recipes.recipe import read_recipe
from video_distilled_encoder import Encoder


def options(clip, frames, out, *extra):
    words = ["--data", clip, "--frames", frames, "--out", out, "--recipe", "smoke"]
    return ["-m", "training.pretrain", *words, "--run.steps=24", "--backbone.drop_path=0.2", *extra]


def wait_for_step(run, step):
    deadline = time.monotonic() + 120
    log = run / "log.jsonl"
    while not log.exists() or len(read_log(log)) < step:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    settings = ["--run.steps=24", "--backbone.drop_path=0.2"]
    pretrain([clip], folder / "run", read_recipe("smoke", settings), frames=folder / "frames")
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


def test_killed_at_a_random_step_and_resumed_with_other_workers_it_equals_the_whole_run(
    start, clip, whole, losses, tmp_path
):
    step = random.randint(2, 20)
    process = start(*options(clip, whole / "frames", tmp_path / "run"))
    wait_for_step(tmp_path / "run", step)
    process.kill()
    process.wait()
    assert not (tmp_path / "run" / "encoder").exists()
    resumed = start(*options(clip, whole / "frames", tmp_path / "run", "--resume", "--run.workers=1"))
    assert resumed.wait(300) == 0, f"killed after step {step}: {resumed.err()}"
    assert_equal(tmp_path / "run", whole, losses)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_leaves_a_checkpoint_and_goes_on_later(start, clip, whole, losses, tmp_path, number):
    """A terminal, Slurm and `timeout` ask all processes of the group, those too that load."""
    process = start(*options(clip, whole / "frames", tmp_path / "run", "--run.workers=2"))
    wait_for_step(tmp_path / "run", 6)
    os.killpg(process.pid, number)
    assert process.wait(60) == 0
    assert "--resume goes on" in process.err()
    saved = checkpoint.load_newest(tmp_path / "run" / "checkpoints")
    assert saved.step == len(losses(tmp_path / "run")) < 24
    Encoder.from_pretrained(tmp_path / "run" / "encoder")
    resumed = start(*options(clip, whole / "frames", tmp_path / "run", "--resume"))
    assert resumed.wait(300) == 0
    assert_equal(tmp_path / "run", whole, losses)


def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stays(start, clip, whole, tmp_path):
    process = start(*options(clip, whole / "frames", tmp_path / "run", "--run.checkpoint_every=4"))
    wait_for_step(tmp_path / "run", 6)
    process.kill()
    process.wait()
    before = checkpoint.load_newest(tmp_path / "run" / "checkpoints")
    full = start(*options(clip, whole / "frames", tmp_path / "run", "--resume"), largest_file=1_000_000)
    assert full.wait(300) == 1
    message = full.err()
    assert "cannot write" in message
    assert "Traceback" not in message
    assert checkpoint.load_newest(tmp_path / "run" / "checkpoints").step == before.step
    extracted = start(*options(clip, tmp_path / "frames", tmp_path / "other"), largest_file=100_000)
    assert extracted.wait(300) == 1
    assert "cannot write" in extracted.err().splitlines()[-1]
    assert not [path for path in (tmp_path / "frames").rglob("*") if path.is_file()]
