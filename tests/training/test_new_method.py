"""A method that shares nothing with the others is one file: it trains, resumes, is described and gone on from."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

import training.methods
from training.engine import checkpoint
from training.engine.log import read_log
from training.engine.run import dry_run, pretrain
from training.recipes.recipe import read_recipe
from video_distilled_encoder import Encoder, InputError


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Return what reads the method's recipe."""
    (tmp_path / "methods").mkdir()
    shutil.copy(Path(__file__).with_name("colours.py"), tmp_path / "methods")
    monkeypatch.setattr(training.methods, "__path__", [*training.methods.__path__, str(tmp_path / "methods")])
    monkeypatch.delitem(sys.modules, "training.methods.colours", raising=False)
    layer = tmp_path / "colours.yaml"
    layer.write_text("method: colours\n")
    settings = ["--run.steps=6", "--run.checkpoint_every=3"]
    return lambda *more: read_recipe(["smoke", str(layer)], [*settings, *more])


def tensors(run):
    saved = checkpoint.load_newest(run / "checkpoints")
    return saved.model | saved.optimizer


def test_it_trains_resumes_to_the_bit_and_is_gone_on_from(read, clip, tmp_path):
    frames, whole, again = (tmp_path / name for name in ("frames", "whole", "again"))
    for out in (whole, again):
        pretrain([clip], out, read(), frames=frames)
    for name in ("checkpoints/step-00000006", "encoder"):
        shutil.rmtree(again / name)
    pretrain([clip], again, read(), frames=frames, resume=True)
    expected, got = tensors(whole), tensors(again)
    assert expected.keys() == got.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    assert expected["mean"].abs().min() > 0  # it was prepared
    rows = read_log(whole / "log.jsonl")
    assert [row["noise"] for row in rows] == pytest.approx([0.1 * (1 - step / 6) for step in range(6)])
    assert rows[-1]["colour_loss"] < rows[0]["colour_loss"]
    assert "frozen friend" in (whole / "encoder" / "README.md").read_text()
    ours = Encoder.from_pretrained(whole / "encoder").backbone.state_dict()["norm.weight"]
    assert torch.equal(ours, expected["student.backbone.norm.weight"])
    pretrain([clip], tmp_path / "next", read(f"--run.init_from={whole / 'handover'}"), frames=frames)
    assert json.loads((tmp_path / "next" / "run.json").read_text())["runs_before"][0]["steps"] == 6


def test_it_is_described_watched_and_held_to_its_frozen_models(read, clip, tmp_path):
    out, frames = tmp_path / "run", tmp_path / "frames"
    assert "GFLOP a clip" in dry_run([clip], out, read(), frames, False)
    with pytest.raises(InputError, match="too much noise"):
        pretrain([clip], tmp_path / "stopped", read("--objective.limit=0.05"), frames=frames)
    pretrain([clip], out, read(), frames=frames)
    facts = out / "run.json"
    facts.write_text(facts.read_text().replace('"0123"', '"4567"'))
    with pytest.raises(InputError, match="names a frozen friend of SHA-256 4567, and now it is 0123"):
        pretrain([clip], out, read(), frames=frames, resume=True)


def test_parts_of_a_batch_are_the_same_rows(read, clip, tmp_path):
    weights = []
    for parts in (1, 2):
        recipe = read(f"--run.accumulate={parts}", "--backbone.drop_path=0.0", "--objective.noise=0.0")
        pretrain([clip], tmp_path / str(parts), recipe, frames=tmp_path / "frames")
        weights.append(tensors(tmp_path / str(parts))["student.colour.weight"])
    assert torch.allclose(*weights, atol=1e-5)
