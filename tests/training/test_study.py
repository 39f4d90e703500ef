import json
import signal
import time
from dataclasses import replace

import pytest
import yaml
from PIL import Image

from training.common.yaml_files import names_in
from training.engine.log import read_log
from training.engine.trainer import Trainer
from training.evaluation.evidence import Subject, read_figure
from training.pretrain import main as pretrain_command
from training.recipes.recipe import options, read_recipe
from training.studies.study import STUDIES, joined, plan, read_study, table, with_names_of
from training.study import main
from video_distilled_encoder import InputError
from video_distilled_encoder.files import write_json
from video_distilled_encoder.model_directory import weights_sha256

STUDY = {
    "title": "A small study",
    "recipe": ["smoke"],
    "seeds": [0],
    "rows": {
        "random": {"model": "random:{architecture}"},
        "vfd": None,
        "dino": {"recipe": "dino-frames", "settings": {"views.local_views": 2}},
    },
    "measures": {"colours": "linear-segmentation --data colours --steps 20"},
    "columns": {"mIoU": "colours miou"},
}


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return tmp_path_factory.mktemp("frames")


@pytest.fixture
def study(tmp_path, coloured_set):
    coloured_set(tmp_path / "data" / "colours", train=4, test=2)
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    return path


@pytest.fixture
def words(study, clip, frames, tmp_path):
    return [study, "--data", clip, "--evaluation", tmp_path / "data", "--out", tmp_path / "out", "--frames", frames]


def test_a_study_trains_measures_and_tabulates_and_goes_on(run_command, words, tmp_path, one_thread, capsys):
    out = tmp_path / "out"
    words += ["--run.steps=2", "--run.workers=0"]
    assert run_command(main, *words, "--rows", "random", "vfd") is None
    capsys.readouterr()
    weights = weights_sha256(out / "vfd-seed0" / "encoder")
    measured = (out / "results" / "colours-vfd.json").stat().st_mtime_ns
    assert run_command(main, *words) is None
    printed = capsys.readouterr().out
    assert weights_sha256(out / "vfd-seed0" / "encoder") == weights
    assert (out / "results" / "colours-vfd.json").stat().st_mtime_ns == measured
    summary = json.loads((out / "study.json").read_text())
    assert list(summary["rows"]) == list(STUDY["rows"])
    for name, row in summary["rows"].items():
        result = json.loads((out / "results" / f"colours-{name}.json").read_text())
        assert row["figures"]["mIoU"] == [result["figures"]["miou"]]
        assert result["arguments"]["steps"] == 20
    assert json.loads((out / "results" / "colours-random.json").read_text())["model"]["architecture"].startswith(
        "vit_tiny"
    )
    assert printed.endswith((out / "study.md").read_text() + "\n")
    with Image.open(out / "study.png") as picture:
        assert len(set(picture.convert("L").tobytes())) > 10


def test_a_study_goes_on_from_one_made_elsewhere(run_command, words, tmp_path, one_thread, capsys):
    words += ["--run.steps=1", "--run.workers=0"]
    assert run_command(main, *words, "--rows", "random") is None
    there = tmp_path / "there"
    (tmp_path / "out").rename(there)
    first = json.loads((there / "study.json").read_text())["rows"]["random"]["figures"]["mIoU"]
    more = ["--rows", "random", "--seeds", "2", "1", "--earlier", there / "study.json"]
    assert run_command(main, *words, "--run.precision=fp32", *more) is None
    summary = json.loads((tmp_path / "out" / "study.json").read_text())
    second, third = (
        json.loads((tmp_path / "out" / "results" / f"colours-random-seed{seed}.json").read_text())["figures"]["miou"]
        for seed in (1, 2)
    )
    assert summary["seeds"] == [0, 1, 2]
    assert summary["rows"]["random"]["figures"]["mIoU"] == [*first, second, third]
    assert summary["rows"]["vfd"]["figures"]["mIoU"] == [None] * 3
    words += ["--run.precision=fp32"]
    assert run_command(main, *words, "--rows", "random", "--earlier", tmp_path / "out" / "study.json") is None
    assert json.loads((tmp_path / "out" / "study.json").read_text()) == summary

    (tmp_path / "out").rename(tmp_path / "unused")
    told = run_command(main, *words, "--run.batch_size=3", *more)
    assert "the earlier study is another: its base smoke --run.steps=1 --run.workers=0, not smoke " in told
    assert not (tmp_path / "out").exists()
    (there / "study.json").write_text("{}")
    assert "study.json is not the study.json of a study" in run_command(main, *words, *more)


