"""`embed_image` of openpi, pi0 and SmolVLA: in their own `embed_prefix`, and against plain formulas.

openpi's function is that of a clone named by VDE_OPENPI, LeRobot's are those of the LeRobot that is installed
(`lerobot.sh`); without either, what openpi 15a9616 was recorded to do with the tokens of an image.
"""

import importlib.util
import math
from types import SimpleNamespace

import pytest
import torch
from published import clone, function, readme
from torch import nn

from video_distilled_encoder import Encoder, InputError, ModelConfig
from video_distilled_encoder.stacks.embed_image import EmbedImage, install, nearest_grid

WIDTH, VOCABULARY = 24, 11


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    config = ModelConfig(
        "vit_tiny_patch16_224", {"depth": 2, "embed_dim": 48}, mean=(0.5, 0.4, 0.3), std=(0.5, 0.6, 0.7)
    )
    return Encoder(config.build_backbone(), config).eval()


class LanguageModel(nn.Module):
    """The part of a policy that has `embed_image`, as the stacks have it: a method of the class."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, WIDTH)

    def embed_image(self, image):
        raise AssertionError("the model's own encoder was called")

    def embed_language_tokens(self, tokens):
        return self.table(tokens)


def recorded_prefix(self, images, img_masks, lang_tokens, lang_masks):
    """What openpi's `embed_prefix` makes of tokens: one after another, each image's mask repeated, then the words."""
    seen = [self.paligemma_with_expert.embed_image(image) for image in images]
    masks = [mask[:, None].expand(tokens.shape[:2]) for tokens, mask in zip(seen, img_masks, strict=True)]
    words = self.paligemma_with_expert.embed_language_tokens(lang_tokens)
    words = words * math.sqrt(words.shape[-1])
    tokens, masks = torch.cat([*seen, words], 1), torch.cat([*masks, lang_masks], 1)
    return tokens, masks, torch.zeros(tokens.shape[:2], dtype=torch.bool)


def prefix_of(kind, model):
    """Return a stack's function and what it is called on."""
    plain = SimpleNamespace(paligemma_with_expert=model, _apply_checkpoint=lambda function, *given: function(*given))
    if kind == "recorded":
        return recorded_prefix, plain
    if kind == "openpi":
        path = clone("VDE_OPENPI") / "src" / "openpi" / "models_pytorch" / "pi0_pytorch.py"
        return function(path, "embed_prefix", torch=torch, math=math), plain
    if importlib.util.find_spec("lerobot") is None:
        pytest.skip("LeRobot is not installed")
    if kind == "pi0":
        from lerobot.policies.pi0.modeling_pi0 import PI0Pytorch

        return PI0Pytorch.embed_prefix, plain
    from lerobot.policies.smolvla.modeling_smolvla import VLAFlowMatching

    smolvla = {"add_image_special_tokens": False, "prefix_length": 0, "state_proj": nn.Linear(2, WIDTH)}
    return VLAFlowMatching.embed_prefix, SimpleNamespace(vlm_with_expert=model, **smolvla)


@pytest.mark.parametrize("kind", ["recorded", "openpi", "pi0", "smolvla"])
def test_the_stacks_own_prefix_is_made_of_its_tokens(encoder, kind):
    model = LanguageModel()
    prefix, of = prefix_of(kind, model)
    torch.manual_seed(1)
    embedder = EmbedImage(encoder, WIDTH, tokens=256)
    install(model, embedder)
    images = [torch.rand(2, 3, 224, 224) * 2 - 1 for _ in range(2)]
    masks = [torch.tensor([True, True]), torch.tensor([True, False])]
    words = torch.randint(0, VOCABULARY, (2, 5))
    state = {"state": torch.rand(2, 2)} if kind == "smolvla" else {}
    tokens, pad, attention = prefix(of, images, masks, words, torch.ones(2, 5, dtype=torch.bool), **state)
    scale = math.sqrt(WIDTH) if kind == "smolvla" else 1
    assert tokens.shape == (2, 2 * 256 + 5 + len(state), WIDTH)
    for number, image in enumerate(images):
        torch.testing.assert_close(tokens[:, number * 256 : (number + 1) * 256], embedder(image) * scale)
    assert pad[:, :512].sum(1).tolist() == [512, 256]
    assert attention.shape[-1] == tokens.shape[1]


