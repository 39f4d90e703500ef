"""Two processes must do what one does."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.training import step_clock
from training.common import distributed
from training.common.distributed import World, check_different, choose_gpu
from training.engine import checkpoint
from training.engine.log import read_log
from training.engine.run import extract_once
from training.pretrain import main
from training.recipes.recipe import read_recipe
from video_distilled_encoder import Encoder, InputError

ROOT = Path(__file__).parents[3]
COMMAND = ["-m", "training.pretrain"]
SETTINGS = ["--recipe", "smoke", "--run.steps=8", "--run.device=cpu", "--backbone.drop_path=0.2", "--run.batch_size=4"]


LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"],
    "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"],
}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def options_of(clip, frames, out, *extra):
    return ["--data", str(clip), "--frames", str(frames), "--out", str(out), *SETTINGS, *extra]


def launched(launcher, *arguments):
    return [sys.executable, *LAUNCHERS[launcher], "-m", "training.pretrain", *options_of(*arguments)]


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Frame stores that runs of one video share."""
    return tmp_path_factory.mktemp("frames")


def all_end(processes):
    """Wait for processes and return their exit statuses and what they said."""
    return [process.wait() for process in processes], "".join(process.err() for process in processes)


LAST_BLOCK = ["--backbone.train_blocks=1", "--optimizer.backbone_scale=0.5", "--optimizer.learning_rate=0.001"]
TEACHERS = ["--objective.spatial_teacher={tiny}", "--objective.semantic_teacher={tiny}", "--objective.semantic_size=64"]


@pytest.mark.parametrize(
    "options",
    [
        ["--objective.targets=centering"],
        ["--objective.targets=sinkhorn_knopp"],
        [
            "--recipe",
            "smoke",
            "ibot",
            "--objective.targets=centering",
            "--views.local_views=2",
            "--objective.head.prototypes=64",
        ],
        ["--recipe", "smoke", "timet", "--objective.head.prototypes=16", *LAST_BLOCK],
        ["--recipe", "smoke", "paka", *LAST_BLOCK],
        [
            *["--recipe", "smoke", "dora", "--clips.frames=3", "--clips.stride=0.5", "--views.local_views=2"],
            "--views.local_size=32",
            *["--objective.objects=2", "--objective.head.prototypes=64", "--objective.quirks=authors"],
        ],
        ["--recipe", "smoke", "rsp-cpu", "--objective.decoder.width=48"],
        [
            *["--recipe", "smoke", "poodle-cpu", "--objective.hidden=32", "--objective.bottleneck=16"],
            *["--objective.decoder_width=16", "--views.local_views=2"],
        ],
        ["--recipe", "smoke", "frame1-cpu", *TEACHERS],
        ["--recipe", "smoke", "frame2-cpu", *TEACHERS, "--run.init_from={tiny}", "--backbone.model_args.depth=6"],
    ],
    ids=["vfd-centering", "vfd-sinkhorn_knopp", "ibot", "timet", "paka", "dora", "rsp", "poodle", "frame1", "frame2"],
)
def test_two_gloo_processes_equal_one(
    losses, clip, frames, photograph, tiny_directory, tmp_path, options, run_command, one_thread, start_world
):
    options = [option.replace("{tiny}", str(tiny_directory)) for option in options]
    assert run_command(main, *options_of(clip, frames, tmp_path / "one", *options)) is None
    ends, said = all_end(start_world(*COMMAND, *options_of(clip, frames, tmp_path / "two", *options)))
    assert ends == [0, 0], said
    one, two = (torch.tensor(losses(tmp_path / name)) for name in ("one", "two"))
    assert len(one) == 8
    assert torch.allclose(one, two, rtol=1e-5, atol=1e-5)
    features = [
        Encoder.from_pretrained(tmp_path / name / "encoder").encode(photograph).patches for name in ("one", "two")
    ]
    assert torch.allclose(*features, atol=1e-3)


def test_two_processes_follow_one_plan_to_the_end_of_their_time(
    clip, frames, tmp_path, rate_of_the_last_step, start_world
):
    run = tmp_path / "run"
    options = ["--max-time=00:00:30", "--views.low_resolution=0.5", "--run.log_every=3"]
    ends, said = all_end(start_world("-c", step_clock.PROGRAM, *options_of(clip, frames, run, *options)))
    assert ends == [0, 0], said
    plan = checkpoint.load_newest(run / "checkpoints").plan
    rows = read_log(run / "log.jsonl")
    assert len(rows) == plan.steps
    assert len(plan.knots) > 3
    assert rows[-1]["learning_rate"] == pytest.approx(rate_of_the_last_step(run))


def test_accelerate_launches_the_same_command(clip, frames, tmp_path):
    pytest.importorskip("accelerate")
    words = launched("accelerate", clip, frames, tmp_path / "run", "--run.steps=2")
    result = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT, timeout=500, check=False)
    assert result.returncode == 0, result.stderr
    assert "clips on 2 x cpu" in result.stderr


