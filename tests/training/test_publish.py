import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from training.publish import main
from training.recipes.recipe import read_recipe
from training.releases import publishing
from training.releases.publishing import Weights, check_metadata, publish, render, run_facts
from video_distilled_encoder import Encoder, InputError
from video_distilled_encoder import encoder as encoder_module
from video_distilled_encoder.files import sha256
from video_distilled_encoder.hub import BUNDLED_RELEASES

pytest.importorskip("transformers")


@pytest.fixture
def run(tiny, tmp_path):
    """What `training.pretrain` leaves behind, as far as a release needs it."""
    out = tmp_path / "run"
    tiny.save_pretrained(out / "encoder")
    (out / "recipe.yaml").write_text(read_recipe("smoke").to_yaml())
    (out / "run.json").write_text(json.dumps({"videos": 3, "device": "1 x a processor"}))
    rows = [{"step": step, "loss": 5.0 - step / 10, "seconds": 30.0} for step in range(1, 9)]
    (out / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


@pytest.fixture
def template(tmp_path):
    path = tmp_path / "card.template.md"
    path.write_text(
        "{{run: steps}} steps, {{run: clips}} clips on {{run: device}}; "
        "mIoU {{camvid: probe miou}}, random {{camvid: random miou}}, {{camvid: probe against random}}, "
        "teacher {{camvid: teacher miou}}\n"
    )
    return path


@pytest.mark.parametrize("content", [None, ""])
def test_a_run_without_a_step_is_not_published(run, content):
    (run / "log.jsonl").unlink()
    if content is not None:
        (run / "log.jsonl").write_text(content)
    with pytest.raises(InputError, match=r"has no step in its log\.jsonl"):
        run_facts(run)


def write_result(folder, name, miou, weights=None, seed=0):
    folder.mkdir(exist_ok=True)
    model = {"name": name} | ({"weights_sha256": weights} if weights else {})
    units = {"one": miou - 1, "two": miou + 1}
    result = {
        "protocol": "linear-segmentation",
        "model": model,
        "figures": {"miou": miou, "units": units},
        "setting": {},
        "data": {},
        "seed": seed,
    }
    stem = f"camvid-{name}" + (f"-seed{seed}" if seed else "")
    (folder / f"{stem}.json").write_text(json.dumps(result))


def test_a_release_is_half_precision_checked_and_its_card_filled_in(run, template, tmp_path, tiny, photograph):
    results, out = tmp_path / "results", tmp_path / "probe"
    publish(run, template, results, out, draft=True)
    assert "not measured" in (out / "README.md").read_text()
    weights = sha256(out / "model.safetensors")
    write_result(results, "probe", 31.4, weights)
    for seed, miou in enumerate((15.0, 16.0, 17.0)):
        write_result(results, "random", miou, seed=seed)
    write_result(results, "teacher", 40.0, "1" * 64)  # weights, but not these
    write_result(results, "random-other", 99.0)
    cosine = publish(run, template, results, out)
    assert (out / "README.md").read_text() == (
        "8 steps, 32 clips on 1 x a processor; mIoU 31.40, random 16.00 [13.52, 18.48], "
        "+15.40 [15.40, 15.40], 2 units: larger, teacher 40.00\n"
    )
    assert sha256(out / "model.safetensors") == weights
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.float16}
    expected, got = tiny.encode(photograph).patches, Encoder.from_pretrained(out).encode(photograph).patches
    worst = torch.nn.functional.cosine_similarity(expected, got, dim=-1).min().item()
    assert 0.9999 <= cosine <= 1
    assert worst >= 0.9999


def test_a_missing_number_and_a_result_of_other_weights_are_refused(run, template, tmp_path):
    results = tmp_path / "results"
    write_result(results, "random", 15.9)
    with pytest.raises(
        InputError, match=r"not there: camvid: probe miou, camvid: probe against random, camvid: teacher miou$"
    ):
        publish(run, template, results, tmp_path / "probe")
    write_result(results, "probe", 99.0, weights="0" * 64)
    with pytest.raises(
        InputError, match=r"not there: camvid: probe miou, camvid: probe against random, camvid: teacher miou$"
    ):
        publish(run, template, results, tmp_path / "probe")
    assert not (tmp_path / "probe").exists()


def test_the_table_of_a_study_stands_in_the_card(run, template, tmp_path):
    template.write_text("{{study: methods}}\n")
    with pytest.raises(InputError, match=r"not there: study: methods$"):
        render(template, tmp_path, run, Weights("probe", "0" * 64), draft=False)
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "methods.md").write_text("|  | mIoU |\n")
    assert render(template, tmp_path, run, Weights("probe", "0" * 64), draft=False) == "|  | mIoU |\n"


def test_a_result_that_is_not_json_is_refused(run, template, tmp_path):
    (tmp_path / "camvid-probe.json").write_text("{")
    with pytest.raises(InputError, match=r"camvid-probe\.json is not a result"):
        render(template, tmp_path, run, Weights("probe", "0" * 64), draft=True)


