"""The LeRobot policies, on the real LeRobot where it is installed (`lerobot.sh`), else on its recorded surface."""

import importlib
import importlib.util
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from video_distilled_encoder import Encoder, InputError, ModelConfig

HERE = Path(__file__).parent
REAL = importlib.util.find_spec("lerobot") is not None
CAMERAS = ["observation.images.front", "observation.images.wrist"]
SMALL = {
    "vde_act": {"dim_model": 16, "n_heads": 2, "dim_feedforward": 32, "n_encoder_layers": 1, "chunk_size": 8}
    | {"n_action_steps": 8, "n_vae_encoder_layers": 1},
    "vde_diffusion": {"down_dims": (16, 32), "horizon": 8, "n_action_steps": 4, "n_groups": 4}
    | {"num_inference_steps": 2},
}
BACKBONE = {"vde_act": "model.backbone", "vde_diffusion": "diffusion.rgb_encoder.backbone"}


@pytest.fixture(scope="module")
def stack():
    if not REAL:
        import lerobot_stand_in

        lerobot_stand_in.install()
    yield importlib.import_module("video_distilled_encoder.stacks.lerobot")
    if not REAL:
        for name in [*lerobot_stand_in.PLACES, "video_distilled_encoder.stacks.lerobot"]:
            sys.modules.pop(name)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """An encoder of two blocks with a mean that is not ImageNet's."""
    torch.manual_seed(0)
    arguments = {"depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": 64}
    config = ModelConfig("vit_tiny_patch16_224", arguments, mean=(0.5, 0.4, 0.3), std=(0.5, 0.6, 0.7))
    folder = tmp_path_factory.mktemp("models") / "encoder"
    Encoder(config.build_backbone(), config).save_pretrained(folder)
    return folder


def make(stack, kind, encoder, **settings):
    """Return a fresh policy of two cameras."""
    configs = importlib.import_module("lerobot.configs")
    features = {name: configs.PolicyFeature(configs.FeatureType.VISUAL, (3, 48, 80)) for name in CAMERAS}
    features["observation.state"] = configs.PolicyFeature(configs.FeatureType.STATE, (2,))
    actions = {"action": configs.PolicyFeature(configs.FeatureType.ACTION, (2,))}
    config = configs.PreTrainedConfig.get_choice_class(kind)(
        input_features=features, output_features=actions, encoder=str(encoder), device="cpu", **SMALL[kind], **settings
    )
    torch.manual_seed(1)
    return {"vde_act": stack.VdeActPolicy, "vde_diffusion": stack.VdeDiffusionPolicy}[kind](config)


def batch(kind, train):
    """Return what LeRobot hands a policy: one moment, or a batch of two with the steps that it asked for."""
    torch.manual_seed(2)
    steps = (2,) if kind == "vde_diffusion" and train else ()
    made = {name: torch.rand(2, *steps, 3, 48, 80) for name in CAMERAS}
    made["observation.state"] = torch.rand(2, *steps, 2)
    if train:
        made |= {"action": torch.rand(2, 8, 2), "action_is_pad": torch.zeros(2, 8, dtype=torch.bool)}
    return made


def act(policy, kind):
    torch.manual_seed(3)
    policy.reset()
    return policy.eval().select_action(batch(kind, False))


def test_the_stand_in_has_the_recorded_surface():
    if REAL:
        pytest.skip("the real LeRobot is here")
    import lerobot_stand_in as stand_in
    from record_lerobot import parameters

    recorded = stand_in.SURFACE["parameters"]
    for place, names in recorded.items():
        thing = stand_in
        for part in place.split("."):
            thing = getattr(thing, part)
        assert parameters(thing) == names, place


@pytest.mark.parametrize("kind", SMALL)
def test_lerobot_finds_the_policy_and_its_processors_by_their_names(stack, kind):
    choices = importlib.import_module("lerobot.configs").PreTrainedConfig
    config = choices.get_choice_class(kind)
    assert "configuration_" not in config.__module__  # which LeRobot would replace by "modeling_" and "processor_"
    module = sys.modules[config.__module__]
    policy = getattr(module, config.__name__.removesuffix("Config") + "Policy")
    assert policy.config_class is config
    assert policy.name == kind
    assert "dataset_stats" in inspect.signature(getattr(module, f"make_{kind}_pre_post_processors")).parameters


