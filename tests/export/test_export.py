import contextlib
import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from export import cli, parity, pipeline  # noqa: E402
from export.job import Job  # noqa: E402
from export.network import Network  # noqa: E402
from export.pipeline import export  # noqa: E402
from video_distilled_encoder import Encoder, InputError, load_runtime  # noqa: E402
from video_distilled_encoder.files import sha256  # noqa: E402
from video_distilled_encoder.image_files import bundled_photographs, open_image  # noqa: E402
from video_distilled_encoder.resize import weights  # noqa: E402
from video_distilled_encoder.runtimes import tensorrt as engines  # noqa: E402
from video_distilled_encoder.runtimes.artefact import SUFFIXES, Artefact, Camera  # noqa: E402

SIZE = (64, 96)
# How far the cosine of a token may be from 1, by precision, on a network of random weights.
TOLERANCE = {"fp32": 1e-6, "fp16": 1e-5, "bf16": 1e-3, "int8": 0.02}


@pytest.fixture(scope="module")
def exported(export_once):
    """Export once in a format and precision; returns the file and its facts."""

    def get(format, precision="fp32"):
        fixed = {} if format == "aoti" else {"precision": precision, "size": SIZE, "batch": (1, 1, 3)}
        out = export_once(format, **fixed)
        return out, Artefact.read(out)

    return get


def cosine(a, b):
    return F.cosine_similarity(a.double(), b.double(), dim=-1).min().item()