def test_a_pages_figures_are_those_of_results(run_command, run, template, tmp_path, tiny):
    page, results, out = tmp_path / "page.md", tmp_path / "results", tmp_path / "probe"
    (tmp_path / "figures.md").write_text("| these | {{camvid: probe miou}} |\n")
    words = [run, "--card", template, "--results", results, "--out", out, "--draft", "--page", page]
    assert "page.md cannot be read" in run_command(main, *words)
    page.write_text("before\n<!-- figures: figures.md -->\nold\n<!-- end -->\nafter\n")
    assert "not there: camvid: probe miou" in run_command(main, *words)
    write_result(results, "probe", 30.0, "0" * 64)
    assert "not there: camvid: probe miou" in run_command(main, *words)
    assert "old" in page.read_text()
    write_result(results, "probe", 31.4, sha256(out / "model.safetensors"))
    assert run_command(main, *words) is None
    assert page.read_text() == "before\n<!-- figures: figures.md -->\n| these | 31.40 |\n<!-- end -->\nafter\n"
    page.write_text(page.read_text().replace("figures.md", "none.md"))
    assert "none.md, which does not exist" in run_command(main, *words)
    page.write_text("nothing\n")
    assert "page.md has no place for figures" in run_command(main, *words)


def test_a_page_alone_is_filled_in_without_a_run(run_command, tmp_path):
    page, results = tmp_path / "page.md", tmp_path / "results"
    (tmp_path / "figures.md").write_text("{{camvid: random miou}} {{camvid: vfd-vits16 miou}}")
    page.write_text("<!-- figures: figures.md -->\n<!-- end -->\n")
    write_result(results, "random", 15.9)
    write_result(results, "vfd-vits16", 30.0, "0" * 64)
    words = ["--results", results, "--page", page]
    assert "not there: camvid: vfd-vits16 miou" in run_command(main, *words)  # of other weights than the bundled ones
    write_result(results, "vfd-vits16", 30.0, Weights.of(BUNDLED_RELEASES / "nota" / "vfd-vits16").sha256)
    assert run_command(main, *words) is None
    assert page.read_text() == "<!-- figures: figures.md -->\n15.90 30.00<!-- end -->\n"
    assert "give RUN, --card and --out" in run_command(main, "--results", results)


def test_an_entry_of_a_list_is_asked_for_by_its_name(run, template, tmp_path):
    rows = [{"name": "onnx: a_1 int8", "ms": 28.24308}, {"name": "openvino int8", "ms": 25.46872}, {"name": "none"}]
    (tmp_path / "latency.json").write_text(json.dumps({"rows": rows, "sizes": ["224"]}))
    template.write_text("{{latency: rows.openvino int8.ms}} {{latency: rows.onnx: a_1 int8.ms}}")
    assert render(template, tmp_path, run, Weights("probe", "0" * 64), draft=False) == "25.47 28.24"
    template.write_text("{{latency: rows.none.ms}} {{latency: rows.other.ms}} {{latency: sizes.224.ms}}")
    with pytest.raises(InputError, match=r"rows\.none\.ms, latency: rows\.other\.ms, latency: sizes\.224\.ms"):
        render(template, tmp_path, run, Weights("probe", "0" * 64), draft=False)


METADATA = """---
license: apache-2.0
model-index:
- name: probe
  results:
  - task: {{type: image-segmentation}}
    dataset: {{type: camvid, name: CamVid}}
    metrics:
    - {{type: mean_iou, value: {value}}}
---
# A card
"""


def test_metadata_that_the_hub_does_not_read_are_refused(tmp_path):
    check_metadata(METADATA.format(value=31.4), tmp_path)
    check_metadata("# No metadata\n", tmp_path)
    for wrong in (
        METADATA.format(value="16.00 [13.52, 18.48]"),
        METADATA.format(value=1.0).replace("{type: image-segmentation}", "nothing"),
    ):
        with pytest.raises(InputError, match=r"metadata|model-index"):
            check_metadata(wrong, tmp_path)


def test_command(run_command, run, template, tmp_path, capsys):
    arguments = [run, "--card", template, "--results", tmp_path / "none", "--out", tmp_path / "release"]
    assert "asks for numbers that are not there" in run_command(main, *arguments)
    assert run_command(main, *arguments, "--draft", "--card-out", tmp_path / "card.md") is None
    assert (tmp_path / "card.md").read_text() == (tmp_path / "release" / "README.md").read_text()
    assert "smallest cosine of a token" in capsys.readouterr().out


def test_a_release_and_its_picture_go_to_the_hub(run_command, run, template, tmp_path, monkeypatch, capsys):
    sent = {}

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, name, **options):
            return SimpleNamespace(repo_id=name)

        def upload_folder(self, *, repo_id, folder_path, **options):
            sent.update({path.name: path.stat().st_size for path in folder_path.iterdir()})
            return SimpleNamespace(commit_url=f"https://hub/{repo_id}")

        def upload_file(self, *, path_or_fileobj, path_in_repo, repo_id):
            sent[path_in_repo] = path_or_fileobj.read_bytes()

    for module in (publishing, encoder_module):
        monkeypatch.setattr(module, "HfApi", Api)
    (run / "release.pca.png").write_bytes(b"a picture")
    out = tmp_path / "release"
    words = [run, "--card", template, "--results", tmp_path / "none", "--out", out, "--draft"]
    assert run_command(main, *words, "--push-to", "owner/name") is None
    assert capsys.readouterr().out.endswith("https://hub/owner/name\n")
    assert sent["release.pca.png"] == b"a picture"
    assert sent["model.safetensors"] == (out / "model.safetensors").stat().st_size
    assert {"README.md", "config.json", "SHA256SUMS"} <= sent.keys()


def test_a_run_without_its_facts_is_refused_in_a_sentence(run_command, run, template, tmp_path):
    (run / "run.json").unlink()
    words = [run, "--card", template, "--results", tmp_path / "none", "--out", tmp_path / "release"]
    assert "run.json cannot be read" in run_command(main, *words)
    assert not (tmp_path / "probe").exists()
