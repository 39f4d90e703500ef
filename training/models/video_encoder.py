"""FRAME's second stage as a model: an encoder of single images, kept as it is, with a memory of the frames before.

It has a state, so it is no encoder of this package and no export knows it. `runs/x/video_encoder/` of a run of `frame2`
holds it, and `training.evaluate --model` takes it where frames come in order (`davis`, `jhmdb`, `vip`):

    frame2:runs/x          the enriched tokens of each frame
    frame2:runs/x@ahead    its patches as they were anticipated some frames before (FRAME: 2), without having seen it
    frame2:runs/x@held     its patches as they were decoded that many frames before: what anticipation has to beat

The last two begin, while nothing has been seen early enough, with the frame's own decoded patches. Elsewhere every
image is a video of one frame.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from training.common.json_files import read_facts
from training.models.model import Model
from training.nn.memory import Memory, MemoryAttention
from training.nn.spatial_decoder import SpatialDecoder
from video_distilled_encoder import ModelConfig, model_directory
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.files import atomic_directory, read_tensors, sha256, write_json
from video_distilled_encoder.tokens import TokenLayout

FOLDER = "video_encoder"
_WEIGHTS, _FACTS = "video_encoder.safetensors", "video_encoder.json"
Told = Literal["now", "ahead", "held"]


@dataclass(frozen=True)
class VideoEncoderConfig:
    """Sizes of a `VideoEncoder`."""

    grid: tuple[int, int]
    """Rows and columns of patches in training."""
    frames: int
    """Most frames in memory."""
    memory_width: int
    """Channels of the memory."""
    spatial_width: int
    """Channels of the patches that are decoded."""
    semantic_width: int | None
    """Of the class token that is decoded; None if none is."""
    ahead: int
    """Frames from a frame to the one whose patches are anticipated."""


class VideoEncoder(nn.Module):
    """A frozen backbone, the attention to the memory, and decoders of the frame and of frames to come.

    Args:
        backbone: of timm.
        heads: of every attention that is added.
        config: sizes.
    """

    def __init__(self, backbone: VisionTransformer, config: VideoEncoderConfig) -> None:
        super().__init__()
        self.backbone, self.config = backbone.requires_grad_(False), config
        self.tokens = TokenLayout.of(backbone)
        width, heads = backbone.embed_dim, heads_of(backbone)
        self.memory = MemoryAttention(width, heads, config.grid, config.frames, config.memory_width)
        self.spatial, self.spatial_ahead = (SpatialDecoder(width, heads, config.spatial_width) for _ in range(2))
        self.semantic = nn.Linear(width, config.semantic_width) if config.semantic_width else None
        self.semantic_ahead = nn.Linear(width, config.semantic_width) if config.semantic_width else None

    def train(self, mode: bool = True) -> VideoEncoder:
        """Set the mode of what is trained; the backbone stays in eval mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, clips: Tensor) -> Tensor:
        """(B, T + 1, 3, H, W) frames, the newest last -> its (B, P + N, C) enriched tokens."""
        tokens = self.encode(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])
        memory = self.memory.remember(self.patches(tokens[:, :-1]))
        return self.memory(tokens[:, -1], memory, self.grid(clips))

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, P + N, C) tokens of single images."""
        return self.backbone.forward_features(pixels)

    def step(self, tokens: Tensor, memory: Memory, grid: tuple[int, int]) -> Tensor:
        """(B, P + N, C) tokens of the next frame of videos -> enriched ones; the memory takes them in."""
        enriched: Tensor = self.memory(tokens, memory.stacked(), grid)
        memory.push(self.memory.remember(self.patches(tokens)))
        return enriched

    def patches(self, tokens: Tensor) -> Tensor:
        """(…, P + N, C) -> (…, N, C)."""
        return self.tokens.patches(tokens)

    def grid(self, pixels: Tensor) -> tuple[int, int]:
        """Return rows and columns of patches of (…, H, W) pixels."""
        return self.tokens.grid((pixels.shape[-2], pixels.shape[-1]))


def heads_of(backbone: nn.Module) -> int:
    """Return how many heads a backbone's attention has: a decoder's has as many (FRAME does not say)."""
    network: Any = backbone
    heads: int = network.blocks[-1].attn.num_heads
    return heads


def save(folder: Path, network: VideoEncoder, encoder: ModelConfig) -> None:
    """Write a video encoder.

    Args:
        folder: made if missing, else replaced.
        network: what is written.
        encoder: facts of its backbone.
    """
    with atomic_directory(folder) as staging:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
        save_file(state, staging / _WEIGHTS)
        facts = {"sha256": sha256(staging / _WEIGHTS), **asdict(network.config)}
        write_json(staging / _FACTS, {"encoder": {**asdict(encoder), "model_args": dict(encoder.model_args)}, **facts})


def load(folder: Path) -> tuple[VideoEncoder, ModelConfig, str]:
    """Read a video encoder: it, the facts of its backbone, and the SHA-256 of its weights.

    Raises:
        InputError: it is missing or damaged.
    """
    facts = read_facts(folder / _FACTS, "a run of frame2 leaves it, beside the weights")
    try:
        found: Mapping[str, Any] = facts["encoder"]
        encoder = replace(ModelConfig(), **{**found, "mean": tuple(found["mean"]), "std": tuple(found["std"])})
        names = VideoEncoderConfig.__dataclass_fields__
        config = VideoEncoderConfig(**{name: facts[name] for name in names} | {"grid": tuple(facts["grid"])})
        digest = str(facts["sha256"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / _FACTS} is damaged: {error}; train anew, or take another run") from error
    path = folder / _WEIGHTS
    if not path.is_file() or sha256(path) != digest:
        raise InputError(f"{path} is missing, or not the file that {_FACTS} was written with; take another run")
    network = VideoEncoder(encoder.build_backbone(), config)
    model_directory.load_strictly(network, read_tensors(path), str(path))
    return network, encoder, digest


class VideoEncoderModel(Model):
    """A video encoder as what is evaluated.

    Args:
        name: a run of frame2, or its `video_encoder/`, perhaps with "@ahead" or "@held" behind it.
        device: where it computes.
    """

    def __init__(self, name: str, device: str) -> None:
        path, at, told = name.rpartition("@")
        if not at or "/" in told:
            path, at, told = name, "", ""
        elif told not in get_args(Told):
            raise InputError(f"of frame2 there are @now, @ahead and @held, got @{told}")
        folder = Path(path) if (Path(path) / _FACTS).is_file() else Path(path) / FOLDER
        network, config, digest = load(folder)
        run = folder.parent.name if folder.name == FOLDER else folder.name
        description: dict[str, object] = {"name": f"frame2:{run}{at}{told}", "weights_sha256": digest}
        super().__init__(description, network.tokens.patch_size, config, device)
        self.network = network.to(device).eval()
        self.told: Told = told or "now"  # type: ignore[assignment]
        self._memory: Memory | None = None
        self._earlier: deque[Tensor] = deque()

    def begin(self, in_order: bool) -> None:
        """Forget what has been seen; images are frames of a video from now on, or each for itself."""
        self._memory = Memory(self.network.config.frames) if in_order else None
        self._earlier = deque(maxlen=self.network.config.ahead)

    def _features(self, pixels: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        if layers > 1:
            raise InputError("a video encoder gives one layer's features; use one layer")
        grid = self.network.grid(pixels)
        cls, patches = zip(*(self._next(tokens[None], grid) for tokens in self.network.encode(pixels)), strict=True)
        return torch.cat(cls), torch.cat(patches).mT.unflatten(2, grid)

    def _next(self, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(1, P + N, C) of the next frame -> its class token and patches."""
        network, alone = self.network, self._memory is None
        enriched = network.step(tokens, Memory(network.config.frames) if self._memory is None else self._memory, grid)
        patches = network.patches(enriched)
        if self.told == "now":
            return network.tokens.cls(enriched), patches
        told = now = network.spatial(patches)
        if not alone:
            if len(self._earlier) == self._earlier.maxlen:
                told = self._earlier[0]
            self._earlier.append(network.spatial_ahead(patches) if self.told == "ahead" else now)
        return network.tokens.cls(enriched), told
