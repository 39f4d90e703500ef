"""A single-image vision encoder whose weights learned time from unlabelled video.

>>> from video_distilled_encoder import Encoder
>>> encoder = Encoder.from_pretrained("nota/vfd-vits16")
>>> out = encoder.encode("photograph.jpg")  # out.cls (1, 384), out.patches (1, 196, 384), out.grid (1, 384, 14, 14)
"""

from video_distilled_encoder.encoder import Encoder, EncoderOutput
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.model_config import ModelConfig
from video_distilled_encoder.runtimes import Runtime, load_runtime
from video_distilled_encoder.stream import Stream

__all__ = ["Encoder", "EncoderOutput", "InputError", "ModelConfig", "Runtime", "Stream", "load_runtime"]
