import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from training.nn.attention import write_out


def gradients(network, pixels):
    network.zero_grad()
    network.forward_features(pixels).square().mean().backward()
    return {
        name: parameter.grad.clone() for name, parameter in network.named_parameters() if parameter.grad is not None
    }


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3", "vit_pe_core_small_patch16_384"])
def test_attention_written_out_has_the_same_gradients_and_no_fused_operation(name):
    torch.manual_seed(0)
    options = {"depth": 2, "embed_dim": 64, "num_heads": 2}
    network = timm.create_model(name, num_classes=0, dynamic_img_size=True, **options)
    pixels = torch.randn(2, 3, 64, 48)
    fused = gradients(network, pixels)
    write_out(network)
    assert not any(block.attn.fused_attn for block in network.blocks)
    with FlopCounterMode(display=False) as counter:
        written = gradients(network, pixels)
    assert not [name for name in counter.get_flop_counts()["Global"] if "attention" in str(name)]
    assert fused.keys() == written.keys()
    for name, gradient in fused.items():
        assert torch.allclose(gradient, written[name], rtol=1e-3, atol=1e-6), name
