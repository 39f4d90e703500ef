import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from tests.training import step_clock
from training.common.yaml_files import names_in
from training.data.frame_store import open_stores
from training.engine import checkpoint
from training.engine.arguments import parse_arguments
from training.engine.assembly import build_method, clip_index
from training.engine.curves import plot_curves
from training.engine.directory import digest_of
from training.engine.initial_weights import start_from
from training.engine.log import read_log
from training.engine.run import pretrain
from training.pretrain import main
from training.recipes.recipe import RECIPES, read_recipe
from video_distilled_encoder import Encoder, InputError
from video_distilled_encoder.errors import InputWarning


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return tmp_path_factory.mktemp("frames")


@pytest.fixture(scope="module")
def run(clip, frames, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "smoke"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.engine.run.plot_curves", plot_curves)
        pretrain([clip], out, read_recipe("smoke"), frames=frames)
    return out


def test_a_smoke_run_ends_in_an_encoder(run, photograph):
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoints",
        "curves.png",
        "encoder",
        "handover",
        "log.jsonl",
        "recipe.yaml",
        "run.json",
        "tensorboard",
        "views.png",
    ]
    encoder = Encoder.from_pretrained(run / "encoder")
    assert encoder.encode(photograph).patches.shape == (1, 196, 64)
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert all(np.isfinite(value) for row in rows for value in row.values())
    assert rows[-1]["loss"] < rows[0]["loss"]
    facts = json.loads((run / "run.json").read_text())
    assert (facts["videos"], facts["different_clips"]) == (1, 15)
    assert facts["device"]
    for picture in ("curves.png", "views.png"):
        with Image.open(run / picture) as image:
            assert np.asarray(image.convert("L")).std() > 10
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step-00000004", "step-00000008"]


def test_the_encoder_is_the_teachers_backbone(run):
    saved = checkpoint.load_newest(run / "checkpoints")
    encoder = Encoder.from_pretrained(run / "encoder")
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, saved.model[f"teacher.backbone.{name}"])
    assert not torch.equal(encoder.backbone.norm.weight, saved.model["student.backbone.norm.weight"])


def test_the_same_seed_gives_the_same_curve_with_any_number_of_workers(losses, run, clip, frames, tmp_path):
    recipe = read_recipe(str(run / "recipe.yaml"), ["--run.workers=2"])
    pretrain([clip], tmp_path / "again", recipe, frames=frames)
    assert losses(tmp_path / "again") == losses(run)
    other = read_recipe("smoke", ["--run.seed=1"])
    pretrain([clip], tmp_path / "other", other, frames=frames)
    assert losses(tmp_path / "other") != losses(run)


def test_a_run_cut_short_goes_on_where_it_was(losses, run, clip, frames, tmp_path):
    out = tmp_path / "cut"
    shutil.copytree(run, out)
    shutil.rmtree(out / "encoder")
    shutil.rmtree(out / "checkpoints" / "step-00000008")
    pretrain([clip], out, read_recipe("smoke"), frames=frames, resume=True)
    assert losses(out) == losses(run)
    weights = (out / "encoder" / "model.safetensors").read_bytes()
    assert weights == (run / "encoder" / "model.safetensors").read_bytes()


def test_a_damaged_checkpoint_is_passed_over(run, tmp_path):
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    newest = tmp_path / "checkpoints" / "step-00000008" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-10])
    with pytest.warns(UserWarning, match="passed over"):
        assert checkpoint.load_newest(tmp_path / "checkpoints").step == 4


