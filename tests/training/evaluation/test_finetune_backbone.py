import pytest
import timm
import torch
from timm.layers import DropPath

from training.evaluation.finetune import backbone
from training.evaluation.finetune.presets import preset_names, read_settings
from training.evaluation.finetune.training import Stream
from training.evaluation.finetune.training import train as train_steps
from training.evaluation.protocols.detection import DetectionSettings
from training.evaluation.protocols.upernet import UpernetSettings
from training.models.loading import EncoderModel, Pixels, in_timm
from video_distilled_encoder.errors import InputError


def vit(patch=16, depth=12, **options):
    torch.manual_seed(0)
    sizes = {"embed_dim": 48, "num_heads": 3, "depth": depth, "num_classes": 0, "img_size": patch * 4}
    return timm.models.VisionTransformer(patch_size=patch, dynamic_img_size=True, **sizes, **options)


@pytest.mark.parametrize("patch", [16, 14, 8])
def test_the_pyramid_has_strides_4_to_32_whatever_the_patch(patch):
    pyramid = backbone.VitPyramid(vit(patch))
    shapes = [tuple(level.shape) for level in pyramid(torch.randn(2, 3, 64, 96))]
    assert shapes == [(2, 48, 16, 24), (2, 48, 8, 12), (2, 48, 4, 6), (2, 48, 2, 3)]
    padded = [tuple(level.shape[2:]) for level in pyramid(torch.randn(2, 3, 50, 70))]
    assert padded == [shape[2:] for shape in shapes]


def test_levels_are_the_normed_tokens_of_blocks_3_5_7_11():
    network = vit().eval()
    with torch.no_grad():
        for parameter in network.norm.parameters():
            parameter.add_(torch.rand_like(parameter))
    pyramid = backbone.VitPyramid(network).eval()
    pixels = torch.randn(1, 3, 64, 64)
    wanted = network.forward_intermediates(pixels, indices=[3, 5, 7, 11], norm=True, intermediates_only=True)
    levels = pyramid(pixels)
    assert torch.allclose(levels[2], wanted[2])
    assert torch.allclose(levels[3], torch.nn.functional.max_pool2d(wanted[3], 2))
    assert torch.allclose(levels[1], pyramid.levels[1](wanted[1]))
    raw = backbone.VitPyramid(network, normed=False).eval()(pixels)[2]
    assert torch.allclose(network.norm(raw.movedim(1, -1)).movedim(-1, 1), levels[2], atol=1e-5)


def test_blocks_in_proportion_to_the_depth():
    assert backbone.pyramid_blocks(12) == [3, 5, 7, 11]
    assert backbone.pyramid_blocks(24) == [7, 11, 15, 23]
    with pytest.raises(InputError, match="four blocks"):
        backbone.pyramid_blocks(3)


def test_other_patches_and_fixed_sizes_are_refused():
    with pytest.raises(InputError, match="16, 14 or 8"):
        backbone.VitPyramid(vit(32))
    with pytest.raises(InputError, match="any image size"):
        backbone.VitPyramid(timm.models.VisionTransformer(embed_dim=48, num_heads=3, num_classes=0))


def test_layer_decay_is_beits():
    network = vit(reg_tokens=1)
    pyramid = backbone.VitPyramid(network)
    groups = backbone.parameter_groups(pyramid, network, learning_rate=1.0, weight_decay=0.05, layer_decay=0.9)
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in groups) == len(list(pyramid.parameters()))
    for name, parameter in pyramid.named_parameters():
        # BEiT: get_num_layer_for_vit, and layer_decay_rate ** (num_layers - layer_id - 1), num_layers = depth + 2
        if name.startswith("backbone.blocks."):
            layer = int(name.split(".")[2]) + 1
        elif name.startswith(("backbone.patch_embed", "backbone.cls", "backbone.pos", "backbone.reg")):
            layer = 0
        else:
            layer = 13
        assert rates[id(parameter)][0] == pytest.approx(0.9 ** (14 - layer - 1)), name
        undecayed = parameter.ndim == 1 or name.split(".")[-1] in ("bias", "pos_embed", "cls_token", "reg_token")
        assert rates[id(parameter)][1] == (0.0 if undecayed else 0.05), name
    assert rates[id(network.pos_embed)] == (pytest.approx(0.9**13), 0.0)
    assert rates[id(network.blocks[11].attn.qkv.weight)] == (pytest.approx(0.9), 0.05)


