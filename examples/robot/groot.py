"""GR00T: the features of two cameras as its action head takes them, in place of its language model's."""

import torch

from video_distilled_encoder import Encoder
from video_distilled_encoder.stacks.groot import GrootFeatures

features = GrootFeatures(Encoder.from_pretrained("nota/vfd-vits16-warm"), width=2048)  # to be trained with the head
images = torch.randint(0, 256, (1, 2, 3, 480, 640), dtype=torch.uint8)
backbone_output = features(images)  # action_head(backbone_output, action_input)
print({name: tuple(tensor.shape) for name, tensor in backbone_output.items()})