def test_where_all_checkpoints_are_damaged_the_run_is_not_begun_anew(run, clip, frames, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    for state in out.glob("checkpoints/*/state.json"):
        state.write_text("[]")
    log = (out / "log.jsonl").read_bytes()
    names = "step-00000008, step-00000004"
    with (
        pytest.warns(InputWarning, match="passed over"),
        pytest.raises(InputError, match=f"no checkpoint in .* is whole: {names}; put a whole one there, or begin"),
    ):
        pretrain([clip], out, read_recipe("smoke"), frames=frames, resume=True)
    assert (out / "log.jsonl").read_bytes() == log


def test_what_lies_beside_checkpoints_stays_and_a_damaged_one_takes_no_place(run, tmp_path):
    root = tmp_path / "checkpoints"
    shutil.copytree(run / "checkpoints", root)
    theirs = {"step-00000002-keep", "step-best", "step-00000001-note.txt", "step-7"}
    for name in theirs:
        (root / name).write_text("mine") if name.endswith("txt") else (root / name).mkdir()
    (root / "step-00000008" / "state.json").unlink()
    with pytest.warns(InputWarning, match="passed over"):
        saved = checkpoint.load_newest(root)
    assert saved.step == 4
    with checkpoint.CheckpointWriter(root, keep=1) as writer:
        writer.save(replace(saved, step=5))
    assert {path.name for path in root.iterdir()} == {*theirs, "step-00000005", "step-00000008"}


def test_a_half_line_of_the_log_is_left_out(losses, run, clip, frames, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    with (out / "log.jsonl").open("ab") as file:
        file.write(b'{"step": 9, "loss": 1.2\xff')
    with pytest.warns(InputWarning, match=r"log\.jsonl has lines that were not written whole: 1 of 9, left out"):
        pretrain([clip], out, read_recipe("smoke"), frames=frames, resume=True)
    assert losses(out) == losses(run)


def test_a_directory_in_which_a_run_is_at_work_is_refused(run, clip, frames, tmp_path, start):
    out, recipe = tmp_path / "run", read_recipe("smoke")
    shutil.copytree(run, out)
    program = """
import os, sys, time
from pathlib import Path
from training.engine.directory import held
with held(Path(sys.argv[1])):
    if not os.fork():  # as workers are: it holds nothing, and its end frees nothing
        os._exit(0)
    os.wait()
    print("held", flush=True)
    while not Path(sys.argv[2]).exists():
        time.sleep(0.01)
"""
    other = start("-c", program, out, tmp_path / "enough")
    while other.out() != "held\n":
        assert other.poll(0.01) is None, other.err()
    with pytest.raises(InputError, match=f"another run is at work in {out}"):
        pretrain([clip], out, recipe, frames=frames, resume=True)
    (tmp_path / "enough").touch()
    assert other.wait() == 0
    pretrain([clip], out, recipe, frames=frames, resume=True)
    assert not (out / ".lock").exists()


def test_a_run_does_not_go_on_with_other_videos(run, clip, make_video, frames, tmp_path):
    with pytest.raises(InputError, match=r"started with other videos, .* \(1, 0\.0 h, and now 2, 0\.0 h\); give those"):
        pretrain([clip, make_video(seconds=3)], run, read_recipe("smoke"), frames=frames, resume=True)
    store = next(path for path in frames.rglob("*.zip"))
    index = [clip_index(read_recipe("smoke"), open_stores({store: "a"})) for _ in range(3)]
    index[1].stores[0].times += 0.001
    index[2].stores[0].shots[-1] += 1
    assert len({digest_of(one) for one in index}) == 3


@pytest.mark.parametrize("targets", ["centering", "sinkhorn_knopp"])
def test_bf16_learns_as_fp32_does(losses, clip, frames, tmp_path, targets):
    for precision in ("fp32", "bf16"):
        recipe = read_recipe("smoke", [f"--run.precision={precision}", f"--objective.targets={targets}"])
        pretrain([clip], tmp_path / precision, recipe, frames=frames)
    assert losses(tmp_path / "bf16") == pytest.approx(losses(tmp_path / "fp32"), rel=0.01)
    assert losses(tmp_path / "bf16") != losses(tmp_path / "fp32")


def test_max_time_is_the_length_of_the_run_and_its_schedules_end_with_it(clip, frames, tmp_path, start):
    out = tmp_path / "timed"
    words = ["--data", clip, "--frames", frames, "--out", out, "--recipe", "smoke", "--views.low_resolution=0.5"]
    process = start("-c", step_clock.PROGRAM, *words, "--max-time", "00:00:30")
    assert process.wait() == 0, process.err()
    rows = read_log(out / "log.jsonl")
    plan = checkpoint.load_newest(out / "checkpoints").plan
    assert 8 < len(rows) == plan.steps < 30
    assert len(plan.knots) > 3
    assert rows[-1]["learning_rate"] < 0.05 * max(row["learning_rate"] for row in rows)
    assert rows[-1]["teacher_momentum"] == pytest.approx(1.0, abs=1e-3)
    Encoder.from_pretrained(out / "encoder")


def test_a_plan_of_many_knots_is_kept_when_a_run_goes_on(losses, clip, frames, tmp_path, monkeypatch, capsys):
    step_clock.install(monkeypatch.setattr)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    recipe = read_recipe("smoke", ["--views.low_resolution=0.5", "--run.checkpoint_every=1000000"])
    pretrain([clip], whole, recipe, frames=frames, max_seconds=20.0)
    saved = checkpoint.load_newest(whole / "checkpoints")
    shutil.copytree(whole, cut)
    early, late = sorted((cut / "checkpoints").iterdir())  # of the first revision, and of the end
    shutil.rmtree(late)
    # the later revisions are not in the early checkpoint, and depend on the clock
    state = json.loads((early / "state.json").read_text())
    (early / "state.json").write_text(json.dumps({**state, "plan": saved.plan.knots}))
    capsys.readouterr()
    pretrain([clip], cut, recipe, frames=frames, resume=True)
    asked = f"{saved.plan.steps} steps, to which --max-time fitted the schedules, not {recipe.run.steps}, of 4 clips"
    assert asked in capsys.readouterr().err
    assert losses(cut) == losses(whole)
    weights = (cut / "encoder" / "model.safetensors").read_bytes()
    assert weights == (whole / "encoder" / "model.safetensors").read_bytes()


def test_a_time_too_short_to_begin_is_refused(clip, tmp_path):
    with pytest.raises(InputError, match="the time was over when 0 of 1 videos were extracted"):
        pretrain([clip], tmp_path / "short", read_recipe("smoke"), frames=tmp_path / "frames", max_seconds=0.0)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(losses, clip, frames, tmp_path):
    recipe = read_recipe("smoke", ["--optimizer.learning_rate=1e30", "--run.checkpoint_every=1"])
    with pytest.raises(InputError, match=r"the loss became nan at step \d+; lower .*, in another --out.* --init-from"):
        pretrain([clip], tmp_path / "bad", recipe, frames=frames)
    saved = checkpoint.load_newest(tmp_path / "bad" / "checkpoints")
    assert saved.step < len(losses(tmp_path / "bad"))
    assert not (tmp_path / "bad" / "encoder").exists()


def test_a_directory_that_is_taken_is_refused(run, clip, frames, tmp_path):
    with pytest.raises(InputError, match="not empty; add --resume"):
        pretrain([clip], run, read_recipe("smoke"), frames=frames)
    with pytest.raises(InputError, match="other settings: method was vfd, now ibot"):
        pretrain([clip], run, read_recipe(["smoke", "ibot"]), frames=frames, resume=True)
    with pytest.raises(InputError, match="no run to resume"):
        pretrain([clip], tmp_path, read_recipe("smoke"), frames=frames, resume=True)
    with pytest.raises(InputError, match=r"run\.batch_size was 4, now 2"):
        pretrain([clip], run, read_recipe("smoke", ["--run.batch_size=2"]), frames=frames, resume=True)


@pytest.mark.parametrize("kind", ["missing", "empty", "truncated", "too short", "no videos"])
def test_data_that_cannot_be_used_is_one_sentence_and_leaves_nothing(run_command, make_video, clip, tmp_path, kind):
    data = tmp_path / "data.mp4"
    expected = {
        "missing": "does not exist",
        "empty": "is empty",
        "truncated": "truncated",
        "too short": "no video is long enough",
        "no videos": "holds no video",
    }
    if kind == "empty":
        data.touch()
    elif kind == "truncated":
        data.write_bytes(clip.read_bytes()[:300_000])
    elif kind == "too short":
        data = make_video("data.mp4", seconds=0.8)
    elif kind == "no videos":
        data = tmp_path / "folder"
        data.mkdir()
    arguments = ["--data", data, "--out", tmp_path / "run", "--recipe", "smoke", "--frames", tmp_path / "frames"]
    error = run_command(main, *arguments)
    assert expected[kind] in error
    assert "\n" not in error
    assert not (tmp_path / "run").exists()
    assert kind == "too short" or not list((tmp_path / "frames").rglob("*.*"))


def test_a_run_on_a_data_set_knows_its_cameras_and_episodes(run_command, aloha, frames, tmp_path):
    words = ["--recipe", "cpu", "smoke", "--run.workers", "0", "--clips.stride", "0.5", "--clips.frames", "2"]
    chosen = ["--cameras", "front", "--episodes", "0:2", "--source-fps", "10"]
    where = ["--out", tmp_path / "run", "--frames", frames]
    assert "--source-fps" in run_command(main, "--data", aloha, *where, *words)
    assert run_command(main, "--data", aloha, *where, *words, *chosen) is None
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    # of 20 frames at 10 Hz fifteen have one half a second later in the same episode
    assert (facts["videos"], facts["different_clips"]) == (2, 30)


def test_a_run_on_a_lerobot_data_set_learns_from_clips_within_episodes(
    run_command, lerobot, photograph, frames, tmp_path
):
    out = tmp_path / "run"
    words = ["--recipe", "cpu", "smoke", "--run.workers", "0", "--clips.stride", "0.5", "--clips.frames", "3"]
    assert run_command(main, "--data", lerobot, "--out", out, "--frames", frames, *words) is None
    facts = json.loads((out / "run.json").read_text())
    # of 20 frames at 10 Hz ten have others half a second and a second later in the same episode; the mp4s have fifty
    assert (facts["videos"], facts["different_clips"]) == (6, 60)
    assert Encoder.from_pretrained(out / "encoder").encode(photograph).cls.isfinite().all()


def test_the_command_line_sets_any_setting(clip, frames, tmp_path, start):
    command = ["-m", "training.pretrain", "--data", clip, "--out", tmp_path / "run", "--recipe", "smoke"]
    command += ["--frames", frames, "--run.steps", "2", "--objective.head.prototypes", "16"]
    process = start(*command)
    assert process.wait() == 0, process.err()
    assert process.out().strip() == str(tmp_path / "run" / "encoder")
    saved = read_recipe(str(tmp_path / "run" / "recipe.yaml"))
    assert (saved.run.steps, saved.objective.head.prototypes, saved.run.batch_size) == (2, 16, 4)


def test_recipes_that_come_with_the_package():
    assert {"vfd-vits16", "cpu", "smoke"} <= set(names_in(RECIPES))
    paper = read_recipe("vfd-vits16")
    assert paper.backbone.architecture == "vit_small_patch16_224"
    assert (paper.clips.frames, paper.clips.stride) == (3, 0.5)
    assert (paper.views.pre_crop_area, paper.views.local_views) == ((0.05, 0.2), 5)
    assert (paper.views.global_size, paper.views.local_size) == (224, 96)
    assert (paper.objective.dense_weight, paper.objective.global_weight) == (0.5, 0.5)
    assert paper.objective.head.prototypes == 65536
    assert (paper.run.batch_size, paper.run.epochs) == (256, 100)


def test_unknown_recipes_and_methods_are_refused(tmp_path):
    with pytest.raises(InputError, match="no recipe 'none'"):
        read_recipe("none")
    (tmp_path / "x.yaml").write_text("method: nothing\n")
    with pytest.raises(InputError, match=r"no method 'nothing'; choose from: .*vfd"):
        read_recipe(str(tmp_path / "x.yaml"))


@pytest.mark.parametrize("kind", ["run", "encoder"])
def test_a_run_starts_from_the_weights_it_is_given(run, clip, frames, tmp_path, kind):
    source = run if kind == "run" else run / "encoder"
    recipe = read_recipe("smoke", [f"--run.init_from={source}", "--run.steps=1", "--optimizer.learning_rate=1e-12"])
    pretrain([clip], tmp_path / "next", recipe, frames=frames)
    before = checkpoint.load_newest(run / "checkpoints").model
    after = checkpoint.load_newest(tmp_path / "next" / "checkpoints").model
    name = "blocks.1.attn.qkv.weight"
    start = before[f"student.backbone.{name}" if kind == "run" else f"teacher.backbone.{name}"]
    assert torch.allclose(after[f"student.backbone.{name}"], start, atol=1e-6)
    same_head = torch.allclose(after["student.head.prototypes"], before["student.head.prototypes"], atol=1e-6)
    assert same_head == (kind == "run")


def test_weights_of_another_architecture_are_refused(encoder, clip, frames, tmp_path):
    encoder.save_pretrained(tmp_path / "small")
    recipe = read_recipe("smoke", [f"--run.init_from={tmp_path / 'small'}", "--backbone.model_args={}"])
    with pytest.raises(InputError, match=r"small: cls_token is \(1, 1, 384\), expected \(1, 1, 192\)"):
        pretrain([clip], tmp_path / "run", recipe, frames=tmp_path / "frames")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "frames").exists()  # nor were hours of video extracted first


def test_workers_end_with_a_run_that_fails(clip, frames, tmp_path, start):
    program = """
import sys
from pathlib import Path
from training.engine import trainer
from training.engine.run import pretrain
from training.recipes.recipe import read_recipe

def fail(*args):
    raise RuntimeError("out of memory, say")

trainer.Trainer.optimize = fail
clip, out, frames = map(Path, sys.argv[1:])
pretrain([clip], out, read_recipe("smoke", ["--run.workers=2"]), frames=frames)
"""
    process = start("-c", program, clip, tmp_path / "run", frames)
    assert process.wait(120) == 1
    assert "out of memory, say" in process.err()


@pytest.fixture
def timm_in_cache(tmp_path, monkeypatch):
    """timm/vit_tiny_patch16_224.some_weights, as timm itself saves it, in a Hub cache that stands in for the Hub."""
    torch.manual_seed(3)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10)
    snapshot = tmp_path / "hub" / "models--timm--vit_tiny_patch16_224.some_weights" / "snapshots" / ("c" * 40)
    timm.models.save_for_hf(model, snapshot, safe_serialization=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("c" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return model, snapshot / "model.safetensors"


def test_a_run_starts_from_a_timm_vit_by_name_or_file(timm_in_cache, recwarn):
    model, weights = timm_in_cache
    recipe = read_recipe("smoke", ["--backbone.model_args={}"])
    for name in ("timm/vit_tiny_patch16_224.some_weights", str(weights)):
        method = build_method(recipe)
        start_from(name, method)
        for tower in (method.student, method.teacher):
            assert torch.equal(tower.backbone.blocks[7].mlp.fc1.weight, model.blocks[7].mlp.fc1.weight)


def test_a_run_starts_from_a_bundled_release_by_name():
    settings = ["--backbone.architecture=vit_small_patch16_224", "--backbone.model_args={}"]
    method = build_method(read_recipe("smoke", settings))
    start_from("nota/vfd-vits16", method)
    release = Encoder.from_pretrained("nota/vfd-vits16").backbone.state_dict()
    for tower in (method.student, method.teacher):
        found = tower.backbone.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in release.items())


def test_half_precision_weights_are_trained_in_single_precision(tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "half", dtype=torch.float16)
    recipe = read_recipe("smoke", ["--backbone.model_args.depth=6"])
    method = build_method(recipe)
    start_from(str(tmp_path / "half"), method)
    assert {parameter.dtype for parameter in method.parameters()} == {torch.float32}


def test_pickled_weights_are_refused(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(InputError, match=r"weights\.pth is not a \.safetensors file"):
        start_from(str(tmp_path / "weights.pth"), None)


def test_help_says_what_is_asked_for_in_the_users_words(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    printed = capsys.readouterr().out
    assert "type: float" in printed
    assert not re.search(r"<(class|function) ", printed)
