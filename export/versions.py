"""Versions of the packages that an export, and how fast it is, depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "video_distilled_encoder",
    "torch",
    "timm",
    "transformers",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
)


def versions() -> dict[str, str]:
    """Return the versions of those that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def differences(made_with: Mapping[str, str]) -> str:
    """Return in which packages the versions that an export was made with differ from those that are here, in words."""
    here = versions()
    names = [name for name in PACKAGES if name in made_with or name == PACKAGES[0]]
    return ", ".join(
        f"{name} {made_with.get(name, 'of an older version')} (here {here.get(name, 'none')})"
        for name in names
        if made_with.get(name) != here.get(name)
    )


def code_sha256() -> str:
    """Return the SHA-256 of the code that exports are made by, which in a clone changes without its version."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for package in (Path(__file__).parent.name, PACKAGES[0]):
        for file in sorted((root / package).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()
