"""What works with which family of encoders: `python tests/benchmarks/families.py [FAMILY…] [--columns save onnx …]`.

Each architecture has its true shapes but for its depth, which is two blocks, and random weights. A cell is the largest
difference from timm's own features, or "refused"; the sentences of refusals follow. Printed as Markdown.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import timm
import torch
from torch import Tensor

from export.pipeline import export
from training.engine.assembly import build_method
from training.engine.initial_weights import start_from
from training.methods.method import At
from training.recipes.recipe import read_recipe
from video_distilled_encoder import Encoder, InputError, ModelConfig, load_runtime
from video_distilled_encoder.image_files import bundled_photographs, open_image
from video_distilled_encoder.runtimes.artefact import SUFFIXES, Camera

FAMILIES = {
    "ViT": "vit_small_patch16_224",
    "DINOv2": "vit_small_patch14_dinov2",
    "DINOv2 with registers": "vit_small_patch14_reg4_dinov2",
    "DINOv3": "vit_small_patch16_dinov3",
    "DINOv3 S+": "vit_small_plus_patch16_dinov3",
    "SigLIP": "vit_base_patch16_siglip_224",
    "CLIP": "vit_base_patch16_clip_224",
    "PE-Core": "vit_pe_core_small_patch16_384",
    "PE-Spatial": "vit_pe_spatial_small_patch16_512",
    "EVA-02": "eva02_small_patch14_224",
    "AIMv2": "aimv2_large_patch14_224",
    "DeiT, distilled": "deit_small_distilled_patch16_224",
    "BEiT": "beit_base_patch16_224",
}


class Subject:
    """An encoder of a family with random weights, its own photograph and timm's features of it."""

    def __init__(self, architecture: str, folder: Path) -> None:
        torch.manual_seed(0)
        probe = ModelConfig(architecture, {"depth": 2}).build_backbone()
        patch = probe.patch_embed.patch_size[0]
        size = probe.patch_embed.img_size[0] if not hasattr(probe, "dynamic_img_size") else 8 * patch
        self.config = ModelConfig(architecture, {"depth": 2, "img_size": size})
        self.encoder = Encoder(self.config.build_backbone().eval(), self.config)
        for parameter in self.encoder.parameters():  # positions, tokens and layer scales begin at zero, or nearly
            torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.05 if parameter.ndim == 1 else 0.03)
        self.size, self.folder = size, folder
        self.image = open_image(bundled_photographs()[0])
        self.directory = folder / "encoder"

    def features(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return timm's features of (B, 3, H, W)."""
        backbone = self.encoder.backbone
        with torch.no_grad():
            tokens = backbone.forward_features(pixels)
            prefix = backbone.num_prefix_tokens
            cls = tokens[:, 0] if backbone.cls_token is not None else backbone.forward_head(tokens, pre_logits=True)
        return {"cls": cls, "patches": tokens[:, prefix:]}


def difference(found: object, expected: dict[str, Tensor]) -> float:
    """Return the largest difference of cls and patches."""
    return max(float((getattr(found, name) - expected[name]).abs().max()) for name in expected)


def encode(subject: Subject) -> float:
    """Features at the model's own size and at another, those of timm."""
    pixels = [torch.randn(1, 3, subject.size, subject.size)]
    if subject.encoder.tokens.only_size is None:
        pixels.append(torch.randn(1, 3, subject.size + subject.encoder.patch_size, subject.size))
    with torch.no_grad():
        return max(difference(subject.encoder(one), subject.features(one)) for one in pixels)


def save(subject: Subject) -> float:
    """The saved directory in timm, in transformers and here."""
    import transformers

    subject.encoder.save_pretrained(subject.directory)
    pixels = torch.randn(1, 3, subject.size, subject.size)
    expected = subject.features(pixels)
    in_timm = timm.create_model(f"local-dir:{subject.directory}", pretrained=True).eval()
    in_transformers = transformers.AutoModel.from_pretrained(subject.directory).eval()
    with torch.no_grad():
        prefix = subject.encoder.tokens.prefix
        tokens = [in_timm.forward_features(pixels), in_transformers(pixels).last_hidden_state]
        own = Encoder.from_pretrained(subject.directory)(pixels)
    return max(
        difference(own, expected), *(float((one[:, prefix:] - expected["patches"]).abs().max()) for one in tokens)
    )


def init_from(subject: Subject) -> float:
    """The encoder of a run that starts from the directory, before its first step, whose loss has to be a number."""
    if not subject.directory.exists():
        subject.encoder.save_pretrained(subject.directory)
    patch = subject.encoder.patch_size
    settings = {
        "backbone.architecture": subject.config.architecture,
        "backbone.model_args": dict(subject.config.model_args),
        "views.global_size": 4 * patch,
        "views.local_size": 2 * patch,
        "views.local_views": 1,
    }
    recipe = read_recipe(["smoke"], [f"--{name}={value}" for name, value in settings.items()])
    method = build_method(recipe).train()
    start_from(str(subject.directory), method)
    frames = torch.randn(1, 2, 3, 4 * patch, 4 * patch)
    local = torch.randn(1, 1, 3, 2 * patch, 2 * patch)
    loss = method({"global": {"pixels": frames}, "local": {"pixels": local}}, At(0.5, 0, 0)).total
    loss.backward()
    assert loss.isfinite()
    pixels = torch.randn(1, 3, subject.size, subject.size)
    with torch.no_grad():
        return difference(Encoder(method.encoder().eval(), subject.config)(pixels), subject.features(pixels))


def exported(format: str, precision: str = "fp32", **options: Any) -> Callable[[Subject], float]:
    """An export's features of a photograph, those of the encoder."""

    def measure(subject: Subject) -> float:
        if not subject.directory.exists():
            subject.encoder.save_pretrained(subject.directory)
        out = subject.folder / f"{format}-{precision}-{len(options)}{SUFFIXES[format]}"
        export(subject.directory, out, format=format, precision=precision, layer_parity=False, **options)
        image = subject.image.resize((160, 120)) if "camera" in options else subject.image
        with torch.no_grad():
            expected = subject.encoder.encode(image)._asdict()
        wanted = {name: expected[name] for name in ("cls", "patches")}
        return difference(load_runtime(out, "cpu").encode(image), wanted)

    return measure


COLUMNS: dict[str, Callable[[Subject], float]] = {
    "encode": encode,
    "save": save,
    "onnx": exported("onnx"),
    "any size": exported("onnx", dynamic_size=True),
    "openvino": exported("openvino"),
    "aoti": exported("aoti"),
    "int8": exported("onnx", "int8"),
    "uint8 frames": exported("onnx", camera=Camera(120, 160)),
    "init-from": init_from,
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help=f"of {', '.join(FAMILIES)}; all by default")
    parser.add_argument("--columns", nargs="+", choices=list(COLUMNS), default=list(COLUMNS))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"| | {' | '.join(args.columns)} |\n|{'---|' * (len(args.columns) + 1)}", flush=True)
    refusals = []
    for family in args.families or FAMILIES:
        architecture = FAMILIES[family]
        print(f"| {family} `{architecture}` |", end="", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            subject = Subject(architecture, Path(folder))
            for column in args.columns:
                try:
                    cell = f"{COLUMNS[column](subject):.1g}"
                except InputError as error:
                    cell = "refused"
                    refusals.append(f"- {family}, {column}: {error}")
                print(f" {cell} |", end="", flush=True)
        print(flush=True)
    print("", *refusals, sep="\n")


if __name__ == "__main__":
    main()
