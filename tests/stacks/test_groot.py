"""GR00T's features: in its own action head where LeRobot is installed (`lerobot.sh`), and against the encoder alone."""

import importlib.util

import pytest
import torch
from published import readme

from video_distilled_encoder import Encoder, ModelConfig
from video_distilled_encoder.stacks.groot import GrootFeatures

WIDTH = 32


@pytest.fixture(scope="module")
def features():
    torch.manual_seed(0)
    config = ModelConfig("vit_tiny_patch16_224", {"depth": 2, "embed_dim": 48, "img_size": 64})
    return GrootFeatures(Encoder(config.build_backbone(), config), WIDTH)


def test_patches_of_all_cameras_in_order_then_text(features):
    images = torch.randint(0, 256, (2, 3, 3, 64, 64), dtype=torch.uint8)
    text, mask = torch.rand(2, 4, WIDTH), torch.tensor([[True] * 4, [True, True, False, False]])
    out = features(images, text, mask)
    encoder = features.cameras.encoder
    for number in range(3):
        expected = features.projector(encoder.encode(images[:, number], crop_mode="squash").patches)
        torch.testing.assert_close(out.backbone_features[:, 16 * number : 16 * (number + 1)], expected)
    assert torch.equal(out["backbone_features"][:, 48:], text)
    assert torch.equal(out.backbone_attention_mask[:, 48:], mask)
    assert out.backbone_attention_mask[:, :48].all()
    assert out.image_mask.sum(1).tolist() == [48, 48]
    with pytest.raises(AttributeError, match="logits"):
        _ = out.logits


def test_the_readmes_lines():
    names = {"images": torch.randint(0, 256, (1, 2, 3, 240, 320), dtype=torch.uint8)}
    exec(readme("GrootFeatures"), names)
    assert names["backbone_output"].backbone_features.shape == (1, 2 * 196 + 1, 2048)


def test_without_text_one_token_is_learnt(features):
    out = features(torch.rand(1, 2, 3, 48, 80))
    assert out.backbone_features.shape == (1, 33, WIDTH)
    assert out.image_mask[0].tolist() == [True] * 32 + [False]
    out.backbone_features.sum().backward()
    assert features.no_text.grad is not None
    assert features.cameras.encoder.backbone.cls_token.grad is None


@pytest.mark.parametrize("alternate", [True, False])
def test_the_real_action_head_acts_on_them(features, alternate):
    if importlib.util.find_spec("lerobot") is None:
        pytest.skip("LeRobot is not installed")
    from lerobot.policies.groot.groot_n1_7 import GR00TN17ActionHead, GR00TN17Config

    layers = {"num_layers": 4, "num_attention_heads": 2, "attention_head_dim": 16, "dropout": 0.0}
    layers |= {"norm_type": "ada_norm", "output_dim": 16, "interleave_self_attention": True, "final_dropout": False}
    own = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16, "final_dropout": False}
    config = GR00TN17Config(
        backbone_embedding_dim=WIDTH,
        hidden_size=16,
        input_embedding_dim=32,
        max_state_dim=4,
        max_action_dim=3,
        action_horizon=5,
        use_alternate_vl_dit=alternate,
        diffusion_model_cfg={**layers, "positional_embeddings": None},
        vl_self_attention_cfg={**own, "positional_embeddings": None},
        max_num_embodiments=2,
    )
    torch.manual_seed(0)
    head = GR00TN17ActionHead(config).eval()
    images = torch.rand(2, 2, 3, 64, 64)
    given = head.prepare_input({"state": torch.rand(2, 1, 4), "embodiment_id": torch.tensor([0, 1])})
    torch.manual_seed(1)
    actions = head.get_action(features(images), given).action_pred
    assert actions.shape == (2, 5, 3)
    assert actions.isfinite().all()
    torch.manual_seed(1)
    other = head.get_action(features(images.flip(-1)), given).action_pred
    assert not torch.allclose(actions, other)
    train = {"action": torch.rand(2, 5, 3), "action_mask": torch.ones(2, 5, 3)}
    loss = head.train()(features(images), head.prepare_input({**given, **train})).loss
    loss.backward()
    assert features.projector.weight.grad.abs().sum() > 0
