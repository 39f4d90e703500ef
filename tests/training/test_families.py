"""Training of vision transformers with registers and rotary positions."""

import pytest
import torch
from torch import nn

from training.engine.assembly import build_method
from training.engine.log import read_log
from training.engine.run import pretrain
from training.methods.method import At
from training.nn.drop_path import DropPaths, GivenDropPath
from training.recipes.recipe import read_recipe
from video_distilled_encoder import Encoder, InputError, ModelConfig

SMALL = {"depth": 2, "embed_dim": 64, "num_heads": 2}
FAMILIES = {"vit_small_patch14_reg4_dinov2": SMALL | {"img_size": 56}, "vit_small_patch16_dinov3": SMALL}

SETTINGS = {
    "distill": ["--objective.teacher=random:vit_tiny_patch16_224"],
    "dora": ["--objective.objects=2", "--objective.head.prototypes=64", "--clips.frames=3", "--clips.stride=0.5"],
    "frame1-cpu": [f"--objective.{kind}_teacher=random:vit_tiny_patch16_224" for kind in ("spatial", "semantic")],
}


def recipe_of(method, architecture, *settings):
    patch = 14 if "patch14" in architecture else 16
    words = [
        f"--backbone.architecture={architecture}",
        f"--backbone.model_args={FAMILIES.get(architecture, SMALL)}",
        f"--views.global_size={4 * patch}",
        f"--views.local_size={2 * patch}",
        "--run.steps=2",
        "--run.batch_size=2",
        "--backbone.drop_path=0.2",
        *SETTINGS.get(method, []),
        *settings,
    ]
    return read_recipe(["smoke"] if method == "vfd" else ["smoke", method], words)


METHODS = [
    "vfd",
    "dino-frames",
    "ibot",
    "attmask",
    "distill",
    "dora",
    "timet",
    "paka",
    "rsp-cpu",
    "poodle-cpu",
    "frame1-cpu",
]


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_them_from_weights_that_exist(method, architecture, clip, tmp_path, one_thread):
    config = ModelConfig(architecture, FAMILIES[architecture])
    start = Encoder(config.build_backbone(), config)
    start.save_pretrained(tmp_path / "start")
    recipe = recipe_of(method, architecture, f"--run.init_from={tmp_path / 'start'}")
    pretrain([clip], tmp_path / "run", recipe, frames=tmp_path / "frames")
    losses = [row["loss"] for row in read_log(tmp_path / "run" / "log.jsonl")]
    assert len(losses) == 2
    assert all(0 < loss < 100 for loss in losses)
    trained = Encoder.from_pretrained(tmp_path / "run" / "encoder")
    assert trained.tokens == start.tokens
    before, after = start.state_dict(), trained.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.allclose(before[name], after[name], atol=0.1) for name in before)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_registers_are_never_taken_for_patches(architecture):
    recipe = recipe_of("vfd", architecture, "--objective.global_weight=0", "--backbone.drop_path=0")
    method = build_method(recipe).train()
    side = recipe.views.global_size
    frames = torch.randn(1, 2, 3, side, side)
    seen = []
    method.distill = lambda kind, learnt, taught, *rest: seen.append((learnt, taught)) or learnt.sum()
    method({"global": {"pixels": frames}}, At(0.0, 1, 0))
    (learnt, taught), backbone = seen[0], method.teacher.backbone
    assert learnt.shape[2] == taught.shape[2] == 4 * 4
    tokens = backbone.forward_features(frames[:, 1])
    assert torch.allclose(taught[:, 0], tokens[:, backbone.num_prefix_tokens :], atol=1e-5)


def test_drop_paths_of_a_list_of_blocks_are_drawn_once_a_pass():
    backbone = ModelConfig("vit_small_patch16_dinov3", SMALL).build_backbone(drop_path_rate=0.5)
    source = DropPaths(nn.ModuleDict({"backbone": backbone}), rank=0)
    layers = [module for module in backbone.modules() if isinstance(module, GivenDropPath)]
    assert len(layers) == 4
    pixels, found = torch.randn(8, 3, 64, 64), []
    for key in (1, 1, 2):
        source.begin(key)
        with torch.no_grad():
            found.append(backbone.train().forward_features(pixels))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    ("architecture", "why"),
    [("vit_base_patch16_siglip_224", "has no class token"), ("beit_base_patch16_224", "takes one size of image alone")],
)
def test_what_the_methods_cannot_train_is_refused(architecture, why):
    with pytest.raises(InputError, match=f"{architecture} cannot be trained here: it {why}"):
        build_method(recipe_of("vfd", architecture))