def test_a_process_that_dies_ends_the_others_with_its_reason(clip, frames, tmp_path):
    log = tmp_path / "run" / "log.jsonl"
    arguments = launched("torchrun", clip, frames, tmp_path / "run", "--run.steps=5000")
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=ENVIRONMENT) as job:
        try:
            deadline = time.monotonic() + 120
            while not (log.exists() and log.read_text().count("\n") > 2):
                assert job.poll() is None, job.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.2)
            os.kill(process_of_rank(1, job.pid), signal.SIGKILL)
            _, message = job.communicate(timeout=120)
        finally:
            job.kill()
    assert job.returncode != 0
    assert "local_rank: 1" in message
    assert "SIGKILL" in message


def process_of_rank(rank, launcher):
    """Return the child of a launcher that has this rank."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"\0RANK={rank}\0" in Path(f"/proc/{child}/environ").read_text():
            return int(child)
    raise AssertionError(f"no process of rank {rank}")


def test_machines_share_the_extraction_and_go_on_when_one_was_killed(tmp_path, make_video, start_world):
    for number in range(8):
        make_video(f"videos/{number}.mp4", seconds=4 + number / 2, fps=30, size=(320, 240))
    frames, out = tmp_path / "frames", tmp_path / "run"
    words = [*COMMAND, *options_of(tmp_path / "videos", frames, out, "--run.steps=2")]
    jobs = start_world(*words, machines=2)
    begun, deadline = set(), time.monotonic() + 120
    while len(begun) < 2:
        assert time.monotonic() < deadline
        assert all(job.poll() is None for job in jobs), [job.err() for job in jobs]
        begun = {parent(int(re.match(r"\.(\d+)-", file.name)[1])) for file in frames.rglob(".*.zip")} - {None}
        time.sleep(0.02)
    assert begun == {job.pid for job in jobs}
    jobs[1].kill()
    assert all(all_end(jobs)[0])
    stores = {store: store.stat().st_mtime_ns for store in frames.rglob("[!.]*.zip")}
    assert stores
    ends, said = all_end(start_world(*words, machines=2))
    assert ends == [0, 0], said
    whole = {store: store.stat().st_mtime_ns for store in frames.rglob("[!.]*.zip")}
    assert len(whole) == 8
    assert stores.items() <= whole.items()
    assert (out / "encoder" / "model.safetensors").exists()


def parent(process):
    """Return the process that started an extracting one, as the system tells, or None if that has ended."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return None


def test_a_batch_that_cannot_be_shared_ends_all_processes_with_the_reason(clip, tmp_path, start_world):
    words = options_of(clip, tmp_path / "frames", tmp_path / "run", "--run.batch_size=5")
    ends, said = all_end(start_world(*COMMAND, *words))
    assert ends == [1, 1]
    assert "run.batch_size 5 cannot be shared equally by 2 processes" in said
    assert not (tmp_path / "run").exists()


def test_recipes_share_the_batch():
    assert read_recipe("vfd-vits16").run.batch_size % 8 == 0


@pytest.mark.parametrize(("local", "count", "place"), [(0, 8, 0), (5, 8, 5), (0, 1, 0), (3, 1, 0)])
def test_a_process_takes_the_gpu_of_its_number_or_the_only_one_that_it_sees(local, count, place):
    assert choose_gpu(local, count) == torch.device("cuda", place)


@pytest.mark.parametrize(("local", "count", "reason"), [(0, 0, "sees no CUDA device"), (2, 2, "there are 2")])
def test_a_process_without_a_gpu_is_told(local, count, reason):
    with pytest.raises(InputError, match=reason):
        choose_gpu(local, count)


@pytest.mark.parametrize("full", [True, False])
def test_fp32_on_a_gpu_is_not_tf32(monkeypatch, full):
    said = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda place: None)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", said.append)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", full)
    assert distributed.start("cuda", full_float32=full).device == torch.device("cuda", 0)
    assert said == ["highest" if full else "high"]
    assert torch.backends.cudnn.allow_tf32 is not full


def test_two_processes_on_one_gpu_are_told():
    check_different(["GPU-1", "GPU-2"])
    with pytest.raises(InputError, match="processes 0 and 2 have one and the same GPU"):
        check_different(["GPU-1", "GPU-2", "GPU-1"])


def test_each_machine_reads_the_stores_where_it_has_them(monkeypatch, tmp_path):
    world = World(rank=3, size=4, local_rank=1, device=torch.device("cpu"))
    here, there = ({Path(root, "10fps", f"{name}.zip"): "videos" for name in "ab"} for root in ("/here", "/there"))
    monkeypatch.setattr(distributed, "wait_for_all", lambda: None)
    monkeypatch.setattr(distributed, "gather", lambda stores: [here, {}, there, stores])
    assert extract_once(world, [], tmp_path, read_recipe("smoke")) == there
    there.pop(Path("/there/10fps/a.zip"))
    with pytest.raises(InputError, match="the machine of process 2 has other videos than that of process 0: 1 against"):
        extract_once(world, [], tmp_path, read_recipe("smoke"))