def test_the_readmes_lines():
    model = LanguageModel()
    exec(readme("EmbedImage"), {"model": SimpleNamespace(paligemma_with_expert=model)})
    assert model.embed_image(torch.rand(2, 3, 224, 224) * 2 - 1).shape == (2, 256, 2048)


def test_without_resampling_it_is_the_patches_projected(encoder):
    embedder = EmbedImage(encoder, WIDTH)
    image = torch.rand(1, 3, 224, 224) * 2 - 1
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.5, 0.4, 0.3), (0.5, 0.6, 0.7)))
    patches = encoder((image / 2 + 0.5 - mean) / std).patches
    expected = patches @ embedder.projector.weight.T + embedder.projector.bias
    torch.testing.assert_close(embedder(image), expected, rtol=1e-4, atol=1e-5)


def test_resampling_keeps_places(encoder):
    """A ramp over the grid stays a ramp: the centres of 8 rows lie where the centres of 14 say."""
    embedder = EmbedImage(encoder, 1, tokens=64)
    ramp = torch.arange(14.0).add(0.5).div(14).view(1, 1, 14, 1).expand(1, 192, 14, 14)
    embedder.cameras.forward = lambda images: ramp[:, :48]
    nn.init.constant_(embedder.projector.weight, 1 / 48)
    nn.init.zeros_(embedder.projector.bias)
    rows = embedder(torch.zeros(1, 3, 224, 224)).reshape(8, 8)
    expected = torch.arange(8.0).add(0.5).div(8)
    torch.testing.assert_close(rows[1:-1, 0], expected[1:-1], rtol=0, atol=0.01)
    torch.testing.assert_close(rows[:, 0], rows[:, 7])


@pytest.mark.parametrize("frozen", [True, False])
def test_gradients_and_the_policys_own_precision(encoder, frozen):
    embedder = EmbedImage(Encoder(encoder.config.build_backbone(), encoder.config), WIDTH, 64, frozen=frozen).train()
    embedder(torch.rand(1, 3, 200, 300) * 2 - 1).sum().backward()
    assert embedder.projector.weight.grad is not None
    assert (embedder.cameras.encoder.backbone.cls_token.grad is None) == frozen
    half = embedder.to(torch.bfloat16)(torch.zeros(1, 3, 224, 224, dtype=torch.bfloat16))
    assert half.dtype is torch.bfloat16
    assert half.shape == (1, 64, WIDTH)


def test_saved_with_the_policy(encoder):
    model = LanguageModel()
    install(model, EmbedImage(encoder, WIDTH))
    assert {"image_embedder.projector.weight", "image_embedder.cameras.encoder.backbone.cls_token"} <= set(
        model.state_dict()
    )


@pytest.mark.parametrize(
    ("tokens", "aspect", "grid"), [(256, 1, (16, 16)), (64, 1, (8, 8)), (200, 1, (10, 20)), (128, 0.5, (8, 16))]
)
def test_the_grid_of_so_many_tokens(tokens, aspect, grid):
    assert sorted(nearest_grid(tokens, aspect)) == sorted(grid)


@pytest.mark.parametrize("tokens", [0, 7, -4, 62])
def test_tokens_that_form_no_grid_are_refused(encoder, tokens):
    with pytest.raises(InputError, match="cannot form a square"):
        EmbedImage(encoder, WIDTH, tokens)


def test_bad_uses_are_told(encoder):
    with pytest.raises(InputError, match="has no embed_image"):
        install(nn.Linear(1, 1), EmbedImage(encoder, WIDTH))
    with pytest.raises(InputError, match=r"lie in \[0, 1\]"):
        EmbedImage(encoder, WIDTH)(torch.full((1, 3, 224, 224), 255.0))
