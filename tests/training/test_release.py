import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from export import parity
from tests.training import step_clock
from training.common.yaml_files import names_in
from training.engine import checkpoint
from training.engine.log import read_log
from training.release import main
from training.releases.release import RELEASES, read_release
from video_distilled_encoder import Encoder, InputError
from video_distilled_encoder.model_directory import weights_sha256
from video_distilled_encoder.runtimes.artefact import Artefact

pytest.importorskip("transformers")
pytest.importorskip("openvino")

RELEASE = {
    "runs": {"run": {"recipe": ["smoke"]}},
    "card": "to be given",
    "measures": {"colours": "linear-segmentation --data colours --steps 20"},
    "beside": {"random": {"seeds": [0, 1]}, "pixels": None, "narrow": {"model": "random:vit_tiny_patch16_224"}},
    "exports": {"int8": {"calibration": "colours/train"}},
    "held_out": ["colours/test"],
    "pictures": ["colours/test/0.png"],
}
ALONE: dict[str, object] = {"measures": {}, "beside": {}, "exports": {}}
CARD = """---
license: apache-2.0
model-index:
- name: small
  results:
  - task: {type: image-segmentation}
    dataset: {type: colours, name: colours}
    metrics:
    - {type: mean_iou, value: {{colours: small miou}}}
---
{{run: steps}} steps, {{run: videos}} video; {{colours: small miou}}, random {{colours: random miou}}
int8 {{colours: int8 miou}}, {{overlap-small: training_frames}} frames ![features](small.pca.png)
"""


@pytest.fixture
def words(tmp_path, coloured_set, clip):
    coloured_set(tmp_path / "data" / "colours", train=4, test=2)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(RELEASE))
    (tmp_path / "card.md").write_text(CARD)
    folders = ["--data", clip, "--evaluation", tmp_path / "data", "--out", tmp_path / "out"]
    return [tmp_path / "small.yaml", *folders, "--frames", tmp_path / "frames", "--card", tmp_path / "card.md"]


def test_one_command_from_videos_to_a_release_and_it_goes_on(
    run_command, words, tmp_path, one_thread, capsys, monkeypatch
):
    for bounds, bound in ((parity.MEAN_COSINE, 0.99), (parity.NORM_ERROR, 0.15)):
        monkeypatch.setitem(bounds, "int8", bound)  # 8 bits do a little more to weights that have hardly learnt
    out = tmp_path / "out"
    words += ["--run.workers=0", "--card-out", tmp_path / "copy.md"]
    (tmp_path / "card.md").rename(tmp_path / "later.md")
    assert "there is no card" in run_command(main, *words)
    assert not out.exists()
    (tmp_path / "card.md").write_text(CARD + "{{colours: unheard-of miou}}")
    assert "not there: colours: unheard-of miou" in run_command(main, *words)
    weights = weights_sha256(out / "small")
    measured = {path.name: path.stat().st_mtime_ns for path in (out / "results").glob("*.json")}
    assert set(measured) == {
        "overlap-small.json",
        "colours-small.json",
        "colours-int8.json",
        "colours-random.json",
        "colours-random-seed1.json",
        "colours-pixels.json",
        "colours-narrow.json",
    }
    (tmp_path / "card.md").write_text(CARD)
    assert run_command(main, *words) is None
    assert weights_sha256(out / "small") == weights
    assert Artefact.read(out / "int8.xml").facts["model"]["weights_sha256"] == weights
    assert {path.name: path.stat().st_mtime_ns for path in (out / "results").glob("*.json")} == measured
    card = (out / "small" / "README.md").read_text()
    miou = json.loads((out / "results" / "colours-small.json").read_text())["figures"]["miou"]
    assert f"8 steps, 1 video; {miou:.2f}, random" in card
    assert "25 frames" in card
    assert (tmp_path / "copy.md").read_text() == card
    with Image.open(tmp_path / "small.pca.png") as sheet:
        source, ours, random = (np.asarray(sheet, dtype=float)[24:237, at : at + 320] for at in (0, 326, 652))
    assert np.abs(source - np.asarray(Image.open(tmp_path / "data/colours/test/0.png").resize((320, 213)))).mean() < 5
    assert min(ours.std(), random.std()) > 20
    assert Encoder.from_pretrained(out / "small").embed_dim == 64
    assert "smallest cosine" in capsys.readouterr().out


def test_a_time_is_the_length_of_the_training_once(
    run_command, words, tmp_path, one_thread, rate_of_the_last_step, monkeypatch
):
    step_clock.install(monkeypatch.setattr)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({**RELEASE, **ALONE}))
    (tmp_path / "card.md").write_text("---\nlicense: apache-2.0\n---\n{{run: steps}} steps")
    words += ["--run.workers=0", "--time", "00:00:30"]
    assert run_command(main, *words) is None
    rows = read_log(tmp_path / "out" / "run" / "log.jsonl")
    assert len(rows) == checkpoint.load_newest(tmp_path / "out" / "run" / "checkpoints").plan.steps
    assert rows[-1]["learning_rate"] == pytest.approx(rate_of_the_last_step(tmp_path / "out" / "run"))
    assert run_command(main, *words) is None
    assert len(read_log(tmp_path / "out" / "run" / "log.jsonl")) == len(rows)


def test_a_release_may_be_several_runs_one_after_the_other(run_command, words, tmp_path, one_thread):
    runs = {
        "first": {"recipe": ["smoke", "distill"], "settings": {"objective.teacher": "random:vit_tiny_patch16_224"}},
        "second": {"recipe": ["smoke"]},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({**RELEASE, **ALONE, "runs": runs}))
    (tmp_path / "card.md").write_text(
        "---\nlicense: apache-2.0\n---\n{{run: recipe.method}} after {{first: recipe.method}}, {{first: provenance}}"
    )
    settings = ["--run.workers=0", "--run.steps=2"]
    assert run_command(main, *words, *settings) is None
    card = (tmp_path / "out" / "small" / "README.md").read_text()
    assert "vfd after distill" in card
    assert "It learnt from the features of `random`" in card
    assert "`random`" in (tmp_path / "out" / "second" / "encoder" / "README.md").read_text()
    weights = weights_sha256(tmp_path / "out" / "small")
    for name in runs:  # as they come back from another machine
        shutil.rmtree(tmp_path / "out" / name / "checkpoints")
    assert "was started with other settings: run.steps was 2, now 3" in run_command(main, *words, "--run.steps=3")
    assert run_command(main, *words, *settings) is None
    assert weights_sha256(tmp_path / "out" / "small") == weights
    assert not (tmp_path / "out" / "first" / "checkpoints").exists()


def test_what_is_no_release_is_refused(tmp_path):
    assert all(read_release(name).measures for name in names_in(RELEASES))
    with pytest.raises(InputError, match="there is no release 'nothing'; give a YAML file or one of: vfd-vits16"):
        read_release("nothing")
    (tmp_path / "wrong.yaml").write_text("colour: red")
    with pytest.raises(InputError, match=r"wrong\.yaml is not a release"):
        read_release(str(tmp_path / "wrong.yaml"))
