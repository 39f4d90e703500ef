import json

import numpy as np
import pytest
import torch

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from export import cli, parity  # noqa: E402
from export import onnx as onnx_format  # noqa: E402
from export.network import Network  # noqa: E402
from video_distilled_encoder import Encoder, InputError  # noqa: E402
from video_distilled_encoder.files import sha256  # noqa: E402
from video_distilled_encoder.preprocessing import bundled_photographs  # noqa: E402


@pytest.fixture(scope="module")
def exported(tiny_directory, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "encoder.onnx"
    facts = cli.export(tiny_directory, out, size=(96, 160))
    return out, facts


def test_the_export_gives_torchs_features_at_any_batch(exported, tiny_directory, photograph):
    out, _ = exported
    encoder = Encoder.from_pretrained(tiny_directory)
    run = onnx_format.load(out)
    pixels = encoder.preprocess([photograph] * 3, size=(96, 160)) * torch.tensor([1.0, 0.5, -1.0]).view(3, 1, 1, 1)
    for batch in (pixels[:1], pixels):
        expected = encoder(pixels)
        for name, result in run(batch).items():
            assert torch.allclose(result, getattr(expected, name)[: len(batch)], atol=1e-4), name


def test_the_file_is_typed_fixed_in_size_and_dynamic_in_batch(exported):
    model = onnx.load(exported[0])
    ((batch, *sides),) = [i.type.tensor_type.shape.dim for i in model.graph.input]
    assert batch.dim_param == "batch"
    assert [side.dim_value for side in sides] == [3, 96, 160]
    assert [output.name for output in model.graph.output] == ["cls", "patches", "grid"]
    assert "Resize" not in {node.op_type for node in model.graph.node}
    assert model.opset_import[0].version == 20


def test_the_sidecar_states_the_facts(exported, tiny_directory):
    out, facts = exported
    stored = json.loads((out.parent / "encoder.onnx.json").read_text())
    assert stored == facts
    assert stored["sha256"] == sha256(out)
    assert stored["model"]["weights_sha256"] == sha256(tiny_directory / "model.safetensors")
    assert set(stored["parity"]) == {"cls", "patches", "grid"}
    assert all(figures["min_cosine"] >= 0.9999 for figures in stored["parity"].values())
    assert len(stored["parity_images"]) == 4


def test_half_precision_is_typed(tiny_directory, tmp_path):
    cli.export(tiny_directory, tmp_path / "half.onnx", precision="fp16", size=(64, 64))
    model = onnx.load(tmp_path / "half.onnx")
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    assert {t.data_type for t in model.graph.initializer} <= {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64}


def test_an_export_that_differs_is_refused_and_not_written(tiny_directory, tmp_path, monkeypatch):
    class Off(Network):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            with torch.no_grad():
                self.encoder.backbone.norm.bias[:8] += 0.3

    monkeypatch.setattr(cli, "Network", Off)
    with pytest.raises(InputError, match=r"differs from torch: smallest cosine of a token cls 0\.99"):
        cli.export(tiny_directory, tmp_path / "bad.onnx", size=(64, 64))
    assert list(tmp_path.iterdir()) == []


def test_not_a_number_never_passes(tiny):
    def run(pixels):
        out = tiny(pixels)._asdict()
        out["patches"] = out["patches"].clone()
        out["patches"][0, 3] = float("nan")
        return {name: value.detach() for name, value in out.items()}

    with pytest.raises(InputError, match="patches nan"):
        parity.check(tiny, (64, 64), run, bundled_photographs())


def test_compare_against_numpy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 8)), rng.normal(size=(2, 5, 8))
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    got = parity.compare(torch.tensor(a), torch.tensor(b))
    assert got.min_cosine == pytest.approx(cosine.min())
    assert got.mean_cosine == pytest.approx(cosine.mean())
    assert got.max_abs == pytest.approx(np.abs(a - b).max())


def test_command(run_command, tiny_directory, tmp_path, capsys):
    out = tmp_path / "e.onnx"
    assert run_command(cli.main, "--format", "onnx", "--model", tiny_directory, "--out", out, "--size", "64") is None
    assert "cosine min" in capsys.readouterr().out
    error = run_command(cli.main, "--format", "onnx", "--model", tiny_directory, "--out", out, "--size", "100x64")
    assert "height 100 is not a multiple of the patch size 16; nearest: 96 and 112" in error
    assert "is a directory" in run_command(cli.main, "--format", "onnx", "--model", tiny_directory, "--out", tmp_path)
    assert "neither a directory" in run_command(cli.main, "--format", "onnx", "--model", "nothing", "--out", out)


def test_a_damaged_file_and_a_missing_provider_are_one_sentence(exported, tmp_path):
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(exported[0].read_bytes()[:5000])
    with pytest.raises(InputError, match=r"bad\.onnx cannot be loaded by ONNX Runtime"):
        onnx_format.load(bad)
    with pytest.raises(InputError, match="no provider for the device 'tpu'"):
        onnx_format.load(exported[0], device="tpu")
