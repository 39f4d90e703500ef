"""OpenVLA, Prismatic: a vision backbone for `scripts/pretrain.py`, in a clone of openvla/openvla, with timm 1."""

from prismatic.models.materialize import get_vision_backbone_and_transform

from video_distilled_encoder.stacks import prismatic

prismatic.register("vfd-vit-s", "nota/vfd-vits16-warm")
backbone, transform = get_vision_backbone_and_transform("vfd-vit-s", "resize-naive")
print(backbone.embed_dim, backbone.num_patches, transform)