@pytest.mark.parametrize(
    ("format", "precision"),
    [
        *itertools.product(["onnx"], ["fp32", "fp16", "int8"]),
        *itertools.product(["openvino"], ["fp32", "fp16", "bf16", "int8"]),
        ("aoti", "fp32"),
    ],
)
def test_every_format_gives_torchs_features(exported, shallow_directory, photograph, format, precision):
    out, artefact = exported(format, precision)
    encoder, runtime = Encoder.from_pretrained(shallow_directory), load_runtime(out)
    images = np.stack([np.asarray(open_image(photograph))] * 5) // np.array([1, 2, 3, 4, 5]).reshape(5, 1, 1, 1)
    images = images.astype(np.uint8)
    expected = encoder.encode(images, size=artefact.size)
    for count in (1, 3, 5):  # more than the largest batch
        got = runtime.encode(images[:count])
        assert got.cls.shape == (count, 64)
        assert got.grid.shape == (count, 64, *(side // 16 for side in artefact.size))
        assert cosine(got.cls, expected.cls[:count]) > 1 - TOLERANCE[precision]
        assert cosine(got.patches, expected.patches[:count]) > 1 - TOLERANCE[precision]
        assert torch.equal(got.grid.flatten(2).transpose(1, 2), got.patches)
    assert artefact.facts["parity"]["patches"]["min_cosine"] > 1 - TOLERANCE[precision]


def test_the_graph_is_typed_fixed_in_size_and_dynamic_in_batch(exported):
    model = onnx.load(exported("onnx")[0])
    ((batch, *sides),) = [i.type.tensor_type.shape.dim for i in model.graph.input]
    assert batch.dim_param == "batch"
    assert [side.dim_value for side in sides] == [3, *SIZE]
    assert [output.name for output in model.graph.output] == ["cls", "patches", "grid"]
    assert "Resize" not in {node.op_type for node in model.graph.node}
    assert model.opset_import[0].version == 20


def test_half_precision_is_typed(exported):
    model = onnx.load(exported("onnx", "fp16")[0])
    large = [t for t in model.graph.initializer if np.prod(t.dims) > 16 and t.data_type != onnx.TensorProto.INT64]
    assert {t.data_type for t in large} == {onnx.TensorProto.FLOAT16}
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_int8_is_explicit_symmetric_and_by_channel(exported):
    out, _ = exported("onnx", "int8")
    graph = onnx.load(out).graph
    values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    quantized = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    dequantized = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in values]
    weights = [node for node in dequantized if values[node.input[0]].ndim == 2]
    assert len(weights) == len(quantized) == 2 * 4  # qkv, proj and both layers of the MLP; nothing inside attention
    assert all(values[node.input[0]].dtype == np.int8 and values[node.input[1]].size >= 64 for node in weights)
    assert all(not values[node.input[2]].any() for node in (*quantized, *weights))
    assert out.stat().st_size < 0.45 * exported("onnx")[0].stat().st_size


def test_int8_of_a_fixed_batch(shallow_directory, tmp_path, photograph):
    export(shallow_directory, tmp_path / "e.onnx", precision="int8", size=SIZE, batch=(2, 2, 2), layer_parity=False)
    expected = Encoder.from_pretrained(shallow_directory).encode(photograph, size=SIZE)
    assert cosine(load_runtime(tmp_path / "e.onnx").encode(photograph).patches, expected.patches) > 0.998


@pytest.mark.parametrize(("count", "judges"), [(2, 1), (4, 1), (5, 1), (8, 2), (400, 100)])
def test_the_images_that_give_int8_its_ranges_do_not_judge_it(count, judges):
    images = [Path(f"{number}.jpg") for number in range(count)]
    job = Job("", None, "", images, {}, Path())
    assert len(job.judging("int8")) == judges
    assert sorted(job.judging("int8") + job.calibrating()) == sorted(images)
    assert job.judging("fp32") == images


def test_int8_says_what_it_is_calibrated_and_compared_on(shallow_directory, tmp_path, photograph, monkeypatch):
    seen = {"ranges": [], "compared": []}
    ranges, compare = Job._input, parity.measure
    monkeypatch.setattr(Job, "_input", lambda *rest: seen["ranges"].append(rest[1]) or ranges(*rest))
    monkeypatch.setattr(parity, "measure", lambda *rest: seen["compared"].extend(rest[-1]) or compare(*rest))
    said = []
    options = {"precision": "int8", "size": SIZE, "layer_parity": False, "progress": said.append}
    artefact = export(shallow_directory, tmp_path / "e.onnx", **options)
    assert (artefact.facts["calibration_images"], artefact.facts["parity_images"]) == (3, 1)
    assert any("ranges of 3 images, compared on 1 that are not among them; give a few hundred" in line for line in said)
    assert (len(seen["ranges"]), len(seen["compared"])) == (3, 1)
    assert not any(torch.equal(seen["compared"][0], image) for image in seen["ranges"])
    (tmp_path / "one").mkdir()
    shutil.copy(photograph, tmp_path / "one")
    with pytest.raises(InputError, match="is the only one; give a folder of some hundreds"):
        export(shallow_directory, tmp_path / "f.onnx", calibration=tmp_path / "one", **options)


def graph_for_tensorrt(directory, folder, **options):
    """Return the graph that is left where TensorRT is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "available", lambda: False)
        with pytest.raises(InputError, match="only its graph"):
            export(directory, folder / "e.engine", format="tensorrt", size=SIZE, layer_parity=False, **options)
    return onnx.load(folder / "e.engine.onnx").graph


def test_an_int8_graph_for_tensorrt_is_half_where_it_is_not_int8(shallow_directory, tmp_path):
    graph = graph_for_tensorrt(shallow_directory, tmp_path, precision="int8")
    assert onnx.TensorProto.FLOAT not in {tensor.data_type for tensor in graph.initializer}
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) == 2 * 4
    casts = [value for node in graph.node if node.op_type == "Cast" for value in (*node.input, *node.output)]
    assert {"pixel_values", "cls", "patches", "grid"} < set(casts)
    assert len(casts) == 2 * 4  # of the input and the outputs alone


def test_weak_channels_are_kept_in_an_int8_graph_for_tensorrt(shallow_directory, tmp_path):
    encoder = Encoder.from_pretrained(shallow_directory)
    weights = encoder.backbone.blocks[0].mlp.fc1.weight
    with torch.no_grad():
        weights[3] *= 0.002 / weights[3].abs().max()
    encoder.save_pretrained(tmp_path / "weak")
    graph = graph_for_tensorrt(tmp_path / "weak", tmp_path, precision="int8")
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    stored = next(t for t in values.values() if t.dtype == np.int8 and t.shape == weights.T.shape)
    assert np.abs(stored[:, 3]).max() > 10


def test_the_json_states_the_facts(exported, shallow_directory):
    out, artefact = exported("onnx")
    stored = json.loads((out.parent / "encoder.onnx.json").read_text())
    assert stored["files"] == {"encoder.onnx": sha256(out)}
    assert stored["facts"]["model"]["weights_sha256"] == sha256(shallow_directory / "model.safetensors")
    assert set(stored["facts"]["parity"]) == {"cls", "patches", "grid"}
    assert stored["facts"]["parity_images"] == len(bundled_photographs())
    assert stored["facts"]["latency_ms"]["median"] <= stored["facts"]["latency_ms"]["p99"]
    assert load_runtime(out).artefact == artefact


@pytest.mark.parametrize(("layout", "crop_mode"), [("NHWC", "center"), ("NCHW", "squash")])
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_camera_frames_are_preprocessed_inside(shallow_directory, tmp_path, photograph, format, layout, crop_mode):
    if format == "openvino":
        pytest.importorskip("openvino")
    out = tmp_path / f"camera{SUFFIXES[format]}"
    camera = Camera(270, 480, layout, crop_mode)
    export(shallow_directory, out, format=format, size=SIZE, camera=camera, layer_parity=False)
    frame = np.asarray(open_image(photograph).resize((480, 270)))
    expected = Encoder.from_pretrained(shallow_directory).encode(frame, size=SIZE, crop_mode=crop_mode)
    runtime = load_runtime(out)
    got = runtime.encode(frame)
    assert cosine(got.patches, expected.patches) > 0.99999
    raw = torch.from_numpy(frame.copy())[None]
    assert torch.equal(runtime.run(raw if layout == "NHWC" else raw.permute(0, 3, 1, 2))["cls"], got.cls)
    if format == "onnx":
        operations = {node.op_type for node in onnx.load(out).graph.node}
        assert "Resize" not in operations  # TensorRT cannot read it
    with pytest.raises(InputError, match="takes frames of 270x480, got 480x854"):
        runtime.encode(photograph)
    with pytest.raises(InputError, match="takes uint8 frames"):
        runtime.run(torch.zeros(1, 270, 480, 3))
    with pytest.raises(InputError, match="leave size and crop_mode out"):
        runtime.encode(frame, size=128)


def test_an_export_fits_images_as_its_encoder_does(shallow_directory, tmp_path, photograph):
    encoder = Encoder.from_pretrained(shallow_directory)
    encoder.config = dataclasses.replace(encoder.config, crop_mode="squash", crop_pct=1.0)
    encoder.save_pretrained(tmp_path / "squash")
    export(tmp_path / "squash", tmp_path / "e.onnx", size=SIZE, layer_parity=False)
    got = load_runtime(tmp_path / "e.onnx").encode(photograph)
    assert cosine(got.patches, encoder.encode(photograph, size=SIZE, crop_mode="squash").patches) > 0.99999


@pytest.mark.parametrize(("given", "used"), [([], "squash"), (["--crop-mode", "center"], "center")])
def test_frames_are_cut_as_the_model_says_unless_told(
    run_command, shallow_directory, tmp_path, photograph, given, used
):
    encoder = Encoder.from_pretrained(shallow_directory)
    encoder.config = dataclasses.replace(encoder.config, crop_mode="squash", crop_pct=1.0)
    encoder.save_pretrained(tmp_path / "squash")
    options = ("--size", "64x96", "--uint8-input", "90x240", "--no-layer-parity", *given)
    out = tmp_path / "e.onnx"
    assert run_command(cli.main, "--format", "onnx", "--model", tmp_path / "squash", "--out", out, *options) is None
    frame = np.asarray(open_image(photograph).resize((240, 90)))
    runtime = load_runtime(out)
    assert runtime.artefact.camera.crop_mode == used
    expected = encoder.encode(frame, size=(64, 96), crop_mode=used).patches
    assert cosine(runtime.encode(frame).patches, expected) > 0.99999


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_dynamic_size(shallow_directory, tmp_path, photograph, format):
    if format == "openvino":
        pytest.importorskip("openvino")
    out = tmp_path / f"any{SUFFIXES[format]}"
    export(shallow_directory, out, format=format, size=SIZE, dynamic_size=True, layer_parity=False)
    encoder, runtime = Encoder.from_pretrained(shallow_directory), load_runtime(out)
    for size, crop_mode in (((64, 96), "center"), ((128, 48), "squash"), (80, "whole")):
        expected = encoder.encode(photograph, size=size, crop_mode=crop_mode)
        got = runtime.encode(photograph, size=size, crop_mode=crop_mode)
        assert got.grid.shape == expected.grid.shape
        assert cosine(got.patches, expected.patches) > 0.99999
    with pytest.raises(InputError, match="height 100 is not a multiple of the patch size"):
        runtime.run(torch.zeros(1, 3, 100, 96))


def test_chosen_outputs_and_layers(shallow_directory, tmp_path, photograph):
    out = tmp_path / "layers.onnx"
    export(shallow_directory, out, size=SIZE, outputs=("grid", "layer_0", "cls", "layer_1"), layer_parity=False)
    encoder, runtime = Encoder.from_pretrained(shallow_directory), load_runtime(out)
    pixels = encoder.preprocess(photograph, size=SIZE)
    assert list(runtime.run(pixels)) == ["grid", "layer_0", "cls", "layer_1"]
    for got, expected in zip(
        runtime.intermediate_layers(pixels), encoder.intermediate_layers(pixels, [0, 1]), strict=True
    ):
        for one, other in zip(got, expected, strict=True):
            assert torch.allclose(one, other, atol=1e-4)
    assert torch.allclose(runtime(pixels).patches, encoder(pixels).patches, atol=1e-4)
    export(shallow_directory, out, size=SIZE, outputs=("cls",), layer_parity=False)
    only_cls = load_runtime(out)
    with pytest.raises(InputError, match="holds cls only"):
        only_cls(pixels)
    with pytest.raises(InputError, match="no intermediate layers"):
        only_cls.intermediate_layers(pixels)


def test_auto_keeps_the_fastest_that_passes(shallow_directory, tmp_path, monkeypatch):
    def fussy(figures, layers, precision):
        if precision == "fp16":
            raise InputError("not near enough")

    said, traced = [], []
    trace = pipeline.onnx.trace
    monkeypatch.setattr(
        pipeline.onnx, "trace", lambda network, path: traced.append(network.dtype) or trace(network, path)
    )
    monkeypatch.setattr(parity, "require", fussy)
    monkeypatch.setattr(pipeline, "time_run", lambda runtime: times(runtime.artefact.precision))
    out = tmp_path / "e.onnx"
    artefact = export(shallow_directory, out, precision="auto", size=SIZE, progress=said.append)
    assert traced == [torch.float32, torch.float16, torch.bfloat16]  # also for int8, and to compare every block
    assert artefact.precision == "int8"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.onnx", "e.onnx.json"]
    assert load_runtime(out).artefact.precision == "int8"
    assert "fp16: not near enough" in said
    assert any(line.startswith("bf16: ONNX Runtime does not compute in bf16 on the CPU") for line in said)


def times(precision):
    median = {"fp16": 1.0, "int8": 2.0, "fp32": 3.0}[precision]
    return pipeline.latency.Latency(median, median, median, median)


def test_an_export_that_differs_is_refused_and_not_written(shallow_directory, tmp_path, monkeypatch):
    class Off(Network):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            with torch.no_grad():
                self.backbone.blocks[1].mlp.fc2.bias[:20] += 3

    monkeypatch.setattr(pipeline, "Network", Off)
    with pytest.raises(
        InputError, match=r"differs from torch: .*cls -?0\..*first block too far off layer_1, worst .*0\."
    ):
        export(shallow_directory, tmp_path / "bad.onnx", size=SIZE)
    assert list(tmp_path.iterdir()) == []


def test_every_block_is_compared(shallow_directory, tmp_path):
    artefact = export(shallow_directory, tmp_path / "e.onnx", size=SIZE, precision="fp16")
    assert list(artefact.facts["layer_parity"]) == [f"layer_{number}" for number in range(2)]
    assert all(0.999 < figures["min_cosine"] < 1 for figures in artefact.facts["layer_parity"].values())


def test_not_a_number_never_passes(exported, shallow_directory):
    runtime = load_runtime(exported("onnx")[0])
    right = runtime.run

    def run(inputs):
        outputs = right(inputs)
        outputs["patches"][0, 3] = float("nan")
        return outputs

    runtime.run = run
    image = torch.zeros(3, 64, 96, dtype=torch.uint8)
    figures = parity.measure(Encoder.from_pretrained(shallow_directory), runtime, [image, image])
    with pytest.raises(
        InputError,
        match=r"patches nan .*; first block too far off layer_0, worst by mean cosine layer_1 nan, layer_0 0\.98",
    ):
        parity.require(
            figures,
            {"layer_0": parity.Parity(0.9, 0.98, 1.0, 0.1, 0.1), "layer_1": parity.Parity(*[float("nan")] * 5)},
            "int8",
        )


def test_compare_against_numpy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 8)), rng.normal(size=(2, 5, 8))
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    got = parity.compare(torch.tensor(a), torch.tensor(b))
    assert got.min_cosine == pytest.approx(cosine.min())
    assert got.mean_cosine == pytest.approx(cosine.mean())
    assert got.max_abs == pytest.approx(np.abs(a - b).max())
    assert got.norm_error == pytest.approx(np.sqrt(((a - b) ** 2).sum() / (a**2).sum()))
    assert got.max_error == pytest.approx(np.abs(a - b).max() / np.abs(a).max())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_outputs_of_another_scale_do_not_pass(precision):
    """Five times too large, and one number far off: a cosine of 1, and one of .99999."""
    tokens = torch.tensor([[3.0, 4.0], [6.0, 8.0]])
    for wrong, name in ((5 * tokens, "error 4.0000, largest 4.0000"), (tokens * 0.6, "error 0.4000, largest 0.4000")):
        figures = parity.compare(tokens, wrong)
        assert figures.min_cosine == pytest.approx(1)
        with pytest.raises(InputError, match=name):
            parity.require({"cls": figures}, {}, precision)
    many = torch.ones(100_000, 2)
    off = many.clone()
    off[7] = 1.5  # which in the norm of all is lost
    figures = parity.compare(many, off)
    assert (figures.norm_error, figures.max_error) == pytest.approx((0.5 / 100_000**0.5, 0.5))
    assert not figures.passes(precision)


def test_command(run_command, shallow_directory, tmp_path, capsys):
    out = tmp_path / "e.onnx"
    fine = ("--format", "onnx", "--model", shallow_directory, "--out", out)
    assert run_command(cli.main, *fine, "--size", "64x96", "--batch", "2", "--no-layer-parity") is None
    printed = capsys.readouterr().out
    assert "cosine min 1.0000000" in printed
    assert "at batch 2" in printed
    assert onnx.load(out).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    assert load_runtime(out).encode(torch.zeros(3, 3, 64, 96)).cls.shape == (3, 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "100x64"], "height 100 is not a multiple of the patch size 16; nearest: 96 and 112"),
        (["--out", "."], "is a directory"),
        (["--out", "e.bin"], "should end in .onnx"),
        (["--model", "nothing"], "neither a directory"),
        (["--batch", "4:2:8"], "a batch range is smallest:usual:largest"),
        (
            ["--outputs", "cls", "head"],
            "outputs are one or more of cls, patches, grid, registers, layer_0 …; got cls, head",
        ),
        (["--outputs", "layer_2"], "outputs are one or more of cls, patches, grid, layer_0 … layer_1, each once"),
        (["--uint8-input", "64x96", "--dynamic-size"], "an input of camera frames needs one fixed size"),
        (["--calibration", "nowhere"], "nowhere holds no images"),
        (["--device", "cuda:99"], "device 'cuda:99'"),
    ],
)
def test_what_does_not_fit_is_one_sentence(run_command, shallow_directory, tmp_path, arguments, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fine = ("--format", "onnx", "--model", shallow_directory, "--out", "e.onnx")
    assert message in run_command(cli.main, *fine, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--crop-mode", "squash"], "are of the frames of --uint8-input HEIGHTxWIDTH, which is not given"),
        (["--layout", "NCHW"], "are of the frames of --uint8-input"),
        (["--optimization-level", "5"], "listed under TensorRT in --help is of --format tensorrt, not onnx"),
    ],
)
def test_options_that_would_do_nothing_are_refused(run_command, tmp_path, options, message, capsys):
    assert run_command(cli.main, "--format", "onnx", "--out", tmp_path / "e.onnx", *options) == 2
    assert message in capsys.readouterr().err


def test_a_tensorrt_option_out_of_range_is_told_before_work(run_command, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "export", lambda *_, **__: pytest.fail("work began"))
    options = ("--format", "tensorrt", "--out", tmp_path / "e.engine", "--optimization-level", "9")
    assert "optimization level is 0 to 5, got 9" in run_command(cli.main, *options)


def test_what_a_format_lacks_is_said(shallow_directory, tmp_path):
    with pytest.raises(InputError, match=r"aoti takes no precision int8; it has fp32, fp16, bf16 and auto"):
        export(shallow_directory, tmp_path / "e.pt2", format="aoti", precision="int8")
    with pytest.raises(InputError, match="the format aoti needs one fixed size"):
        export(shallow_directory, tmp_path / "e.pt2", format="aoti", dynamic_size=True)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("source", "target"), [(14, 20), (14, 14), (14, 9), (3, 40), (24, 2)])
def test_weights_are_torchs_filter(source, target, interpolation):
    lines = torch.randn(1, 1, source, 5, dtype=torch.double)
    expected = F.interpolate(lines, (target, 5), mode=interpolation, antialias=True)
    found = weights(source, target, interpolation, torch.float64, lines.device)
    assert torch.allclose(found @ lines, expected, atol=1e-12)


def test_without_tensorrt_the_graph_and_the_command_are_left(run_command, shallow_directory, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "available", lambda: False)
    out = tmp_path / "e.engine"
    fine = ("--format", "tensorrt", "--model", shallow_directory, "--out", out, "--size", "64", "--batch", "1:2:4")
    error = run_command(cli.main, *fine, "--precision", "fp16", "--no-layer-parity", "--workspace", "2")
    assert "TensorRT is not installed here, so no engine was built, only its graph" in error
    assert "trtexec --onnx=e.engine.onnx --saveEngine=e.engine --stronglyTyped" in error
    assert "--optShapes=pixel_values:2x3x64x64" in error
    assert "--memPoolSize=workspace:2048" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.engine.onnx", "e.engine.onnx.json"]
    assert load_runtime(tmp_path / "e.engine.onnx").artefact.precision == "fp16"
    assert "name a --precision" in run_command(cli.main, *fine, "--precision", "auto")


def test_names_may_hold_what_a_shell_takes_for_a_pattern(shallow_directory, tmp_path):
    out = tmp_path / "[a]" / "encoder[v2].onnx"
    artefact = export(shallow_directory, str(out), size=SIZE, layer_parity=False)
    assert list(artefact.files) == [out.name]
    assert load_runtime(out).encode(torch.zeros(3, 64, 96)).cls.shape == (1, 64)


def test_a_format_that_there_is_not_is_one_sentence(shallow_directory, tmp_path):
    with pytest.raises(InputError, match="a format is one of onnx, openvino, aoti, tensorrt; got 'trt'"):
        export(shallow_directory, tmp_path / "e.engine", format="trt")


@pytest.mark.parametrize(
    ("format", "available", "device", "encoder", "runtime"),
    [
        ("tensorrt", True, None, "cuda", "cuda"),
        ("tensorrt", True, "cuda:1", "cuda:1", "cuda:1"),
        ("tensorrt", False, None, "cpu", "cpu"),
        ("onnx", True, None, "cpu", "cpu"),
        ("openvino", True, "gpu", "cpu", "gpu"),
    ],
)
def test_where_an_export_is_made_and_runs(
    shallow_directory, tmp_path, monkeypatch, format, available, device, encoder, runtime
):
    loaded, jobs = [], []
    load = Encoder.from_pretrained
    monkeypatch.setattr(pipeline.engines, "available", lambda: available)
    monkeypatch.setattr(pipeline, "without_tensorrt", lambda job, *_: jobs.append(job) or "not here")
    monkeypatch.setattr(pipeline, "produce", lambda job, *_: jobs.append(job))
    monkeypatch.setattr(Encoder, "from_pretrained", lambda name, device: loaded.append(device) or load(name))
    with contextlib.suppress(InputError):
        export(shallow_directory, tmp_path / f"e{SUFFIXES[format]}", format=format, device=device)
    assert (loaded, jobs[0].device) == ([encoder], runtime)
