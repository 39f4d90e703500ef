"""From a run to a checked release: weights in half precision, and a card filled in from results.

`python -m training.publish --help` says what a card's template may ask for.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
import yaml
from huggingface_hub import HfApi, ModelCard

from training.common.json_files import read_facts
from training.engine.log import read_log
from training.evaluation.statistics.comparison import Row, against, cell, read_result, row_of
from video_distilled_encoder import Encoder, model_directory
from video_distilled_encoder.errors import InputError, first_line, import_extra
from video_distilled_encoder.files import atomic_path
from video_distilled_encoder.hub import BUNDLED_RELEASES
from video_distilled_encoder.image_files import bundled_photographs
from video_distilled_encoder.tokens import encode_tokens

MIN_COSINE = 0.9999
_NEEDED = "the card needs its facts"
_PLACEHOLDER = re.compile(r"\{\{([\w.-]+): ([\w.: -]+)\}\}")
_BLOCK = re.compile(r"(?<=<!-- )figures: (\S+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)


def picture_of(name: str) -> str:
    """Return what the picture of a release's features is called, beside its card."""
    return f"{name}.pca.png"


def copy_card(release: Path, card: Path) -> None:
    """Write a release's card, and its picture, to another place too."""
    picture = picture_of(release.name)
    for source, target in ((release / model_directory.CARD, card), (release / picture, card.with_name(picture))):
        if source.is_file():
            with atomic_path(target) as temporary:
                shutil.copyfile(source, temporary)


def push(release: Path, name: str) -> str:
    """Upload a release and its picture to the Hub as `owner/name`; returns the address of the weights' commit."""
    address = Encoder.from_pretrained(release, dtype=torch.float16).push_to_hub(name, dtype=torch.float16)
    picture = picture_of(release.name)
    if (release / picture).is_file():
        HfApi().upload_file(path_or_fileobj=release / picture, path_in_repo=picture, repo_id=name)
    return address


def describe(release: Path, cosine: float) -> str:
    """Return a line on a release that was written."""
    size = sum(file.stat().st_size for file in release.iterdir()) / 1e6
    return f"{release}: {size:.1f} MB, smallest cosine of a token with the fp32 teacher {cosine:.6f}"


def publish(run: Path, template: Path, results: Path, out: Path, *, draft: bool = False) -> float:
    """Write the release and return the smallest cosine of a token with the run's fp32 encoder.

    Raises:
        InputError: something is missing, or a check fails; `out` is not touched then.
    """
    encoder = Encoder.from_pretrained(run / "encoder")
    half = Encoder.from_pretrained(run / "encoder", dtype=torch.float16)
    with tempfile.TemporaryDirectory() as folder:
        staging = Path(folder) / "release"
        model_directory.write(staging, half.backbone, half.config, card="", dtype=torch.float16)
        cosine = check(encoder, staging)
        of = Weights(out.name, model_directory.weights_sha256(staging))
        card = render(template, results, run, of, draft=draft)
    model_directory.write(out, half.backbone, half.config, card=card, dtype=torch.float16)
    picture = picture_of(out.name)
    if (run / picture).is_file():
        shutil.copyfile(run / picture, out / picture)
    return cosine


class Weights(NamedTuple):
    """What a release's own results are known by."""

    name: str
    """In the names of results: that of the release's directory."""
    sha256: str

    @classmethod
    def of(cls, release: Path) -> Weights:
        """Return those of a model directory."""
        return cls(release.name, model_directory.weights_sha256(release))


def render(template: Path, results: Path, run: Path, of: Weights, *, draft: bool) -> str:
    """Fill in the card.

    Raises:
        InputError: a number is missing, or a result of this name is of other weights; the metadata are wrong.
    """
    card, missing = _filled(template, results, [of], run)
    if draft:
        return card
    if missing:
        raise InputError(f"{template} asks for numbers that are not there: {', '.join(missing)}")
    check_metadata(card, template)
    return card


def bundled_weights() -> list[Weights]:
    """Return those of the releases in the package."""
    return [Weights.of(path.parent) for path in sorted(BUNDLED_RELEASES.glob("*/*/config.json"))]


