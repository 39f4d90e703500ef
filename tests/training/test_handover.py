import json
import shutil

import pytest
import torch

from training.data.loading import ClipViews
from training.engine import handover
from training.engine.assembly import build_method
from training.engine.initial_weights import start_from
from training.engine.run import pretrain
from training.handover import main
from training.recipes.recipe import read_recipe
from video_distilled_encoder import Encoder, InputError

RECIPE = read_recipe("smoke", ["--run.steps=3"])
CONFIG = RECIPE.backbone.config


@pytest.fixture(scope="module")
def run(clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    pretrain([clip], folder / "first", RECIPE, frames=folder / "frames", shard_mib=0.1)
    return folder / "first"


def method_with(*settings, seed=9):
    torch.manual_seed(seed)
    return build_method(read_recipe("smoke", settings))


def test_all_that_was_learnt_comes_back_in_half_precision(run):
    found = handover.read(run / "handover")
    method = method_with()
    text = start_from(str(run / "handover"), method).text
    assert "all that its run learnt" in text
    state = method.state_dict()
    assert found.state.keys() == state.keys()
    for name, tensor in state.items():
        twin = name.replace("student.", "teacher.", 1)
        assert torch.equal(tensor, found.state[twin if twin in state else name])
        assert tensor.dtype == torch.float32
    assert state["student.predictor.mlp.0.weight"].std() > 0
    pixels = torch.rand(2, 3, 64, 64)
    theirs = Encoder.from_pretrained(run / "encoder").backbone.forward_features(pixels)
    ours = method.teacher.backbone.forward_features(pixels)
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=-1).min() > 0.9999
    with torch.no_grad():
        method.student.backbone.norm.weight.add_(1)
    assert torch.equal(method.teacher.backbone.norm.weight, found.state["teacher.backbone.norm.weight"])


def test_parts_are_small_and_join_to_a_safetensors_file(run, tmp_path):
    from safetensors.torch import load_file

    parts = sorted((run / "handover").glob("part-*"))
    assert len(parts) > 5
    assert max(part.stat().st_size for part in parts) == 2**20 // 10
    joined = tmp_path / "joined.safetensors"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert load_file(joined)["teacher.backbone.cls_token"].dtype == torch.float16


def test_a_chain_of_runs_is_told(run, clip, tmp_path, capsys):
    recipe = read_recipe("smoke", ["--run.steps=2", f"--run.init_from={run / 'handover'}"])
    pretrain([clip], tmp_path / "second", recipe, frames=run.parent / "frames")
    assert "all that its run learnt" in capsys.readouterr().err
    told = json.loads((tmp_path / "second" / "handover" / "handover.json").read_text())["runs"]
    assert [(one["steps"], one["clips"], one["progress"]) for one in told] == [(3, 12, 1.0), (2, 8, 1.0)]
    assert [one["recipe"]["run"]["steps"] for one in told] == [3, 2]
    pretrain([clip], tmp_path / "second", recipe, frames=run.parent / "frames", resume=True)
    assert json.loads((tmp_path / "second" / "handover" / "handover.json").read_text())["runs"] == told


def test_a_run_that_was_cut_short_tells_as_much_as_it_has_done(run, tmp_path):
    shutil.copytree(run, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "handover")
    (told,) = start_from(str(tmp_path / "cut"), method_with()).runs
    assert told == handover.read(run / "handover").runs[0]
    (tmp_path / "cut" / "run.json").write_text("[")
    with pytest.raises(InputError, match=r"run\.json cannot be read .*; it says what the run began with"):
        start_from(str(tmp_path / "cut"), method_with())


def test_a_run_of_a_chain_goes_on_with_the_order_of_the_clips(run, clip, tmp_path, monkeypatch):
    seen = []
    draw = ClipViews._draw
    monkeypatch.setattr(
        ClipViews, "_draw", lambda self, place, size: seen.append(place.position) or draw(self, place, size)
    )
    recipe = read_recipe("smoke", ["--run.steps=2", "--run.checkpoint_every=1", f"--run.init_from={run / 'handover'}"])
    pretrain([clip], tmp_path / "second", recipe, frames=run.parent / "frames")
    first = [*range(8), 0, 0]  # of the sheet, and those whose arithmetic is counted
    assert seen == [*first, *range(12, 20)]
    shutil.rmtree(tmp_path / "second" / "checkpoints" / "step-00000002")
    pretrain([clip], tmp_path / "second", recipe, frames=run.parent / "frames", resume=True)
    assert seen[18:] == [*first, *range(16, 20)]


