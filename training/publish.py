"""`python -m training.publish RUN --card TEMPLATE --results DIR --out RELEASE`: from a run to a checked release.

The release is the run's encoder in half precision, with a card whose every number comes from the run or from a result
of `python -m training.evaluate`: the template's `{{camvid-val-random: figures.miou}}` is replaced by that entry of
`camvid-val-random.json` in the results' folder, and `{{run: steps}}` by a fact of the run. It is refused if a number is
missing, if a result belongs to other weights, or if timm, transformers and this package do not load the same features.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from training.log import read_log
from video_distilled_encoder import Encoder, model_directory
from video_distilled_encoder.errors import InputError, MissingExtra, command
from video_distilled_encoder.files import atomic_path
from video_distilled_encoder.preprocessing import bundled_photographs

MIN_COSINE = 0.9999
_PLACEHOLDER = re.compile(r"\{\{([\w.-]+): ([\w.-]+)\}\}")


@command
def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m training.publish", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the run directory")
    parser.add_argument("--card", type=Path, required=True, help="template of the model card")
    parser.add_argument("--results", type=Path, required=True, help="folder of results")
    parser.add_argument("--out", type=Path, required=True, help="the release's model directory")
    parser.add_argument("--card-out", type=Path, help="write the card here too")
    parser.add_argument(
        "--draft", action="store_true", help="numbers may be missing: to have weights that can be evaluated"
    )
    args = parser.parse_args()
    cosine = publish(args.run, args.card, args.results, args.out, draft=args.draft)
    if args.card_out:
        with atomic_path(args.card_out) as temporary:
            temporary.write_text((args.out / model_directory.CARD).read_text(encoding="utf-8"), encoding="utf-8")
    size = sum(file.stat().st_size for file in args.out.iterdir()) / 1e6
    print(f"{args.out}: {size:.1f} MB, smallest cosine of a token with the fp32 teacher {cosine:.6f}")


def publish(run: Path, template: Path, results: Path, out: Path, *, draft: bool = False) -> float:
    """Write the release and return the smallest cosine of a token with the run's fp32 encoder.

    Raises:
        InputError: something is missing, or a check fails; `out` is not touched then.
    """
    encoder = Encoder.from_pretrained(run / "encoder")
    half = Encoder.from_pretrained(run / "encoder", dtype=torch.float16)
    with tempfile.TemporaryDirectory() as folder:
        staging = Path(folder) / "release"
        model_directory.write(staging, half.backbone, half.config, card="", dtype=torch.float16, transformers=False)
        cosine = check(encoder, staging)
        card = render(template, results, run, model_directory.weights_sha256(staging), draft=draft)
    model_directory.write(out, half.backbone, half.config, card=card, dtype=torch.float16, transformers=False)
    return cosine


def render(template: Path, results: Path, run: Path, weights_sha256: str, *, draft: bool) -> str:
    """Fill in the card.

    Raises:
        InputError: a number is missing, or a result is of other weights than the release's.
    """
    facts = {"run": run_facts(run)}
    missing = []

    def value(match: re.Match[str]) -> str:
        name, path = match.groups()
        if name not in facts:
            facts[name] = read_result(results / f"{name}.json", weights_sha256)
        found: Any = facts[name]
        for key in path.split("."):
            found = found.get(key) if isinstance(found, dict) else None
        if found is None:
            missing.append(f"{name}: {path}")
            return "not measured"
        return str(found)

    card = _PLACEHOLDER.sub(value, template.read_text(encoding="utf-8"))
    if missing and not draft:
        raise InputError(f"{template} asks for numbers that are not there: {', '.join(missing)}")
    return card


def read_result(path: Path, weights_sha256: str) -> dict[str, Any]:
    """Read a result; an absent one, or one of other weights, has no numbers.

    Raises:
        InputError: the file is not JSON.
    """
    if not path.is_file():
        return {}
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not a result: {error}") from error
    measured = result["model"].get("weights_sha256", weights_sha256)
    return result if measured == weights_sha256 else {}


def run_facts(run: Path) -> dict[str, Any]:
    """Return what a card says of a run: the recipe's settings, and steps, clips and hours spent."""
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    rows = read_log(run / "log.jsonl")
    return {
        "steps": len(rows),
        "clips": len(rows) * recipe["run"]["batch_size"],
        "minutes": round(sum(row["seconds"] for row in rows) / 60),
        "first_loss": round(rows[0]["loss"], 3),
        "last_loss": round(sum(row["loss"] for row in rows[-20:]) / len(rows[-20:]), 3),
        "recipe": recipe,
    }


def check(encoder: Encoder, release: Path) -> float:
    """Compare the features of the release, in every loader, with those of the fp32 encoder on real photographs.

    Returns:
        The smallest cosine of a token.

    Raises:
        InputError: transformers is not installed, or a loader gives other features.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", "transformers") from error
    pixels = encoder.preprocess(bundled_photographs())
    loaded = Encoder.from_pretrained(release)
    in_timm: Any = timm.create_model(f"local-dir:{release}", pretrained=True).eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        loaded.save_pretrained(folder + "/full")
        expected = _tokens(encoder, pixels)
        found = {
            "video_distilled_encoder": _tokens(loaded, pixels),
            "timm": in_timm.forward_features(pixels),
            "transformers": transformers.AutoModel.from_pretrained(folder + "/full").eval()(pixels).last_hidden_state,
        }
    for name, tokens in found.items():
        if not torch.allclose(tokens, found["video_distilled_encoder"], atol=1e-4):
            raise InputError(f"{release} gives other features in {name} than here")
    cosine = float(F.cosine_similarity(expected, found["video_distilled_encoder"], dim=-1).min())
    if not cosine >= MIN_COSINE:
        raise InputError(f"half precision changes the features: smallest cosine of a token {cosine:.6f}")
    return cosine


def _tokens(encoder: Encoder, pixels: Tensor) -> Tensor:
    out = encoder(pixels)
    return torch.cat([out.cls[:, None], out.patches], dim=1)


if __name__ == "__main__":
    main()