def fill_page(page: Path, results: Path, of: Sequence[Weights]) -> None:
    """Write figures into a page: what stands from `<!-- figures: TEMPLATE -->` to `<!-- end -->`, TEMPLATE filled in.

    Args:
        page: Markdown.
        results: folder of results.
        of: releases, whose results count if they are of these weights.

    Raises:
        InputError: there is no such page or template, it has no such place, or a number is missing; the page is left as
            it is.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{page} cannot be read ({first_line(error)}); give a page to write figures into") from error

    def block(match: re.Match[str]) -> str:
        template = page.parent / match[1]
        if not template.is_file():
            raise InputError(f"{page} wants the figures of {template}, which does not exist")
        figures, missing = _filled(template, results, of)
        if missing:
            raise InputError(f"{template} asks for numbers that are not there: {', '.join(missing)}")
        return f"figures: {match[1]}{match[2]}{figures}"

    filled, blocks = _BLOCK.subn(block, text)
    if not blocks:
        raise InputError(f"{page} has no place for figures: <!-- figures: TEMPLATE -->, and behind it <!-- end -->")
    with atomic_path(page) as temporary:
        temporary.write_text(filled, encoding="utf-8")


def _filled(template: Path, results: Path, of: Sequence[Weights], run: Path | None = None) -> tuple[str, list[str]]:
    """Return a template with its facts, and those that are not there."""
    facts = {"run": run_facts(run)} if run else {}
    missing = []

    def value(match: re.Match[str]) -> str:
        source, words = match.groups()
        if run and source not in facts and (run.parent / source / "run.json").is_file():
            facts[source] = run_facts(run.parent / source)
        if source in facts:
            found = _fact(facts[source], words)
        elif source == "study":
            found = _table(template.parent / "studies" / f"{words}.md")
        elif (results / f"{source}.json").is_file():
            found = _fact(read_facts(results / f"{source}.json", _NEEDED), words)
        else:
            found = _figure(results, source, words, of)
        if found is None:
            missing.append(f"{source}: {words}")
        return found or "not measured"

    return _PLACEHOLDER.sub(value, template.read_text(encoding="utf-8")), missing


def _fact(facts: dict[str, Any], path: str) -> str | None:
    found: Any = facts
    for key in path.split("."):
        if isinstance(found, list):
            found = {entry["name"]: entry for entry in found if isinstance(entry, dict) and "name" in entry}
        found = found.get(key) if isinstance(found, dict) else None
    return None if found is None else f"{found:.4g}" if isinstance(found, float) else str(found)


def _table(path: Path) -> str | None:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _figure(results: Path, measure: str, words: str, of: Sequence[Weights]) -> str | None:
    """Return what a template asks of a measure: "SUBJECT FIGURE" or "SUBJECT against OTHER"."""
    subject, *rest = words.split()
    row = _row(results, measure, subject, of)
    if len(rest) == 2 and rest[0] == "against":
        other = _row(results, measure, rest[1], of)
        return against(row, other) if row and other else None
    return cell(row.figures[rest[0]]) if row and rest and rest[0] in row.figures else None


def _row(results: Path, measure: str, subject: str, of: Sequence[Weights]) -> Row | None:
    """Read all seeds of a measure of a subject; a release's own results do not count if they are of other weights."""
    stem = re.compile(rf"{re.escape(f'{measure}-{subject}')}(-seed\d+)?")
    paths = sorted(path for path in results.glob("*.json") if stem.fullmatch(path.stem))
    found = [read_result(path) for path in paths]
    for release in of:
        if subject == release.name and any(one["model"].get("weights_sha256") != release.sha256 for one in found):
            return None
    if not found:
        return None
    return row_of(subject, found)


def check_metadata(card: str, template: Path) -> None:
    """Check that the Hub's library reads the card's metadata, and results in them if it has a model-index.

    Raises:
        InputError: it does not.
    """
    try:
        data = ModelCard(card).data
    except (ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise InputError(f"{template} has metadata that huggingface_hub cannot read: {first_line(error)}") from error
    values = [result.metric_value for result in getattr(data, "eval_results", None) or []]
    if "\nmodel-index:" in card and not (values and all(isinstance(value, int | float) for value in values)):
        raise InputError(f"{template} has a model-index without a number for each metric, got {values}")


def run_facts(run: Path) -> dict[str, Any]:
    """Return what a card says of a run: the recipe's settings, its data and machine, steps, clips and time spent."""
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    rows = read_log(run / "log.jsonl") if (run / "log.jsonl").is_file() else []
    if not rows:
        raise InputError(f"{run} has no step in its log.jsonl, of which the card tells; publish a run that was trained")
    return {
        **read_facts(run / "run.json", _NEEDED),
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
    transformers = import_extra("transformers", "transformers")
    pixels = encoder.preprocess(bundled_photographs())
    loaded = Encoder.from_pretrained(release)
    in_timm: Any = timm.create_model(f"local-dir:{release}", pretrained=True).eval()
    in_transformers = transformers.AutoModel.from_pretrained(release, dtype=torch.float32).eval()
    with torch.no_grad():
        expected, _ = encode_tokens(encoder.backbone, pixels)
        found = {
            "video_distilled_encoder": encode_tokens(loaded.backbone, pixels)[0],
            "timm": in_timm.forward_features(pixels),
            "transformers": in_transformers(pixels).last_hidden_state,
        }
    for name, tokens in found.items():
        if not torch.allclose(tokens, found["video_distilled_encoder"], atol=1e-4):
            raise InputError(f"{release} gives other features in {name} than here")
    cosine = float(F.cosine_similarity(expected, found["video_distilled_encoder"], dim=-1).min())
    if not cosine >= MIN_COSINE:
        raise InputError(f"half precision changes the features: smallest cosine of a token {cosine:.6f}")
    return cosine
