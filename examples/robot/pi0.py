"""pi0 with an encoder as its eyes; SmolVLA's `vlm_with_expert` takes the same, with width 960 and 64 tokens."""

from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.policies.pi0.modeling_pi0 import PI0Pytorch

from video_distilled_encoder import Encoder
from video_distilled_encoder.stacks.embed_image import EmbedImage, install

model = PI0Pytorch(PI0Config())  # openpi's own: openpi.models_pytorch.pi0_pytorch.PI0Pytorch
encoder = Encoder.from_pretrained("nota/vfd-vits16-warm")
install(model.paligemma_with_expert, EmbedImage(encoder, width=2048, tokens=256))
