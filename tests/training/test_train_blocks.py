"""The last blocks of a backbone, trained alone: what is below them stays to the bit, and costs no backward pass."""

import shutil

import pytest
import torch

from training.data.clips import ClipIndex
from training.data.frame_store import FrameStore, extract_source
from training.engine import checkpoint
from training.engine.assembly import build_method, clip_views
from training.engine.estimate import expected_memory, flops_per_clip
from training.engine.run import pretrain
from training.models.backbone import BackboneConfig
from training.nn.optimizer import parameter_groups
from training.recipes.recipe import read_recipe
from video_distilled_encoder import Encoder, InputError
from video_distilled_encoder.sources.video_files import VideoFile

SMALL = [
    "--backbone.model_args.depth=4",
    "--backbone.train_blocks=1",
    "--views.global_size=64",
    "--views.local_views=2",
    "--run.steps=4",
    "--run.batch_size=4",
]
METHODS = {
    "vfd": [],
    "attmask": [],
    "distill": ["--objective.teacher=nota/vfd-vits16", "--objective.hidden=32"],
    "dora": ["--objective.objects=2", "--clips.frames=3", "--clips.stride=0.5", "--views.local_size=32"],
    "timet": ["--optimizer.learning_rate=0.01", "--objective.teacher_momentum=[0.9,0.9]"],
    "rsp-cpu": ["--objective.decoder.width=64", "--objective.decoder.depth=1", "--objective.decoder.heads=4"],
    "poodle": ["--objective.hidden=32", "--clips.stride=0.2", "--views.local_size=32"],
    "frame1-cpu": ["--objective.semantic_teacher=", "--objective.spatial_teacher=nota/vfd-vits16"],
    "paka": ["--optimizer.learning_rate=0.01", "--objective.teacher_momentum=[0.9,0.9]"],
}

PASSES = {
    "vfd": [(4, 64), (4, 32)],
    "attmask": [(4, 64), (2, 32)],
    "distill": [(1, 64)],
    "dora": [(3 + 6, 64), (6, 32)],
    "timet": [(5, 64)],
    "rsp-cpu": [(2, 64), (1, 32)],  # of 64 pixels a quarter of the patches is shown
    "poodle": [(4, 64), (8, 32)],
    "frame1-cpu": [(1, 64)],
    "paka": [(2, 64)],
}
"""Per clip, passes of student and teacher through the backbone, and the side of what they see."""


def recipe_of(method, *more):
    names = ["smoke"] if method == "vfd" else ["smoke", method]
    return read_recipe(names, [*METHODS[method], *SMALL, *more])


def weights_of(run):
    return Encoder.from_pretrained(run / "encoder").backbone.state_dict()


def is_trained(name):
    return name.startswith("blocks.3.")


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return tmp_path_factory.mktemp("frames")


@pytest.mark.parametrize("method", METHODS)
def test_of_every_method_only_the_last_block_moves_and_it_resumes_to_the_bit(method, clip, frames, tmp_path):
    recipe = recipe_of(method, "--run.checkpoint_every=2", "--backbone.drop_path=0.2")
    whole, again = tmp_path / "whole", tmp_path / "again"
    pretrain([clip], whole, recipe, frames=frames)
    shutil.copytree(whole, again)
    torch.manual_seed(recipe.run.seed)
    begin = build_method(recipe).encoder().state_dict()
    end = weights_of(whole)
    moved = {name for name in begin if not torch.equal(begin[name], end[name])}
    assert moved == {name for name in begin if is_trained(name)}
    saved = checkpoint.load_newest(whole / "checkpoints")
    student = {name.removeprefix("student.backbone."): tensor for name, tensor in saved.model.items()}
    assert all(torch.equal(student[name], tensor) for name, tensor in begin.items() if not is_trained(name))
    kept = {name for name in saved.optimizer if name.startswith("backbone.")}
    assert kept
    assert all(is_trained(name.removeprefix("backbone.")) for name in kept)
    for name in ("checkpoints/step-00000004", "encoder"):
        shutil.rmtree(again / name)
    pretrain([clip], again, recipe, frames=frames, resume=True)
    resumed = checkpoint.load_newest(again / "checkpoints")
    assert all(torch.equal(resumed.model[name], tensor) for name, tensor in saved.model.items())
    assert all(torch.equal(resumed.optimizer[name], tensor) for name, tensor in saved.optimizer.items())


@pytest.fixture
def clips_of(clip, frames):
    def make(recipe):
        return clip_views(
            recipe, ClipIndex([FrameStore(extract_source(VideoFile(clip), frames, recipe.extract))], recipe.clips, 0)
        )

    return make