@pytest.mark.parametrize("kind", SMALL)
def test_all_cameras_are_encoded_in_one_pass_as_the_encoder_does(stack, encoder, kind):
    policy = make(stack, kind, encoder)
    cameras = policy.get_submodule(BACKBONE[kind])
    passes = []
    cameras.encoder.register_forward_hook(lambda module, given, out: passes.append((given[0], out.grid)))
    act(policy, kind)
    assert len(passes) == 1
    images, steps = batch(kind, False), policy.config.n_obs_steps
    alone = Encoder.from_pretrained(encoder)
    pixels, grid = (it.flatten(0, -4) for it in passes[0])
    assert len(pixels) == 2 * len(CAMERAS) * steps
    for name in CAMERAS:
        of_camera = torch.nn.functional.interpolate(images[name], (64, 64), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.5, 0.4, 0.3), (0.5, 0.6, 0.7)))
        expected = (of_camera - mean) / std
        for picture in expected:
            nearest = (pixels - picture).abs().amax((1, 2, 3))
            assert nearest.min() < 1e-5
            torch.testing.assert_close(grid[nearest.argmin()], alone(picture[None]).grid[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_encoder_stays_and_another_learns(stack, encoder, kind, frozen):
    policy = make(stack, kind, encoder, freeze_encoder=frozen, optimizer_lr_backbone=1e-3).train()
    cameras = policy.get_submodule(BACKBONE[kind])
    assert cameras.encoder.training != frozen
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    groups = policy.get_optim_params()
    assert groups[1]["lr"] == 1e-3
    assert len(groups[1]["params"]) == (0 if frozen else len(list(cameras.encoder.parameters())))
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    policy.forward(batch(kind, True))[0].backward()
    optimizer.step()
    moved = {name for name, tensor in policy.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any(".encoder.backbone.blocks.0." in name for name in moved) != frozen
    assert any(BACKBONE[kind] not in name for name in moved)


@pytest.mark.parametrize("kind", SMALL)
def test_a_saved_policy_acts_the_same_without_the_encoders_directory(stack, encoder, kind, tmp_path):
    folder = tmp_path / "encoder"
    Encoder.from_pretrained(encoder).save_pretrained(folder)
    policy = make(stack, kind, folder, image_size=(32, 64), crop_mode="center")
    actions = act(policy, kind)
    policy.save_pretrained(tmp_path / "policy")
    folder.rename(tmp_path / "elsewhere")
    again = type(policy).from_pretrained(tmp_path / "policy")
    assert torch.equal(act(again, kind), actions)
    assert again.get_submodule(BACKBONE[kind]).encoder.config.mean == (0.5, 0.4, 0.3)
    with pytest.raises(InputError, match="encoder"):
        type(policy)(again.config)  # a fresh policy takes fresh weights, never those of chance


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("vit_small_patch16_dinov3", {"img_size": 64}),
        ("vit_base_patch16_siglip_224", {"img_size": 64, "embed_dim": 48}),
    ],
)
def test_encoders_of_other_families_are_trained_and_saved(stack, architecture, arguments, tmp_path):
    torch.manual_seed(0)
    config = ModelConfig(architecture, {"depth": 1, "num_heads": 2} | arguments)
    Encoder(config.build_backbone(), config).save_pretrained(tmp_path / "encoder")
    policy = make(stack, "vde_act", tmp_path / "encoder", freeze_encoder=False).train()
    policy.forward(batch("vde_act", True))[0].backward()
    first = next(iter(policy.model.backbone.encoder.backbone.blocks[0].parameters()))
    assert first.grad.abs().sum() > 0
    actions = act(policy, "vde_act")
    policy.save_pretrained(tmp_path / "policy")
    assert torch.equal(act(type(policy).from_pretrained(tmp_path / "policy"), "vde_act"), actions)


@pytest.mark.parametrize("kind", SMALL)
def test_a_file_that_lacks_the_encoder_is_refused(stack, encoder, kind, tmp_path):
    from safetensors.torch import load_file, save_file

    policy = make(stack, kind, encoder)
    policy.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in state.items() if ".encoder.backbone." not in k}, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match=r"encoder\.backbone"):
        type(policy).from_pretrained(tmp_path)


def test_settings_that_would_not_hold_are_refused(stack, encoder, tmp_path):
    with pytest.raises(InputError, match="resnet50 would not be used"):
        make(stack, "vde_act", encoder, vision_backbone="resnet50")
    with pytest.raises(InputError, match="one encoder"):
        make(stack, "vde_diffusion", encoder, use_separate_rgb_encoder_per_camera=True)
    with pytest.raises(InputError, match="nearest: 32 and 48"):
        make(stack, "vde_act", encoder, image_size=(33, 64))
    policy = make(stack, "vde_act", encoder)
    policy.config.encoder_config = None
    policy.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="another policy"):
        type(policy).from_pretrained(tmp_path)


def test_the_plugin_has_the_name_that_lerobot_looks_for(tmp_path):
    root = HERE.parents[1] / "examples" / "robot" / "lerobot_policy_vde"
    build = "import setuptools.build_meta as b, sys; print(b.prepare_metadata_for_build_wheel(sys.argv[1]))"
    copy = tmp_path / "plugin"
    copy.mkdir()
    for file in root.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=copy, check=True, capture_output=True)
    metadata = next(tmp_path.glob("*.dist-info/METADATA")).read_text()
    name = next(line.removeprefix("Name: ") for line in metadata.splitlines() if line.startswith("Name: "))
    assert name.startswith("lerobot_policy_")
    assert (root / f"{name}.py").is_file()


def test_no_stack_is_imported_with_the_package():
    code = "import json, sys, video_distilled_encoder; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    stacks = {"lerobot", "transformers", "prismatic", "openpi", "gr00t", "rclpy"}
    assert not stacks & set(json.loads(done.stdout))