def test_what_was_written_before_is_replaced(run, tmp_path):
    method, folder = method_with(), tmp_path / "handover"
    for size, parts in ((0.005, 117), (0.2, 3)):
        handover.write(folder, method, CONFIG, [], size)
        assert len(list(folder.glob("part-*"))) == parts
        state = handover.read(folder).state
        assert torch.equal(state["cls_balance.center"], method.state_dict()["cls_balance.center"])
    (folder / "handover.json").write_text('{"version": 2}')
    with pytest.raises(InputError, match="written by a later version"):
        handover.read(folder)


def test_names_of_parts_sort_as_the_parts_do():
    for count in (1, 9, 100, 1001):
        names = handover._names(count)
        assert len(names) == count
        assert names == sorted(names)
    assert handover._names(3)[0] == "part-00"


@pytest.mark.parametrize("size", [0.0, -1.0, float("nan")])
def test_parts_of_no_size_are_refused(clip, tmp_path, size):
    with pytest.raises(InputError, match=r"--shard-size is at least 0\.1 MiB, got"):
        pretrain([clip], tmp_path / "run", RECIPE, frames=tmp_path, shard_mib=size)


def test_another_head_leaves_the_backbone(run):
    method = method_with("--objective.head.prototypes=32")
    before = method.state_dict()["student.head.prototypes"].clone()
    text = start_from(str(run / "handover"), method).text
    assert "the backbone alone" in text
    assert "head.prototypes" in text
    found = handover.read(run / "handover").backbone()
    for tower in (method.student, method.teacher):
        assert all(torch.equal(tensor, found[name]) for name, tensor in tower.backbone.state_dict().items())
    assert torch.equal(method.state_dict()["student.head.prototypes"], before)


def test_the_encoder_is_made_of_the_parts(run, run_command, tmp_path, photograph):
    assert run_command(main, run / "handover", "--out", tmp_path / "encoder") is None
    ours, theirs = (
        Encoder.from_pretrained(path).encode(photograph) for path in (tmp_path / "encoder", run / "encoder")
    )
    assert torch.nn.functional.cosine_similarity(ours.patches, theirs.patches, dim=-1).min() > 0.9999


def test_a_network_of_other_arguments_comes_back(run_command, tmp_path):
    recipe = read_recipe("smoke", ['--backbone.model_args={"depth":3,"embed_dim":32,"num_heads":2}'])
    handover.write(tmp_path / "handover", build_method(recipe), recipe.backbone.config, [])
    assert run_command(main, tmp_path / "handover", "--out", tmp_path / "encoder") is None
    assert len(Encoder.from_pretrained(tmp_path / "encoder").backbone.blocks) == 3


@pytest.mark.parametrize("kind", ["missing part", "damaged part", "changed facts", "missing sums", "no json"])
def test_what_is_not_whole_is_one_sentence(run, tmp_path, kind):
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in (run / "handover").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    part = folder / "part-01"
    if kind == "missing part":
        part.unlink()
    elif kind == "damaged part":
        part.write_bytes(part.read_bytes()[:-1] + b"x")
    elif kind == "changed facts":
        (folder / "handover.json").write_text((folder / "handover.json").read_text() + " ")
    elif kind == "missing sums":
        (folder / "SHA256SUMS").unlink()
    else:
        (folder / "handover.json").write_text("[")
    expected = {
        "missing part": "lacks part-01; copy all of its files",
        "damaged part": "part-01 does not match its checksum",
        "changed facts": r"handover\.json does not match its checksum",
        "missing sums": "lacks SHA256SUMS",
        "no json": "is not what a run leaves for the next",
    }
    with pytest.raises(InputError, match=expected[kind]):
        start_from(str(folder), method_with())