def test_a_row_that_has_become_another_is_not_joined():
    study = {"recipe": ["smoke"], "settings": [], "seeds": [0], "measures": {}}
    before = {**study, "rows": {"a": {"clips": 7, "steps": 1, "figures": {"mIoU": [1.0]}}}}
    now = {**study, "rows": {"a": {"clips": 8, "steps": 1, "figures": {"mIoU": [2.0]}}}}
    with pytest.raises(InputError, match=r"its a's clips 7, not 8"):
        joined(before, now)
    now["rows"] = {"a": before["rows"]["a"] | {"figures": {"mIoU": [2.0]}}, "b": {"figures": {"mIoU": [3.0]}}}
    assert joined(before, now) == now
    more = joined(before, {**now, "seeds": [1]})
    assert more["seeds"] == [0, 1]
    assert {name: row["figures"]["mIoU"] for name, row in more["rows"].items()} == {"a": [1.0, 2.0], "b": [None, 3.0]}


def test_a_row_says_the_clips_of_its_own_figures_though_a_step_is_counted_otherwise_now():
    study = {"recipe": ["smoke"], "settings": [], "measures": {}}
    before = {**study, "seeds": [0], "rows": {"a": {"clips": 1000, "figures": {"mIoU": [1.0]}}}}
    now = {"clips": 996, "steps": 249, "share": 1.0}
    row = joined(before, {**study, "seeds": [1], "rows": {"a": {**now, "figures": {"mIoU": [None]}}}})["rows"]["a"]
    assert (row["clips"], row["figures"]["mIoU"]) == (1000, [1.0, None])
    row = joined(before, {**study, "seeds": [1], "rows": {"a": {**now, "figures": {"mIoU": [2.0]}}}})["rows"]["a"]
    assert (row["clips"], row["figures"]["mIoU"]) == (996, [1.0, 2.0])
    with pytest.raises(InputError, match=r"its a's clips 1000, not 960"):
        joined(before, {**study, "seeds": [1], "rows": {"a": {**now, "clips": 960, "figures": {"mIoU": [2.0]}}}})


def test_a_study_that_is_stopped_measures_nothing_and_goes_on(run_command, words, tmp_path, one_thread, monkeypatch):
    only = [*words, "--run.steps=3", "--run.workers=0", "--rows", "vfd"]
    train_step = Trainer._train_step

    def stopping(trainer, batches, bar):
        train_step(trainer, batches, bar)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", stopping)
        assert run_command(main, *only) == "error: stopped; the same command goes on"
    assert not (tmp_path / "out" / "results").exists()
    assert run_command(main, *only) is None
    assert [row["step"] for row in read_log(tmp_path / "out" / "vfd-seed0" / "log.jsonl")] == [1, 2, 3]
    assert (tmp_path / "out" / "results" / "colours-vfd.json").is_file()


def test_a_result_of_other_weights_or_settings_is_measured_again(run_command, words, tmp_path, one_thread):
    only = [*words, "--run.steps=1", "--rows", "random"]
    assert run_command(main, *only) is None
    path = tmp_path / "out" / "results" / "colours-random.json"
    result = json.loads(path.read_text())
    for change in ({"arguments": {**result["arguments"], "steps": 1000}}, {"model": {"name": "other"}}):
        path.write_text(json.dumps({**result, **change, "figures": {"miou": -1}}))
        assert run_command(main, *only) is None
        assert json.loads(path.read_text())["figures"] == result["figures"]
    path.write_text("{")
    assert run_command(main, *only) is None
    assert json.loads(path.read_text())["figures"] == result["figures"]


def test_rows_have_equal_arithmetic(study, clip, frames):
    recipes, facts = plan(read_study(str(study)), [clip], frames, ["--run.steps=200"])
    assert recipes["dino"].method == "dino"
    assert recipes["dino"].views.local_views == 2
    assert recipes["dino"].views.global_size == read_recipe("smoke").views.global_size
    assert recipes["vfd"].run.steps == facts["vfd"]["steps"] == 200
    assert facts["dino"]["steps"] > 200
    assert facts["dino"]["pflop"] == pytest.approx(facts["vfd"]["pflop"], rel=0.01)


def test_a_row_goes_on_from_what_another_left(run_command, words, study, tmp_path, one_thread):
    rows = {"half": {"share": 0.5}, "other-half": {"share": 0.5, "after": "half"}}
    study.write_text(yaml.safe_dump({**STUDY, "rows": rows}, sort_keys=False))
    words += ["--run.steps=4", "--run.workers=0"]
    assert "half-seed0/handover, from which a row is to go on" in run_command(main, *words, "--rows", "other-half")
    assert run_command(main, *words) is None
    facts = json.loads((tmp_path / "out" / "other-half-seed0" / "run.json").read_text())
    assert [run["steps"] for run in facts["runs_before"]] == [2]
    assert len(read_log(tmp_path / "out" / "other-half-seed0" / "log.jsonl")) == 2
    study.write_text(yaml.safe_dump({**STUDY, "rows": dict(reversed(rows.items()))}, sort_keys=False))
    assert "other-half is to go on after half, which is no row above it" in run_command(main, *words)


