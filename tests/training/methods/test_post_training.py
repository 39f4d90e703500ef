"""Methods for an encoder that exists: they begin at it, are described, and are gone on from."""

import json

import pytest
import torch

from training.engine import checkpoint
from training.engine.log import read_log
from training.engine.run import dry_run, pretrain
from training.recipes.recipe import read_recipe
from video_distilled_encoder import Encoder

MONITORS = {
    "timet": {"left_out", "followed", "patch_entropy", "carried_entropy", "patch_batch_entropy", "patch_feature_std"},
    "paka": {"alignment", "alignment_with_others", "patch_feature_std", "patch_feature_rank"},
}


def recipe_of(method, *more):
    settings = ["--run.workers=0", "--run.steps=3", "--run.batch_size=2", "--views.global_size=64", "--extract.fps=10"]
    return read_recipe([method], [*settings, "--extract.short_side=128", "--run.log_every=1", *more])


@pytest.mark.parametrize("method", MONITORS)
def test_it_begins_at_a_release_tells_of_itself_and_is_gone_on_from(method, clip, tmp_path, tiny_directory, from_tiny):
    run, frames = tmp_path / "run", tmp_path / "frames"
    recipe = recipe_of(method, *from_tiny, "--objective.teacher_momentum=[0.5,0.5]")
    assert "GFLOP a clip" in dry_run([clip], run, recipe, frames, False)
    pretrain([clip], run, recipe, frames=frames)
    begin, end = (Encoder.from_pretrained(name).backbone.state_dict() for name in (tiny_directory, run / "encoder"))
    moved = {name for name in begin if not torch.equal(begin[name], end[name])}
    assert moved
    assert all(name.startswith(("blocks.4.", "blocks.5.")) for name in moved)
    assert MONITORS[method] <= read_log(run / "log.jsonl")[-1].keys()
    settings = [*from_tiny, f"--run.init_from={run / 'handover'}", "--run.steps=1", "--run.checkpoint_every=1"]
    pretrain([clip], tmp_path / "next", recipe_of(method, *settings), frames=frames)
    facts = json.loads((tmp_path / "next" / "run.json").read_text())
    assert [before["steps"] for before in facts["runs_before"]] == [3]
    assert "patch_balance.center" in checkpoint.load_newest(tmp_path / "next" / "checkpoints").model or method == "paka"


@pytest.mark.parametrize("method", MONITORS)
def test_without_time_the_first_frame_is_all_there_is(method, clip, tmp_path, from_tiny):
    settings = ["--clips.still=true", *from_tiny, "--run.steps=1", "--run.precision=fp32"]
    settings += ["--objective.top_k=1"] if method == "timet" else ["--objective.student_style=null"]
    pretrain([clip], tmp_path / "run", recipe_of(method, *settings), frames=tmp_path / "frames")
    row = read_log(tmp_path / "run" / "log.jsonl")[0]
    if method == "timet":
        assert row["left_out"] == 0
        assert row["carried_entropy"] == pytest.approx(row["patch_entropy"], rel=1e-5)
    else:
        assert row["loss"] == pytest.approx(0, abs=1e-5)
