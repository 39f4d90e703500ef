"""Model directories as users' tools leave them, and encoders that are not what they were."""

import json
import shutil

import pytest
import timm
import torch
from torch import nn

from video_distilled_encoder import Encoder, InputError, ModelConfig

SHALLOW = ModelConfig(model_args={"embed_dim": 64, "depth": 3, "num_heads": 2})


@pytest.fixture
def shallow():
    torch.manual_seed(0)
    return Encoder(SHALLOW.build_backbone(), SHALLOW).eval()


@pytest.fixture
def copy(shallow_directory, tmp_path):
    return shutil.copytree(shallow_directory, tmp_path / "copy")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("  ", " *"),
        lambda text: text.replace("  ", "  ./"),
        lambda text: "".join(line[:64].upper() + line[64:] for line in text.splitlines(keepends=True)),
        lambda text: text.replace("\n", "\r\n") + "\r\n",
        lambda text: "\ufeff" + text,
    ],
    ids=["-b", "./name", "upper case", "CRLF", "byte-order mark"],
)
def test_checksums_are_read_as_tools_write_them(copy, change):
    sums = copy / "SHA256SUMS"
    sums.write_bytes(change(sums.read_text()).encode())
    Encoder.from_pretrained(copy)
    (copy / "model.safetensors").write_bytes(b"another")
    with pytest.raises(InputError, match=r"model\.safetensors does not match its checksum"):
        Encoder.from_pretrained(copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ä".encode("latin-1"), "SHA256SUMS is not text in UTF-8"),
        ("00  model.safetensors".encode("utf-16"), "SHA256SUMS is not text in UTF-8"),
        (b"00  model.safetensors\n", "SHA256SUMS has a line that is no SHA-256 and a file's name: '00  model"),
        (b"", "SHA256SUMS does not list config.json"),
    ],
)
def test_checksums_that_are_none_are_one_sentence(copy, content, message):
    (copy / "SHA256SUMS").write_bytes(content)
    with pytest.raises(InputError, match=message):
        Encoder.from_pretrained(copy)


def test_a_card_of_another_encoding_leaves_the_encoder(copy):
    (copy / "README.md").write_bytes("# Für Köln\n".encode("latin-1"))
    with pytest.warns(UserWarning, match=r"README\.md is not text in UTF-8"):
        assert Encoder.from_pretrained(copy).card == "# Für Köln\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 5}, "AssertionError"),
        ({"num_heads": 0}, "ZeroDivisionError"),
        ({"mlp_layer": "none"}, "TypeError"),
        ({"weight_init": "none"}, "AssertionError"),
        ({"act_layer": "none"}, "KeyError"),
    ],
)
def test_what_timm_does_not_build_is_one_sentence(copy, arguments, message):
    config = json.loads((copy / "config.json").read_text())
    config["model_args"] |= arguments
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "SHA256SUMS").unlink()
    with (
        pytest.warns(UserWarning, match="unchecked"),
        pytest.raises(InputError, match=rf"config\.json is not a model's .*timm cannot build .*\({message}") as error,
    ):
        Encoder.from_pretrained(copy)
    assert "\n" not in str(error.value)


def test_an_interrupted_download_says_so(copy, tmp_path):
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    shutil.copy(copy / "config.json", snapshot)
    with pytest.raises(InputError, match=r"has no model\.safetensors; it was downloaded in part, or is no model of"):
        Encoder.from_pretrained(snapshot)
    (tmp_path / "models--owner--name" / "blobs").mkdir()
    (tmp_path / "models--owner--name" / "blobs" / "0a1b.incomplete").touch()
    with pytest.raises(InputError, match=r"has no model\.safetensors; its download was interrupted: fetch it again"):
        Encoder.from_pretrained(snapshot)
    (copy / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no model\.safetensors; a model directory holds"):
        Encoder.from_pretrained(copy)
    beginning = copy / ".cache" / "huggingface" / "download" / "model.safetensors.0a1b.incomplete"
    beginning.parent.mkdir(parents=True)
    beginning.touch()
    with pytest.raises(InputError, match="its download was interrupted"):
        Encoder.from_pretrained(copy)


@pytest.mark.parametrize("whole", [True, False], ids=["the backbone", "a block"])
def test_a_compiled_encoder_is_saved_as_what_it_was(shallow, tmp_path, whole):
    shallow.save_pretrained(tmp_path / "plain")
    if whole:
        shallow.backbone = torch.compile(shallow.backbone)
    else:
        shallow.backbone.blocks[1] = torch.compile(shallow.backbone.blocks[1])
    shallow.save_pretrained(tmp_path / "compiled")
    for path in (tmp_path / "plain").iterdir():
        assert path.read_bytes() == (tmp_path / "compiled" / path.name).read_bytes(), path.name


def refused(encoder, tmp_path):
    with pytest.raises(InputError) as error:
        encoder.save_pretrained(tmp_path / "out")
    assert not list(tmp_path.iterdir())
    return str(error.value)


def test_a_backbone_of_another_architecture_is_not_saved_under_this_one(tmp_path):
    tiny = Encoder(ModelConfig("vit_tiny_patch16_224").build_backbone(), ModelConfig())
    message = refused(tiny, tmp_path)
    assert "the backbone is not the vit_small_patch16_224 of its configuration: cls_token is (1, 1, 192)" in message
    assert "give Encoder(backbone, config) the ModelConfig that it was built with" in message
    arguments = {"dynamic_img_size": True, "num_classes": 0}
    for change, what in (
        ({"num_heads": 12}, "the number of heads is [12, "),
        ({"norm_layer": nn.LayerNorm}, "eps of the norms is [1e-05, "),
        ({"act_layer": nn.ReLU}, "the activation is ['ReLU', "),
        ({"depth": 11}, "blocks.11."),
    ):
        other = timm.create_model("vit_small_patch16_224", **arguments, **change)
        assert what in refused(Encoder(other), tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of torch.ao
def test_wrapped_encoders_say_what_to_do(shallow, tmp_path):
    class Sharded(torch.Tensor):
        def full_tensor(self):
            return self

    class Lora(nn.Linear):
        def __init__(self, layer):
            super().__init__(1, 1)
            self.base_layer, self.lora_A = layer, nn.Linear(64, 4)

    quantised = torch.ao.quantization.quantize_dynamic(shallow, {nn.Linear})
    assert "the encoder is quantised by torch" in refused(quantised, tmp_path)
    weight = shallow.backbone.norm.weight
    shallow.backbone.norm.weight = nn.Parameter(weight.detach().as_subclass(Sharded))
    assert "the encoder is sharded (FSDP2); gather its weights" in refused(shallow, tmp_path)
    shallow.backbone.norm.weight = weight
    shallow.backbone.blocks[0].attn.proj = Lora(shallow.backbone.blocks[0].attn.proj)
    assert "has LoRA layers; merge them" in refused(shallow, tmp_path)
    with pytest.raises(InputError, match="Sequential is not one of timm's vision transformers"):
        Encoder(nn.Sequential(SHALLOW.build_backbone()), SHALLOW)
    other = Encoder(ModelConfig("vit_small_patch16_dinov3", {"depth": 1}).build_backbone(), SHALLOW)
    assert "the backbone is timm's Eva, not the VisionTransformer of its configuration" in refused(other, tmp_path)