@pytest.mark.parametrize("start", [None, "nota/vfd-vits16", "run"])
def test_what_the_rows_start_from_is_a_row(study, tmp_path, start):
    study.write_text(yaml.safe_dump({**STUDY, "rows": {"start": {"model": "{start}"}, "vfd": None}}))
    base = read_recipe(
        "smoke", [] if start is None else [f"--run.init_from={tmp_path / start if start == 'run' else start}"]
    )
    if start == "run":
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "recipe.yaml").write_text(base.to_yaml())
    expected = {None: "random:vit_tiny_patch16_224", "run": str(tmp_path / "run" / "encoder")}.get(start, start)
    assert with_names_of(read_study(str(study)), base).rows["start"].model == expected


def test_post_training_has_a_control_of_equal_steps_for_each_method(clip, frames):
    chosen = read_study("posttrain")
    small = ["--run.steps=400", "--backbone.architecture=vit_tiny_patch16_224"]
    recipes, facts = plan(chosen, [clip], frames, [*options(chosen.settings), *small])
    for method in ("vfd", "timet", "paka"):
        moving, still = recipes[method], recipes[f"{method}-image-only"]
        assert facts[method] == facts[f"{method}-image-only"]
        assert moving == replace(still, clips=replace(still.clips, still=False))
        assert (moving.backbone.train_blocks, moving.optimizer.backbone_scale) == (2, 0.1)
        assert facts[method]["pflop"] == pytest.approx(facts["vfd"]["pflop"], rel=0.02)


@pytest.mark.parametrize("name", names_in(STUDIES))
def test_every_study_can_be_planned(name, clip, frames, monkeypatch):
    monkeypatch.setattr("training.studies.study._flops", lambda recipe, stores: 1e9)
    chosen = read_study(name)
    recipes, _ = plan(chosen, [clip], frames, options(chosen.settings))
    assert all(recipe.run.steps for recipe in recipes.values())


def test_the_table():
    rows = {"one": {"clips": 7, "figures": {"a": [1.0, 2.0], "b": [None, None]}}, "two": {"figures": {"a": [3.0]}}}
    rows["two"]["figures"]["b"] = [None]
    assert table({"rows": rows}).splitlines()[2:] == ["| one | 7 | 1.50 [-4.85, 7.85] |  |", "| two |  | 3.00 |  |"]
    rows["two"]["published"] = {"paper": 18.3}
    header, _, *lines = table({"rows": rows}).splitlines()
    assert header == "|  | clips | a | b | paper |"
    assert lines == ["| one | 7 | 1.50 [-4.85, 7.85] |  |  |", "| two |  | 3.00 |  | 18.3 |"]


def test_what_cannot_be_is_refused_before_training(run_command, words, tmp_path):
    start = time.monotonic()
    assert "the study has no rows nothing; it has random, vfd, dino" in run_command(main, *words, "--rows", "nothing")
    (tmp_path / "data" / "colours").rename(tmp_path / "data" / "elsewhere")
    assert "there is no" in run_command(main, *words)
    assert time.monotonic() - start < 10
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"no study 'nothing'; give a YAML file or one of: .*methods"):
        read_study("nothing")
    (tmp_path / "wrong.yaml").write_text("rows: {a: {unknown: 1}}")
    with pytest.raises(InputError, match="is not a study"):
        read_study(str(tmp_path / "wrong.yaml"))


def test_a_word_that_no_measure_has_is_told_before_training(run_command, words, study, tmp_path, capsys):
    for wrong, message in (
        ({"columns": {"mIoU": "colors miou"}}, "the column 'mIoU' is of 'colors miou', and the measures are colours"),
        ({"measures": {"colours": "linear-segmentation --data colours --setps 20"}}, "arguments: --setps 20"),
    ):
        study.write_text(yaml.safe_dump({**STUDY, **wrong}))
        told = run_command(main, *words, "--run.steps=1")
        assert message in f"{told}{capsys.readouterr().err}"
        assert not (tmp_path / "out").exists()
    facts = ("protocol", "model", "seed", "setting", "data")
    result = {**{name: {} for name in facts}, "figures": {"miou": 1.0}}
    write_json(tmp_path / "results" / "colours-random.json", result)
    with pytest.raises(InputError, match=r"colours-random\.json has no figure mIoU; it has miou"):
        read_figure(tmp_path / "results", Subject("random", "random"), "colours mIoU")


def test_a_recipe_on_top_of_another_keeps_what_it_does_not_name(run_command, clip, tmp_path):
    below, above = read_recipe("cpu"), read_recipe(["cpu", "dino-pre-crop"])
    assert above.method == "dino"
    assert above.objective.head == below.objective.head
    assert above.views.pre_crop_area == below.views.pre_crop_area
    assert (above.clips.frames, above.clips.balance) == (1, below.clips.balance)
    tiny = read_recipe(["cpu", "tiny", "dino-frames"], ["--run.steps=7"])
    assert (tiny.objective.head.hidden, tiny.run.steps, tiny.views.pre_crop_area) == (512, 7, None)
    assert read_recipe(["cpu", "tiny"]).objective.predictor.heads == 3
    words = ["--data", clip, "--out", tmp_path / "run", "--recipe", "smoke", "nothing"]
    assert "there is no recipe 'nothing'" in run_command(pretrain_command, *words)
