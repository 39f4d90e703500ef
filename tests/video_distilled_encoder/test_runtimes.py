import gc
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime")

from video_distilled_encoder import Encoder, InputError, Stream, load_runtime
from video_distilled_encoder.runtimes import artefact as artefacts
from video_distilled_encoder.runtimes.artefact import SUFFIXES
from video_distilled_encoder.runtimes.runtime import Runtime

FORMATS = ["onnx", "openvino", "aoti"]


def resident():
    """Memory of this process in MiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("format", FORMATS)
def test_ten_thousand_calls_neither_grow_nor_drift(export_once, one_thread, format):
    runtime = load_runtime(export_once(format), threads=1)
    pixels = torch.randn(2, 3, 32, 32)
    first = runtime.run(pixels)
    for _ in range(1000):
        runtime.run(pixels)
    gc.collect()
    before = resident()
    for _ in range(10_000):
        last = runtime.run(pixels)
    gc.collect()
    assert resident() - before < 8
    assert all(torch.equal(last[name], first[name]) for name in first)


@pytest.mark.parametrize("format", FORMATS)
def test_threads_share_a_runtime(export_once, shallow_directory, one_thread, format):
    runtime, encoder = load_runtime(export_once(format)), Encoder.from_pretrained(shallow_directory)
    wrong = []

    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(50):
            pixels = torch.randn(1 + seed % 3, 3, 32, 32, generator=generator)
            with torch.no_grad():
                expected = encoder(pixels)
            if not torch.allclose(runtime(pixels).patches, expected.patches, atol=1e-4):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("format", FORMATS)
def test_results_are_the_callers_own(export_once, format):
    runtime = load_runtime(export_once(format))
    first = runtime.run(torch.ones(1, 3, 32, 32))
    kept = {name: output.clone() for name, output in first.items()}
    runtime.run(-torch.ones(1, 3, 32, 32))
    assert all(torch.equal(first[name], kept[name]) for name in kept)


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_run_in_inference_mode_runs_outside_too(export_once, format):
    runtime, pixels = load_runtime(export_once(format)), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        first = runtime.run(pixels)
        for inside in (runtime.run(torch.ones(2, 3, 32, 32)), runtime.encode(torch.ones(3, 32, 32))._asdict()):
            assert not any(output.is_inference() for output in inside.values())
    assert torch.equal(runtime.run(pixels)["patches"], first["patches"])
    torch.nn.Linear(64, 2)(first["cls"]).sum().backward()


@pytest.mark.parametrize("format", FORMATS)
def test_inputs_that_want_gradients_keep_no_graph(export_once, format):
    runtime, pixels = load_runtime(export_once(format)), torch.rand(1, 3, 32, 32)
    expected = runtime.run(pixels)["patches"]
    wanting = pixels.clone().requires_grad_()
    assert torch.equal(runtime.run(wanting)["patches"], expected)
    assert not any(feature.requires_grad for feature in (*runtime(wanting), *runtime.encode(wanting)))
    assert not runtime.preprocess(wanting)[0].requires_grad


@pytest.mark.parametrize("format", FORMATS)
def test_a_runtime_that_is_let_go_frees_its_session_at_once(export_once, format):
    runtime = load_runtime(export_once(format))
    for count in range(1, 4):
        runtime.run(torch.zeros(count, 3, 32, 32))
    session = weakref.ref(runtime._session)
    gc.disable()
    try:
        del runtime
        assert session() is None
    finally:
        gc.enable()


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="threads and files are read from Linux's /proc")
@pytest.mark.parametrize("format", FORMATS)
def test_runtimes_that_are_let_go_leave_no_threads_files_or_memory(export_once, format):
    def use():
        runtime = load_runtime(export_once(format), threads=2)
        for count in (1, 4):
            runtime.run(torch.zeros(count, 3, 32, 32))
        with Stream(runtime) as stream:
            stream.put(np.zeros((32, 32, 3), np.uint8))
            stream.get(20)

    def left():
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

    for _ in range(5):
        use()
    before, memory = left(), resident()
    for _ in range(30):
        use()
    end = time.monotonic() + 20
    while any(now > then for now, then in zip(left(), before, strict=True)):
        assert time.monotonic() < end, f"threads and files: {before}, now {left()}"
        time.sleep(0.01)  # those of OpenMP end a little after the thread that they work for
    if format != "aoti":  # g++ marks what it compiles so that no process lets go of it
        assert resident() - memory < 8


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", ["numpy", "torch", "inference"])
def test_results_are_written_where_they_are_wanted(export_once, format, kind):
    runtime, pixels = load_runtime(export_once(format)), torch.randn(6, 3, 32, 32)
    for count in (1, 3, 4, 6):  # the last in two parts
        expected = runtime.run(pixels[:count])
        shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
        with torch.inference_mode(kind == "inference"):
            out = {
                name: np.full(shape, np.nan, np.float32) if kind == "numpy" else torch.full(shape, torch.nan)
                for name, shape in shapes.items()
            }
        places = {name: torch.as_tensor(array).data_ptr() for name, array in out.items()}
        got = runtime.run(pixels[:count], out=out)
        assert list(got) == list(expected)
        for name in expected:
            assert got[name].data_ptr() == places[name]
            assert torch.equal(torch.as_tensor(out[name]), expected[name])


@pytest.mark.parametrize("format", FORMATS)
def test_memory_may_begin_anywhere_and_a_part_of_the_outputs_be_given(export_once, format):
    runtime, pixels = load_runtime(export_once(format)), torch.randn(2, 3, 32, 32)
    expected = runtime.run(pixels)
    whole = np.zeros((3, 4, 64), np.float32)
    odd = np.zeros(4 * (2 * 64) + 1, np.uint8)[1:].view(np.float32).reshape(2, 64)  # at no multiple of 4 bytes
    got = runtime.run(pixels, out={"patches": whole[1:], "cls": odd})
    assert np.array_equal(whole[1:], expected["patches"])
    assert not whole[0].any()
    assert np.array_equal(odd, expected["cls"])
    assert torch.equal(got["grid"], expected["grid"])


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_runtime_itself_writes_into_the_callers_memory(export_once, monkeypatch, format):
    """What is copied would be copied by torch."""
    runtime, pixels = load_runtime(export_once(format)), torch.randn(4, 3, 32, 32)
    expected = runtime.run(pixels)
    out = {name: np.zeros(tensor.shape, np.float32) for name, tensor in expected.items()}
    given = []
    session = runtime._session
    run = type(session).run
    monkeypatch.setattr(type(session), "run", lambda self, *arguments: given.append(arguments) or run(self, *arguments))
    with monkeypatch.context() as patch:
        for name in ("copy_", "clone", "contiguous"):
            patch.setattr(torch.Tensor, name, lambda self, *_, name=name: self if name == "contiguous" else 1 / 0)
        runtime.run(pixels, out=out)
    ((inputs, outputs),) = given
    assert inputs.data_ptr() == pixels.data_ptr()
    assert {name: tensor.data_ptr() for name, tensor in outputs.items()} == {n: a.ctypes.data for n, a in out.items()}
    if format == "openvino":
        for name, port in session._outputs.items():
            assert session._request.get_tensor(port).data.ctypes.data == out[name].ctypes.data
    for name, tensor in expected.items():
        assert np.array_equal(out[name], tensor)


def test_what_results_cannot_be_written_into_is_one_sentence(export_once):
    runtime, pixels = load_runtime(export_once("onnx")), torch.zeros(2, 3, 32, 32)
    wanted = r"; give contiguous float32 memory of shape \(2, 64\) on cpu$"
    read_only = np.zeros((2, 64), np.float32)
    read_only.flags.writeable = False
    for array, message in (
        (np.zeros((1, 64), np.float32), r"^out\['cls'\] is of shape \(1, 64\)" + wanted),
        (np.zeros((2, 64)), r"^out\['cls'\] holds float64" + wanted),
        (torch.zeros(2, 64, dtype=torch.half), r"^out\['cls'\] holds float16" + wanted),
        (torch.zeros(2, 64, device="meta"), r"^out\['cls'\] lies on meta" + wanted),
        (np.zeros((64, 2), np.float32).T, r"^out\['cls'\] has gaps" + wanted),
        (torch.zeros(1, 64).expand(2, 64), r"^out\['cls'\] has gaps" + wanted),
        (torch.zeros(2, 64).to_sparse(), r"^out\['cls'\] has gaps" + wanted),
        (np.zeros((3, 64))[:, ::2], r"^out\['cls'\] is of shape \(3, 32\) and holds float64 and has gaps" + wanted),
        (read_only, r"^out\['cls'\] (is read-only|cannot be shared by DLPack: .*)"),
        ([0.0], r"^out\['cls'\] is a tensor, or an array with DLPack such as NumPy's; got list$"),
    ):
        with pytest.raises(InputError, match=message):
            runtime.run(pixels, out={"cls": array})
    with pytest.raises(InputError, match=r"^out holds 'head', but this export's outputs are cls, patches, grid$"):
        runtime.run(pixels, out={"head": np.zeros((2, 64), np.float32)})


@pytest.mark.parametrize("format", FORMATS)
def test_arrays_go_in_and_out_by_dlpack_without_copies(export_once, format):
    runtime, pixels = load_runtime(export_once(format)), np.random.default_rng(0).random((2, 3, 32, 32), np.float32)
    outputs = runtime.run(pixels)
    for name, expected in runtime.run(torch.from_numpy(pixels)).items():
        assert torch.equal(outputs[name], expected)
        array, tensor = np.from_dlpack(outputs[name]), torch.from_dlpack(outputs[name])
        assert array.ctypes.data == tensor.data_ptr() == outputs[name].data_ptr()
    features = runtime.encode(pixels.transpose(0, 2, 3, 1))
    for feature in (features.cls, features.patches, features.grid):
        assert np.from_dlpack(feature).ctypes.data == feature.data_ptr()


def test_a_batch_below_the_smallest_is_filled_up(export_once):
    loaded = load_runtime(export_once("onnx"))
    pixels = torch.randn(5, 3, 32, 32)
    expected = loaded.run(pixels)
    runtime = Runtime(replace(loaded.artefact, batch=(3, 3, 4)), loaded._session, lambda: runtime)
    out = {name: np.full(tensor.shape, np.nan, np.float32) for name, tensor in expected.items()}
    runtime.run(pixels, out=out)  # 4, and 1 filled up to 3
    assert all(np.allclose(out[name], expected[name], atol=1e-5) for name in out)


@pytest.mark.parametrize("format", FORMATS)
def test_warm_up_runs_what_will_be_used(export_once, monkeypatch, format):
    runtime = load_runtime(export_once(format))
    shapes = []
    run = type(runtime._session).run
    monkeypatch.setattr(
        type(runtime._session),
        "run",
        lambda self, inputs, outputs: shapes.append(inputs.shape) or run(self, inputs, outputs),
    )
    runtime.warm_up()
    assert set(shapes) == {(1, 3, 32, 32)}
    shapes.clear()
    runtime.warm_up(batches=(2, 6))
    assert set(shapes) == {(2, 3, 32, 32), (4, 3, 32, 32)}
    with pytest.raises(InputError, match=r"takes \(batch, 3, 32, 32\), got \(1, 3, 48, 48\)"):
        runtime.warm_up(sizes=[(48, 48)])


def test_a_package_that_has_its_shapes_checked_takes_one_image(export_once, monkeypatch):
    """As the C++ example does; torch takes a free dimension for 2 or more."""
    monkeypatch.setenv("AOTI_RUNTIME_CHECK_INPUTS", "1")
    runtime = load_runtime(export_once("aoti"))
    assert runtime.run(torch.zeros(1, 3, 32, 32))["cls"].shape == (1, 64)
    with pytest.raises(RuntimeError, match="unmatched dim value"):
        runtime._session._call(torch.zeros(1, 3, 48, 32))


def test_leading_dimensions_as_of_the_encoder(export_once, shallow_directory):
    runtime, encoder = load_runtime(export_once("onnx")), Encoder.from_pretrained(shallow_directory)
    images = torch.rand(2, 3, 3, 40, 50)  # batch, cameras
    got, expected = runtime.encode(images), encoder.encode(images, size=32)
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, atol=1e-4)


def vouch_for(path, **changes):
    """Let the JSON of an export speak of the file as it is now."""
    facts = json.loads(artefacts.sidecar(path).read_text()) | changes
    names = [path.name, *(name for name in facts["files"] if path.with_name(name).is_file())]
    facts["files"] = {name: artefacts.sha256(path.with_name(name)) for name in names}
    artefacts.sidecar(path).write_text(json.dumps(facts))


@pytest.mark.parametrize("format", FORMATS)
def test_damaged_foreign_or_lonely_files_are_refused(export_once, tmp_path, format):
    out = export_once(format)
    copies = {name: tmp_path / name for name in os.listdir(out.parent)}

    def copy():
        for name, path in copies.items():
            path.write_bytes((out.parent / name).read_bytes())
        return tmp_path / out.name

    path = copy()
    assert load_runtime(path).encode(torch.zeros(3, 32, 32)).cls.shape == (1, 64)
    path.write_bytes(out.read_bytes()[:-100])
    with pytest.raises(InputError, match="another sha256"):
        load_runtime(path)
    copy().write_bytes(b"not a network")
    with pytest.raises(InputError, match="another sha256"):
        load_runtime(path)
    vouch_for(path)
    with pytest.raises(InputError, match=f"encoder{SUFFIXES[format]} does not begin as files of the format {format}"):
        load_runtime(path)
    path.write_bytes(out.read_bytes()[:8] + b"not a network")
    vouch_for(path)
    with pytest.raises(InputError, match=f"encoder{SUFFIXES[format]} cannot be loaded by"):
        load_runtime(path)
    artefacts.sidecar(copy()).write_text('{"format": "onnx"')
    with pytest.raises(InputError, match="does not describe an export"):
        load_runtime(path)
    artefacts.sidecar(path).unlink()
    with pytest.raises(InputError, match="copy it along with the export"):
        load_runtime(path)
    with pytest.raises(InputError, match=r"missing\.onnx does not exist"):
        load_runtime(tmp_path / "missing.onnx")


@pytest.mark.parametrize("format", FORMATS)
def test_a_loaded_export_belongs_to_the_process(export_once, tmp_path, format):
    """As `cp` and `rsync --inplace` write over a file."""
    out = export_once(format)
    for name in os.listdir(out.parent):
        (tmp_path / name).write_bytes((out.parent / name).read_bytes())
    runtime, pixels = load_runtime(tmp_path / out.name), torch.randn(2, 3, 32, 32)
    expected = runtime.run(pixels)["cls"]
    for file in tmp_path.iterdir():
        with file.open("r+b") as written:
            written.write(b"\xff" * file.stat().st_size)
    assert torch.equal(runtime.run(pixels)["cls"], expected)


def test_a_signal_is_handled_after_runtimes_of_openvino_are_gone(export_once):
    """Python's handlers run on a stack that OpenVINO's cores give and take away."""
    script = """if True:
        import os, signal, sys
        from video_distilled_encoder import load_runtime
        one, two = (load_runtime(sys.argv[1]) for _ in range(2))
        del one
        del two
        signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
        os.kill(os.getpid(), signal.SIGUSR1)
    """
    result = subprocess.run([sys.executable, "-c", script, export_once("openvino")], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "handled\n"), result.stderr


def test_weights_of_openvino_belong_to_it(export_once, tmp_path):
    out = export_once("openvino")
    for name in ("encoder.xml", "encoder.xml.json"):
        (tmp_path / name).write_bytes((out.parent / name).read_bytes())
    with pytest.raises(InputError, match=r"encoder\.bin does not exist, but belongs to encoder\.xml"):
        load_runtime(tmp_path / "encoder.xml")


@pytest.mark.parametrize(("name", "format"), [("x.onnx", "aoti"), ("x.xml", "aoti"), ("x.onnx", "openvino")])
def test_a_file_runs_as_what_its_name_says(export_once, tmp_path, monkeypatch, name, format):
    """Compiled code under the name of a graph, whatever the JSON says."""
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda *_, **__: pytest.fail("code was run"))
    path = tmp_path / name
    path.write_bytes(b"PK\3\4 compiled code")
    artefacts.sidecar(path).write_bytes(artefacts.sidecar(export_once("onnx")).read_bytes())
    vouch_for(path, format=format)
    with pytest.raises(InputError, match=rf"{name} is of the format {format}, .* end in {SUFFIXES[format]}"):
        load_runtime(path)
    vouch_for(path, format={".onnx": "onnx", ".xml": "openvino"}[path.suffix])
    with pytest.raises(InputError, match=f"{name} does not begin as files of the format"):
        load_runtime(path)
    vouch_for(path, format="pickle")
    with pytest.raises(InputError, match=rf"{name} is of the format pickle; known are onnx, "):
        load_runtime(path)


def test_compiled_code_is_for_its_machine(export_once, monkeypatch):
    out = export_once("aoti")
    here = artefacts.machine(torch.device("cpu"))
    monkeypatch.setattr("video_distilled_encoder.runtimes.aotinductor.machine", lambda _: {**here, "cpu": "ABACUS"})
    with pytest.raises(InputError, match=rf"was made for cpu {here['cpu']} \(here ABACUS\); export it again"):
        load_runtime(out)


@pytest.mark.parametrize(
    ("format", "device", "message"),
    [
        ("onnx", "tpu", "no provider for the device 'tpu'"),
        ("openvino", "npu9", "no device 'npu9'"),
        ("onnx", "cuda:99", "device 'cuda:99'"),
        ("aoti", "cuda:99", "device 'cuda:99'"),
    ],
)
def test_a_missing_device_is_never_replaced_by_another(export_once, format, device, message):
    with pytest.raises(InputError, match=message):
        load_runtime(export_once(format), device=device)


def test_wrong_inputs_are_one_sentence(export_once):
    runtime = load_runtime(export_once("onnx"))
    with pytest.raises(InputError, match=r"takes float32 normalised pixels, got torch\.float16"):
        runtime.run(torch.zeros(1, 3, 32, 32).half())
    with pytest.raises(InputError, match=r"takes \(batch, 3, 32, 32\), got \(1, 3, 32, 48\)"):
        runtime.run(torch.zeros(1, 3, 32, 48))
    with pytest.raises(InputError, match=r"takes \(batch, 3, 32, 32\), got \(3, 32, 32\)"):
        runtime.run(torch.zeros(3, 32, 32))
    with pytest.raises(InputError, match=r"got \(0, 3, 32, 32\), an empty batch"):
        runtime.run(torch.zeros(0, 3, 32, 32))
    with pytest.raises(InputError, match=r"what run\(\) takes is a tensor, or an array with DLPack .*; got list$"):
        runtime.run([torch.zeros(3, 32, 32)])
    with pytest.raises(InputError, match=r"what run\(\) takes cannot be shared by DLPack: .*"):
        runtime.run(np.zeros((1, 3, 32, 32), ">f4"))
    with pytest.raises(InputError, match=r"takes \(batch, 3, 32, 32\), got \(1, 3, 64, 64\)"):
        runtime.encode(torch.zeros(3, 40, 40), size=64)


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_may_be_renamed_together_with_its_files(export_once, tmp_path, format):
    out = export_once(format)
    for name in os.listdir(out.parent):
        (tmp_path / name.replace("encoder", "robot [v2]", 1)).write_bytes((out.parent / name).read_bytes())
    path = tmp_path / out.name.replace("encoder", "robot [v2]")
    pixels = torch.randn(1, 3, 32, 32)
    runtime = load_runtime(path)
    assert torch.equal(runtime(pixels).cls, load_runtime(out)(pixels).cls)
    assert runtime.artefact.files[path.name] == artefacts.sha256(path)
    path.write_bytes(out.read_bytes()[:-1])
    with pytest.raises(InputError, match="another sha256"):
        load_runtime(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": [1, 2]}, r"batch is \[1, 2\]"),
        ({"batch": [4, 2, 8]}, r"smallest:usual:largest, in this order and from 1; got 4:2:8"),
        ({"batch": [0, 1, 8]}, "from 1; got 0:1:8"),
        ({"size": "32"}, "size is '32'"),
        ({"size": [32, 32.5]}, "size is 32.5"),
        ({"patch_size": 0}, "sizes are whole numbers of 1 or more"),
        ({"embed_dim": True}, "embed_dim is True"),
        ({"camera": []}, r"camera is \[\]"),
        ({"camera": {"height": 8}}, "width"),
        ({"camera": {"height": 8, "width": 8, "layout": "CHWN"}}, "frames are CHWN"),
        (
            {"outputs": ["cls", "head"]},
            "outputs are one or more of cls, patches, grid, registers, layer_0 …; got cls, head",
        ),
        ({"outputs": []}, "layer_0 …; got none"),
        ({"outputs": "cls"}, "outputs is 'cls'"),
        ({"mean": [0, 0, None]}, "mean is None"),
        ({"std": [0, 0, 0]}, "std must be positive"),
        ({"files": ["encoder.onnx"]}, "files is"),
        ({"files": {"encoder.onnx": 3}}, r"files\.encoder\.onnx is 3"),
        ({"made_for": None}, "made_for is None"),
        ({"weather": "fine"}, "unknown 'weather'"),
        ({"format": 3}, "format is 3"),
        (None, "'format', 'precision'"),
        ([], "not describe an export"),
        ("null", "it is 'null'"),
    ],
)
def test_a_malformed_json_is_one_sentence(export_once, tmp_path, changes, message):
    out = export_once("onnx")
    facts = json.loads(artefacts.sidecar(out).read_text())
    path = tmp_path / out.name
    path.write_bytes(out.read_bytes())
    content = facts | changes if isinstance(changes, dict) and changes else ({} if changes is None else changes)
    artefacts.sidecar(path).write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as error:
        load_runtime(path)
    error.match(r"encoder\.onnx\.json does not describe an export .* write both anew with vde-export")
    assert "\n" not in str(error.value)


def test_a_json_of_a_later_version_is_told_from_damage(export_once, tmp_path):
    out = export_once("onnx")
    facts = json.loads(artefacts.sidecar(out).read_text())
    assert facts["schema"] == artefacts.SCHEMA
    path = tmp_path / out.name
    path.write_bytes(out.read_bytes())
    artefacts.sidecar(path).write_text(json.dumps({**facts, "schema": artefacts.SCHEMA + 1, "news": 1, "batch": 0}))
    with pytest.raises(InputError, match=r"json was written by a later version of this package; install that one"):
        load_runtime(path)
    del facts["schema"]  # as those written before there was one
    artefacts.sidecar(path).write_text("\ufeff" + json.dumps(facts), encoding="utf-8")
    load_runtime(path)


def test_an_export_runs_where_it_was_made_for_unless_told(export_once, tmp_path, monkeypatch):
    out, opened = export_once("onnx"), []

    def open_session(path, artefact, device, threads):
        opened.append(device)
        return SimpleNamespace(on_gpu=False)

    monkeypatch.setattr("video_distilled_encoder.runtimes.onnxruntime.open_session", open_session)
    path = tmp_path / out.name
    for made_for in ({}, {"device": "cuda"}):
        path.write_bytes(out.read_bytes())
        facts = json.loads(artefacts.sidecar(out).read_text()) | {"made_for": made_for}
        artefacts.sidecar(path).write_text(json.dumps(facts))
        load_runtime(path)
        load_runtime(path, device="cuda:1")
    assert opened == ["cpu", "cuda:1", "cuda", "cuda:1"]
    assert replace(artefacts.Artefact.read(out), format="tensorrt").device == "cuda"


def told_in_a_fork(use):
    """Return the error of a call in a forked process; torch itself may not be used there."""
    reader, writer = os.pipe()
    if not (child := os.fork()):
        signal.alarm(20)  # what waits for a thread that is not there waits for ever
        try:
            use()
        except InputError as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return said


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
@pytest.mark.parametrize("format", FORMATS)
def test_a_runtime_of_a_forked_process_says_so(export_once, one_thread, format):
    runtime = load_runtime(export_once(format), torch.device("cpu"), threads=1)
    pixels = torch.zeros(1, 3, 32, 32)
    runtime.run(pixels)
    for use in (lambda: runtime.run(pixels), lambda: runtime.encode(pixels[0])):
        assert told_in_a_fork(use).startswith("this runtime was loaded before this process was forked")
    with Stream(runtime) as stream:
        for use in (lambda: stream.put(pixels[0]), stream.get, lambda: stream.totals):
            assert told_in_a_fork(use).startswith("this stream was opened before this process was forked")
        with stream._exchange._lock:  # as the worker may hold it at the time
            assert told_in_a_fork(stream.close) == ""
        stream.put(pixels[0])
        assert stream.get(20).number == 0


@pytest.mark.parametrize("threads", [-1, 0, "2", 1.5])
def test_threads_are_a_positive_number(export_once, threads):
    with pytest.raises(InputError, match="threads are a positive number"):
        load_runtime(export_once("onnx"), threads=threads)


@pytest.mark.parametrize("format", FORMATS)
def test_a_pickled_runtime_is_opened_anew_from_its_file(export_once, tmp_path, monkeypatch, format):
    out = export_once(format)
    monkeypatch.chdir(out.parent)
    runtime = load_runtime(out.name, threads=1)
    monkeypatch.chdir(tmp_path)  # a process may have another
    again = pickle.loads(pickle.dumps(runtime))
    assert again is not runtime
    pixels = torch.randn(1, 3, 32, 32)
    assert torch.equal(again.run(pixels)["patches"], runtime.run(pixels)["patches"])
