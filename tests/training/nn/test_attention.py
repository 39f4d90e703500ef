import timm
import torch
from timm.layers.attention import Attention
from torch.utils.flop_counter import FlopCounterMode

from training.nn.attention import write_out


def gradients(network, pixels):
    network.zero_grad()
    network.forward_features(pixels).square().mean().backward()
    return {
        name: parameter.grad.clone() for name, parameter in network.named_parameters() if parameter.grad is not None
    }


def test_attention_written_out_has_the_same_gradients_and_no_fused_operation():
    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True, depth=2)
    pixels = torch.randn(2, 3, 64, 48)
    fused = gradients(network, pixels)
    write_out(network)
    assert not any(part.fused_attn for part in network.modules() if isinstance(part, Attention))
    with FlopCounterMode(display=False) as counter:
        written = gradients(network, pixels)
    assert not [name for name in counter.get_flop_counts()["Global"] if "attention" in str(name)]
    assert fused.keys() == written.keys()
    for name, gradient in fused.items():
        assert torch.allclose(gradient, written[name], rtol=1e-3, atol=1e-6), name