def test_drop_path_rises_to_the_last_block():
    network = vit()
    backbone.VitPyramid(network, drop_path=0.11)
    assert not isinstance(network.blocks[0].drop_path1, DropPath)
    rates = [network.blocks[number].drop_path2.drop_prob for number in (1, 11)]
    assert rates == pytest.approx([0.01, 0.11])


def test_the_models_own_weights_stay_as_they_are(tiny):
    model = EncoderModel(tiny, {"name": "tiny"})
    copy = backbone.trainable_backbone(model)
    assert copy is not tiny.backbone
    assert all(parameter.requires_grad for parameter in copy.parameters())
    assert backbone.trainable_backbone(in_timm(vit(), {"name": "vit"})).embed_dim == 48


def test_what_cannot_be_fine_tuned_is_refused():
    resnet = in_timm(timm.create_model("resnet10t", num_classes=0), {"name": "timm:resnet10t"})
    for model in (Pixels(), resnet):
        with pytest.raises(InputError, match=r"^(pixels|timm:resnet10t) cannot be fine-tuned; choose"):
            backbone.trainable_backbone(model)


def test_every_preset_can_be_read():
    assert preset_names("upernet") == ["upernet-ade20k-160k", "upernet-small"]
    assert len(preset_names("detection")) == 3
    assert read_settings(UpernetSettings, "upernet", "upernet-ade20k-160k") == UpernetSettings()
    for name in preset_names("upernet"):
        read_settings(UpernetSettings, "upernet", name)
    for name in preset_names("detection"):
        read_settings(DetectionSettings, "detection", name)
    assert read_settings(DetectionSettings, "detection", "mask-rcnn-coco-12ep") == DetectionSettings()


def test_settings_are_changed_and_checked():
    def read(*changes, preset="upernet-small"):
        return read_settings(UpernetSettings, "upernet", preset, changes)

    assert read("learning_rate=1e-4", "scale=[1, 1]", "normed=false").scale == (1.0, 1.0)
    assert read("learning_rate=1e-4").learning_rate == 1e-4
    changes = {
        "crop=big": "crop must be int, got 'big'",
        "crops=3": "no setting crops; there are iterations",
        "crop": "--set crop is not KEY=VALUE",
        "scale=[1]": "scale must be",
        "stride=600": "leaves gaps",
        "accumulate=4": "at least 2 images",
    }
    for change, message in changes.items():
        with pytest.raises(InputError) as error:
            read(change)
        assert message in str(error.value)
    with pytest.raises(InputError, match=r"no preset .upernet-big.; .* one of: upernet-ade20k-160k, upernet-small$"):
        read(preset="upernet-big")


def test_the_stream_is_shuffled_passes_and_a_function_of_the_seed():
    def stream(seed):
        return Stream(7, 21, lambda number: (number, torch.rand(()).item()), seed)

    state = torch.get_rng_state()
    samples = [stream(0)[position] for position in range(21)]
    assert torch.equal(torch.get_rng_state(), state)
    for start in (0, 7, 14):
        assert sorted(number for number, _ in samples[start : start + 7]) == list(range(7))
    assert len({value for _, value in samples}) == 21
    assert stream(0)[9] == samples[9]
    assert stream(1)[9] != samples[9]


def test_accumulation_gives_the_whole_batchs_gradient():
    def trained(accumulate):
        weight = torch.nn.Parameter(torch.tensor(1.0))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        stream = Stream(8, 16, float, 0)

        def losses(samples):
            return {"loss": (weight * torch.tensor(samples) - 1).square().mean() * 0.01}

        history = train_steps(losses, stream, optimizer, lambda step: 1, batch_size=8, accumulate=accumulate)
        return weight.item(), history

    assert trained(1)[0] == pytest.approx(trained(4)[0], rel=1e-6)
    assert trained(1)[1] == pytest.approx(trained(2)[1], rel=1e-6)


def test_a_loss_that_is_not_finite_is_one_sentence():
    weight = torch.nn.Parameter(torch.tensor(float("nan")))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with pytest.raises(InputError, match="the loss is nan at step 0; lower learning_rate"):
        train_steps(lambda batch: {"loss": weight * 1}, Stream(2, 2, float, 0), optimizer, lambda step: 1, batch_size=2)
