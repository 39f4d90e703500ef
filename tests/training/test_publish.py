import json

import pytest
import torch
from safetensors.torch import load_file

from training.publish import main, publish, render
from training.recipe import read_recipe
from video_distilled_encoder import Encoder, InputError
from video_distilled_encoder.files import sha256

pytest.importorskip("transformers")


@pytest.fixture
def run(tiny, tmp_path):
    """What `training.pretrain` leaves behind, as far as a release needs it."""
    out = tmp_path / "run"
    tiny.save_pretrained(out / "encoder")
    (out / "recipe.yaml").write_text(read_recipe("smoke").to_yaml())
    rows = [{"step": step, "loss": 5.0 - step / 10, "seconds": 30.0} for step in range(1, 9)]
    (out / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


@pytest.fixture
def template(tmp_path):
    path = tmp_path / "card.template.md"
    path.write_text(
        "{{run: steps}} steps, {{run: clips}} clips; mIoU {{probe: figures.miou}}, random {{base: figures.miou}}\n"
    )
    return path


def write_result(folder, name, miou, weights=None):
    folder.mkdir(exist_ok=True)
    model = {"name": name} | ({"weights_sha256": weights} if weights else {})
    (folder / f"{name}.json").write_text(json.dumps({"model": model, "figures": {"miou": miou}}))


def test_a_release_is_half_precision_checked_and_its_card_filled_in(run, template, tmp_path, tiny, photograph):
    results, out = tmp_path / "results", tmp_path / "release"
    publish(run, template, results, out, draft=True)
    assert "not measured" in (out / "README.md").read_text()
    weights = sha256(out / "model.safetensors")
    write_result(results, "probe", 31.4, weights)
    write_result(results, "base", 15.9)
    cosine = publish(run, template, results, out)
    assert (out / "README.md").read_text() == "8 steps, 32 clips; mIoU 31.4, random 15.9\n"
    assert sha256(out / "model.safetensors") == weights
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.float16}
    assert not (out / "model_transformers.safetensors").exists()
    expected, got = tiny.encode(photograph).patches, Encoder.from_pretrained(out).encode(photograph).patches
    worst = torch.nn.functional.cosine_similarity(expected, got, dim=-1).min().item()
    assert 0.9999 <= cosine <= 1
    assert worst >= 0.9999


def test_a_missing_number_and_a_result_of_other_weights_are_refused(run, template, tmp_path):
    results = tmp_path / "results"
    write_result(results, "base", 15.9)
    with pytest.raises(InputError, match=r"not there: probe: figures\.miou$"):
        publish(run, template, results, tmp_path / "release")
    write_result(results, "probe", 99.0, weights="0" * 64)
    with pytest.raises(InputError, match=r"not there: probe: figures\.miou$"):
        publish(run, template, results, tmp_path / "release")
    assert not (tmp_path / "release").exists()


def test_a_result_that_is_not_json_is_refused(run, template, tmp_path):
    (tmp_path / "probe.json").write_text("{")
    with pytest.raises(InputError, match=r"probe\.json is not a result"):
        render(template, tmp_path, run, "0" * 64, draft=True)


def test_command(run_command, run, template, tmp_path, capsys):
    arguments = [run, "--card", template, "--results", tmp_path / "none", "--out", tmp_path / "release"]
    assert "asks for numbers that are not there" in run_command(main, *arguments)
    assert run_command(main, *arguments, "--draft", "--card-out", tmp_path / "card.md") is None
    assert (tmp_path / "card.md").read_text() == (tmp_path / "release" / "README.md").read_text()
    assert "smallest cosine of a token" in capsys.readouterr().out
