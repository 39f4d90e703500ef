"""The releases that are bundled with the package, and the repository's promises about them."""

import re
import shutil
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch

from export.pipeline import export
from training.releases.publishing import bundled_weights, fill_page, picture_of
from video_distilled_encoder import Encoder, encode
from video_distilled_encoder.hub import BUNDLED_RELEASES
from video_distilled_encoder.video import read_frames, write_video

NAME = "nota/vfd-vits16"
RELEASES = sorted(path.parent for path in BUNDLED_RELEASES.glob("*/*/config.json"))
ROOT = Path(__file__).parent.parent

each_release = pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)


@each_release
def test_loads_offline_by_name_and_tells_patches_apart(release, photograph):
    name = f"{release.parent.name}/{release.name}"
    out = Encoder.from_pretrained(name, local_files_only=True).encode(photograph)
    assert out.patches.shape == (1, 196, 384)
    similarity = torch.nn.functional.cosine_similarity(out.patches[0, :1], out.patches[0, 1:], dim=-1)
    assert similarity.mean() < 0.99


@each_release
def test_is_small_enough(release):
    assert sum(path.stat().st_size for path in release.iterdir()) <= 45e6


@each_release
def test_its_card_is_the_one_in_model_cards(release):
    card = (release / "README.md").read_text(encoding="utf-8")
    assert card == (ROOT / "model_cards" / f"{release.name}.md").read_text(encoding="utf-8")
    assert "not measured" not in card
    picture = picture_of(release.name)
    assert f"]({picture})" in card
    assert (release / picture).read_bytes() == (ROOT / "model_cards" / picture).read_bytes()


@pytest.mark.parametrize("name", ["README.md", "model_cards/behaviour-cloning.md"])
def test_a_pages_figures_are_those_of_the_results(name, tmp_path):
    (tmp_path / "model_cards").mkdir()
    for path in (ROOT / name, *(ROOT / "model_cards").glob("*.template.md")):
        (tmp_path / path.relative_to(ROOT)).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    page = tmp_path / name
    before = page.read_text(encoding="utf-8")
    assert re.search(r"<!-- figures: \S+ -->\n\|", before)
    fill_page(page, ROOT / "model_cards" / "results", bundled_weights())
    assert page.read_text(encoding="utf-8") == before


def test_exports(tmp_path):
    pytest.importorskip("onnxruntime")
    artefact = export(NAME, tmp_path / "encoder.onnx", precision="fp16", layer_parity=False)
    assert artefact.facts["parity"]["patches"]["min_cosine"] >= 0.9999


def test_the_readmes_snippet_says_what_happens():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    snippet = re.search(r"```python\n(.*?)```", readme, re.DOTALL).group(1)
    assert len(snippet.strip().splitlines()) == 6
    names = {"__name__": "snippet"}
    exec(snippet.replace("examples/", f"{ROOT}/examples/"), names)
    for name, shape in re.findall(r"out\.(\w+)\s+# \(([\d, ]+)\)", snippet):
        assert tuple(getattr(names["out"], name).shape) == tuple(int(side) for side in shape.split(","))


def test_the_readmes_main_command_encodes_the_examples(run_command, tmp_path, monkeypatch):
    """Four frames of the video will do."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    line = re.search(r"<!-- main command -->\n```bash\n(.*?)\n```", readme, re.DOTALL).group(1)
    arguments = line.split("vde-encode ")[1].split()
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", "examples")
    begin = [frame.image for frame in islice(read_frames(ROOT / "examples" / "dog.mp4"), 4)]
    write_video(Path("examples/dog.mp4"), begin, 24)
    monkeypatch.setattr(sys, "argv", ["vde-encode"])
    assert run_command(encode.main, *arguments) is None
    expected = ["dog.pca.mp4", "dog.safetensors", "surfer.pca.png", "surfer.safetensors"]
    assert sorted(path.name for path in Path("features").iterdir()) == expected
