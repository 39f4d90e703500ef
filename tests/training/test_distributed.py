"""Two processes must do what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training.recipe import read_recipe
from video_distilled_encoder import Encoder

ROOT = Path(__file__).parents[2]
SETTINGS = ["--recipe", "smoke", "--run.steps=20", "--run.device=cpu", "--backbone.drop_path=0.2"]


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def launch(processes, clip, frames, out, *extra, **environment):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "training.pretrain"]
    command += ["--data", str(clip), "--frames", str(frames), "--out", str(out), *SETTINGS, *extra]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=500)


@pytest.mark.parametrize("targets", ["centering", "sinkhorn_knopp"])
def test_two_gloo_processes_equal_one(clip, photograph, tmp_path, targets):
    option = f"--objective.targets={targets}"
    for processes in (1, 2):
        result = launch(processes, clip, tmp_path / "frames", tmp_path / f"run{processes}", option)
        assert result.returncode == 0, result.stderr
    one, two = (torch.tensor(losses(tmp_path / f"run{n}")) for n in (1, 2))
    assert len(one) == 20
    assert torch.allclose(one, two, rtol=1e-5, atol=1e-5)
    features = [Encoder.from_pretrained(tmp_path / f"run{n}" / "encoder").encode(photograph).patches for n in (1, 2)]
    assert torch.allclose(*features, atol=1e-3)


def test_a_batch_that_cannot_be_shared_ends_all_processes_with_the_reason(clip, tmp_path):
    result = launch(2, clip, tmp_path / "frames", tmp_path / "run", "--run.batch_size=5")
    assert result.returncode != 0
    assert "run.batch_size 5 cannot be shared equally by 2 processes" in result.stderr
    assert not (tmp_path / "run").exists()


def test_recipes_share_the_batch():
    assert read_recipe("vfd-vits16").run.batch_size % 8 == 0