@pytest.mark.parametrize("method", METHODS)
def test_frozen_blocks_keep_nothing_for_a_backward_pass(method, clips_of):
    """Blocks that stay cost a backward pass neither memory nor arithmetic, whatever comes in below them."""
    held, cost = {}, {}
    for depth in (3, 5):
        recipe = recipe_of(method, f"--backbone.model_args.depth={depth}", "--backbone.drop_path=0.0")
        clips, network = clips_of(recipe), build_method(recipe)
        held[depth] = expected_memory(recipe, clips, network, bf16=False)
        cost[depth] = flops_per_clip(clips, network, recipe.backbone.config)
    assert held[5]["activations"] == pytest.approx(held[3]["activations"], rel=1e-6)
    assert held[5]["weights, gradients, AdamW"] == pytest.approx(held[3]["weights, gradients, AdamW"], rel=1e-6)
    assert held[5]["other weights"] > held[3]["other weights"]
    # two more blocks, each met once by every token: 12 C^2 + 2 N C multiply-adds a token, forward alone
    tokens = sum(passes * (side // 16) ** 2 + passes for passes, side in PASSES[method])
    squares = sum(passes * ((side // 16) ** 2 + 1) ** 2 for passes, side in PASSES[method])
    assert cost[5] - cost[3] == pytest.approx(2 * 2 * (12 * 64**2 * tokens + 2 * 64 * squares), rel=1e-6)


def test_a_run_goes_on_from_the_encoder_of_another_with_what_stays_its_own(clip, frames, tmp_path):
    first = recipe_of("vfd", "--backbone.train_blocks=null", "--objective.teacher_momentum=[0.5,0.5]")
    pretrain([clip], tmp_path / "first", first, frames=frames)
    start = weights_of(tmp_path / "first")
    second = recipe_of("vfd", f"--run.init_from={tmp_path / 'first'}")
    pretrain([clip], tmp_path / "second", second, frames=frames)
    end = weights_of(tmp_path / "second")
    moved = {name for name in start if not torch.equal(end[name], start[name])}
    assert moved == {name for name in start if is_trained(name)}
    facts = checkpoint.load_newest(tmp_path / "second" / "checkpoints").model
    assert torch.equal(facts["student.backbone.norm.weight"], start["norm.weight"])


def test_the_backbone_has_a_learning_rate_of_its_own(clip, frames, tmp_path):
    """AdamW's first step is the learning rate in size, for every number with a gradient."""
    recipe = recipe_of(
        "vfd",
        "--optimizer.backbone_scale=0.25",
        "--optimizer.weight_decay=[0,0]",
        "--optimizer.warmup=0",
        "--optimizer.learning_rate=0.064",
        "--run.steps=1",
        "--run.checkpoint_every=1",
    )
    pretrain([clip], tmp_path / "run", recipe, frames=frames)
    torch.manual_seed(recipe.run.seed)
    begin = dict(build_method(recipe).student.named_parameters())
    saved = checkpoint.load_newest(tmp_path / "run" / "checkpoints").model
    rate = 0.064 * 4 / 256
    for name in ("backbone.blocks.3.mlp.fc2.weight", "backbone.blocks.3.norm2.bias", "predictor.mlp.0.weight"):
        step = (saved[f"student.{name}"] - begin[name]).abs().median().item()
        assert step == pytest.approx(rate * (0.25 if name.startswith("backbone") else 1), rel=0.01)


def test_groups_hold_each_parameter_once_and_nothing_that_stays():
    student = build_method(recipe_of("vfd")).student
    groups = parameter_groups(student, 0.1)
    params = [parameter for group in groups for parameter in group["params"]]
    assert {id(p) for p in params} == {id(p) for p in student.parameters() if p.requires_grad}
    assert len(params) == len({id(p) for p in params})
    for group in groups:
        assert len({parameter.ndim > 1 for parameter in group["params"]}) == 1
    assert len(groups) == 4
    assert len(parameter_groups(student, 1.0)) == 2


@pytest.mark.parametrize(("blocks", "trained"), [(0, 0), (2, 24), (12, 144)])
def test_what_is_trained_of_a_vit(blocks, trained):
    backbone = BackboneConfig(architecture="vit_tiny_patch16_224", train_blocks=blocks).build(True)
    names = [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]
    assert len(names) == trained
    assert {int(name.split(".")[1]) for name in names} == set(range(12 - blocks, 12))


@pytest.mark.parametrize("blocks", [-1, 13])
def test_more_blocks_than_there_are(blocks):
    with pytest.raises(InputError, match=rf"train_blocks must lie in 0 to 12, the blocks that there are; got {blocks}"):
        BackboneConfig(architecture="vit_tiny_patch16_224", train_blocks=blocks).build(True)
