import csv
import json
import math
import shutil
import signal
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("onnxruntime")
pytest.importorskip("matplotlib")

from export import bench, latency
from export.bench import check_artefact
from export.benchmark import floor, process, rounds, worker
from export.benchmark import plan as plans
from export.benchmark.floor import Floor, count_flops
from export.benchmark.plan import Wanted, needs_export, plan
from export.benchmark.report import Report, failure_lines, table
from export.benchmark.rows import Failure, Result, Row, best
from export.benchmark.subjects import open_subject
from export.latency import Latency
from video_distilled_encoder import Encoder, InputError, ModelConfig
from video_distilled_encoder.errors import InputWarning
from video_distilled_encoder.image_files import bundled_photographs, open_image
from video_distilled_encoder.runtimes.artefact import Artefact, Camera, sidecar

TIMM = "timm:vit_tiny_patch16_224"
CPU = torch.device("cpu")


def answer_here(task, threads, timeout, **arguments):
    """Do in this process what a worker would do: starting one takes seconds."""
    answer = worker.answer(json.loads(json.dumps({"task": task, "threads": threads, "arguments": arguments})))
    if "error" in answer:
        raise InputError(answer["error"])
    return answer["result"]


@pytest.fixture
def in_this_process(monkeypatch, one_thread):
    """Count the tasks done."""
    done = []
    monkeypatch.setattr(rounds, "ask", lambda task, **rest: done.append(task) or answer_here(task, **rest))
    return done


@pytest.fixture
def command_line(tiny_directory, tmp_path):
    return (
        *("--model", tiny_directory, "--size", "64", "--out", tmp_path / "bench", "--seconds", "0.02"),
        *("--rounds", "1", "--threads", "1", "--frame", "90x160"),
    )


def test_command(run_command, in_this_process, command_line, tmp_path, capsys):
    chosen = ("--formats", "torch", "onnx", "tensorrt", "--precisions", "fp32", "--against", TIMM)
    assert run_command(bench.main, *command_line, *chosen) is None
    printed = capsys.readouterr().out
    folder = tmp_path / "bench"
    found = json.loads((folder / "bench.json").read_text())
    assert {row["name"] for row in found["rows"]} == {"torch eager fp32", "onnx fp32", f"{TIMM} fp32"}
    for row in found["rows"]:
        for part in ("network", "end_to_end"):
            assert 0 < row[f"{part}_median_ms"] <= row[f"{part}_p95_ms"] <= row[f"{part}_p99_ms"]
        assert row["preprocessing_share"] == pytest.approx(1 - row["network_median_ms"] / row["end_to_end_median_ms"])
        assert row["images_per_second"] == pytest.approx(1000 / row["network_median_ms"])
        assert row["floor_ratio"] == pytest.approx(row["network_median_ms"] / found["floors"][0]["ms"]["fp32"])
        assert row["speedup_over"] == f"{TIMM} fp32"
        assert row["memory_mib"] > 100
        assert (row["min_cosine"] is None) == (row["kind"] in ("torch", "timm"))
    end_to_end = [row["end_to_end_median_ms"] for row in found["rows"]]
    assert end_to_end == sorted(end_to_end)
    assert next(row for row in found["rows"] if row["kind"] == "timm")["speedup"] == 1
    floor = found["floors"][0]
    assert floor["gflop"] == pytest.approx(vit_flops(64 // 16 * 64 // 16, 64, depth=6) / 1e9)
    assert floor["ms"]["fp32"] == pytest.approx(1000 * floor["gflop"] / floor["gflop_per_second"]["fp32"])
    assert found["machine"]["threads"] == 1
    assert found["machine"]["versions"]["torch"] == version("torch")
    assert "tensorrt fp32" in {failure["name"] for failure in found["failures"]}
    assert "\nnot measured:\n  tensorrt fp32: " in printed
    assert "matmul floor: 0.01 GFLOP take" in printed
    lines = list(csv.DictReader((folder / "bench.csv").open()))
    assert [line["name"] for line in lines] == [row["name"] for row in [*found["rows"], *found["failures"]]]
    assert [float(line["network_median_ms"]) for line in lines[:3]] == [r["network_median_ms"] for r in found["rows"]]
    assert all(line["reason"] for line in lines[3:])
    with Image.open(folder / "bench.png") as picture:
        assert picture.width > 1000
    assert in_this_process.count("export") == 1
    in_this_process.clear()
    assert run_command(bench.main, *command_line, *chosen[:3], "--precisions", "fp32", "--against") is None
    assert "export" not in in_this_process  # the first run's is used again
    assert "speed-up: of the network, over torch eager fp32" in capsys.readouterr().out


def vit_flops(patches, width, depth=12, patch=16, batch=1):
    """Return two for each multiplication and addition, from the architecture on paper."""
    tokens = patches + 1
    linear = 2 * tokens * width * (3 * width + width + 4 * width + 4 * width)
    attention = 2 * 2 * tokens * tokens * width
    return batch * (2 * patches * 3 * patch**2 * width + depth * (linear + attention))


@pytest.mark.parametrize(("size", "batch"), [((224, 224), 1), ((64, 96), 8)])
def test_the_floor_counts_every_product_of_the_network(size, batch):
    patches = size[0] * size[1] // 256
    assert count_flops(ModelConfig(), size, batch) == vit_flops(patches, 384, batch=batch)
    floor = Floor(size, batch, 10.0, {"fp32": 200.0})
    assert floor.ms("fp32") == 50
    assert floor.ms("bf16") is None


def test_a_worker_is_a_process_of_its_own(tiny_directory):
    row = Row("torch", str(tiny_directory), "fp32", (64, 64), 1, "torch eager")
    ballast = np.ones(2**27)  # 1 GiB here is not in the worker's peak
    fields = {name: getattr(row, name) for name in ("kind", "source", "precision", "size", "batch", "label")}
    answer = process.ask("measure", 1, row=fields, frame=(90, 160), device="cpu", seconds=0.02)
    result = Result.of(row, answer)
    assert 100 < result.memory_mib < 1800
    assert worker.peak_memory() > ballast.nbytes + 100 * 2**20
    assert min(result.end_to_end.median, result.network.median) > 0
    assert result.load_seconds > 0


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os, sys; print('about to fail', file=sys.stderr); os.abort()", "with SIGABRT: about to fail"),
        ("raise SystemExit(3)", "with exit status 3"),
    ],
)
def test_a_crash_is_one_line(monkeypatch, code, message):
    monkeypatch.setattr(process, "WORKER", (sys.executable, "-c", code))
    with pytest.raises(InputError, match=message):
        process.ask("measure", 1)


def is_alive(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_task_that_takes_too_long_is_ended_with_all_that_it_started(monkeypatch, tmp_path):
    code = f"""
import os, time
if not os.fork():
    open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
time.sleep(60)
"""
    monkeypatch.setattr(process, "WORKER", (sys.executable, "-c", code))
    begin = time.monotonic()
    with pytest.raises(InputError, match=r"took longer than 5 s and was ended; give it more \(--timeout\)"):
        process.ask("measure", 1, timeout=5)
    assert time.monotonic() - begin < 30
    child = int((tmp_path / "pid").read_text())
    while time.monotonic() - begin < 30 and is_alive(child):
        time.sleep(0.05)
    assert not is_alive(child)


TIMES = {"median": 2.0, "p95": 3.0, "p99": 4.0, "first": 5.0, "calls": 20}
MEASURED = {"network": TIMES, "end_to_end": TIMES, "memory_mib": 300.0, "load_seconds": 1.0}


@pytest.fixture
def ctrl_c():
    """Have Ctrl-C interrupt: a process that a script started in its background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("ctrl_c")
def test_what_was_measured_is_kept_when_it_is_interrupted(
    run_command, monkeypatch, command_line, capsys, tmp_path, number
):
    asked = []

    def ask(task, threads, timeout, **arguments):
        assert timeout == 7
        asked.append(arguments.get("row", {}).get("kind"))
        if task == "matmul_rate":
            raise InputError("its process ended with SIGILL")
        if asked.count("timm") == 1:
            signal.raise_signal(number)
        return MEASURED

    monkeypatch.setattr(rounds, "ask", ask)
    before = signal.getsignal(signal.SIGTERM)
    chosen = ("--formats", "torch", "--precisions", "fp32", "--against", TIMM, "--rounds", "3", "--timeout", "7")
    error = run_command(bench.main, *command_line, *chosen)
    assert error == "error: interrupted; what was measured until then is above and in these files"
    assert signal.getsignal(signal.SIGTERM) is before
    found = json.loads((tmp_path / "bench" / "bench.json").read_text())
    assert found["interrupted"]
    assert [row["name"] for row in found["rows"]] == ["torch eager fp32"]
    assert [(row["name"], row["reason"]) for row in found["failures"]] == [
        (f"{TIMM} fp32", "it was not its turn yet when all was interrupted")
    ]
    printed = capsys.readouterr()
    assert "interrupted: these are the rounds that were over" in printed.out
    assert "no matmul floor in fp32: its process ended with SIGILL" in printed.err
    assert (tmp_path / "bench" / "bench.png").is_file()


def test_exports_of_other_versions_are_made_anew_or_said_to_be_such(
    camera_export, tiny_directory, tmp_path, monkeypatch, recwarn
):
    check_artefact(camera_export, "cpu")
    assert not recwarn.list
    out = tmp_path / camera_export.name
    shutil.copy(camera_export, out)
    artefact = Artefact.read(camera_export)
    older = {name: text for name, text in artefact.facts["versions"].items() if name != "video_distilled_encoder"}
    replace(artefact, facts={**artefact.facts, "versions": older | {"torch": "2.0"}}).write(sidecar(out))
    here = f"video_distilled_encoder of an older version .here {version('video_distilled_encoder')}., torch 2.0 .here"
    asked = []
    monkeypatch.setattr("export.versions.versions", lambda: asked.append(1) or plans.versions())
    wanted = Wanted(tiny_directory, [(64, 64)], [1], ["onnx"], ["fp32"], [], [out], "cpu", tmp_path / "exports")
    check_artefact(out, "cpu")
    with pytest.warns(InputWarning, match=f"was exported by other versions, {here} .*export it again to compare"):
        (own, given), _ = plan(wanted)
    assert len(asked) == 1  # for each artefact
    assert given.label == "camera.onnx of 90x160 frames (by other versions)"
    monkeypatch.setattr(plans, "code_sha256", lambda: "changed")
    assert plan(wanted)[0][0].source != own.source


def test_what_a_library_raises_is_one_line(monkeypatch):
    def broken(*arguments):
        raise RuntimeError("bad kernel\nat 0x00\n")

    monkeypatch.setattr(worker, "open_subject", broken)
    row = {"kind": "torch", "source": "", "precision": "fp32", "size": [64, 64], "batch": 1, "label": ""}
    arguments = {"row": row, "frame": [9, 16], "device": "cpu", "seconds": 1}
    before = torch.get_num_threads()
    answer = worker.answer({"task": "measure", "threads": before, "arguments": arguments})
    assert answer == {"error": "RuntimeError: bad kernel"}


def test_a_row_that_fails_is_listed_and_not_tried_again(run_command, monkeypatch, command_line, capsys, tmp_path):
    asked = []

    def ask(task, threads, timeout, **arguments):
        asked.append((task, arguments.get("row", {}).get("kind")))
        if asked[-1] == ("measure", "timm"):
            raise InputError("its process ended with SIGSEGV")
        if task == "matmul_rate":
            return 100.0
        times = {"median": 2.0, "p95": 3.0, "p99": 4.0, "first": 5.0, "calls": 20}
        return {"network": times, "end_to_end": {**times, "median": 2.5}, "memory_mib": 300.0, "load_seconds": 1.0}

    monkeypatch.setattr(rounds, "ask", ask)
    chosen = ("--formats", "torch", "--precisions", "fp32", "--against", TIMM, "--rounds", "2")
    assert run_command(bench.main, *command_line, *chosen) is None
    printed = capsys.readouterr().out
    assert f"not measured:\n  {TIMM} fp32: its process ended with SIGSEGV" in printed
    assert "* 2.00" in printed
    assert "20.0%" in printed
    assert asked.count(("measure", "timm")) == 1
    assert asked.count(("measure", "torch")) == 2
    only = ("--formats", "torch", "--precisions", "int8", "--against")
    assert "nothing could be measured" in run_command(bench.main, *command_line, *only)
    assert "nothing measured\nmatmul floor" in capsys.readouterr().out


def result(row, network, end_to_end, **facts):
    times = (Latency(value, 2 * value, 3 * value, 9 * value, 20) for value in (network, end_to_end))
    return Result(row, *times, **{"memory_mib": 500.0, **facts})


def test_the_best_round_counts():
    row = Row("onnx", "e.onnx", "fp32", (64, 64), 4, "onnx")
    joined = best([result(row, 5, 6, load_seconds=2.0), result(row, 3, 8, load_seconds=1.0, memory_mib=700.0)])
    assert (joined.network.median, joined.network.p99, joined.network.first) == (3, 9, 45)
    assert (joined.end_to_end.median, joined.end_to_end.first) == (6, 72)
    assert (joined.memory_mib, joined.load_seconds, joined.gpu_memory_mib) == (700, 1, None)
    assert joined.images_per_second == pytest.approx(4000 / 3)
    assert joined.preprocessing_share == 0.5


def test_table_marks_the_fastest_of_each_group_and_says_where_a_row_failed():
    small, large = (64, 64), (224, 224)
    slow, fast = (Row("torch", "", precision, small, 1, "torch eager") for precision in ("fp32", "bf16"))
    camera = Row("onnx", "", "fp16", large, 2, "e.onnx of 720x1280 frames")
    results = [result(slow, 8, 10), result(fast, 2, 11), result(camera, 4, 4.5, preprocessing_inside=True)]
    floors = [Floor(small, 1, 1.0, {"fp32": 1000.0}), Floor(large, 2, 3.0, {"fp32": 1000.0})]
    failures = [Failure(Row("onnx", "", precision, large, 2, "onnx"), "no") for precision in ("fp16", "int8")]
    machine = {"gpu": None, "cpu": "A CPU", "cores": 4, "threads": 2, "load_average": 3.0}
    lines = table(Report(machine, {}, results, floors, failures)).splitlines()
    assert lines[0] == "A CPU, 4 CPU cores, 2 threads used"
    assert "other work is running here (load 3.0)" in lines[1]
    cells = {line.split("  ")[0]: " ".join(line.split("  ", 1)[-1].split()) for line in lines}
    assert cells["torch eager fp32"] == "8.00 16.00 24.00 * 10.00 20.00 30.00 20.0% 125.0 8.00 1.00 72 500"
    assert cells["torch eager bf16"] == "* 2.00 4.00 6.00 11.00 22.00 33.00 81.8% 500.0 2.00 4.00 18 500"
    assert cells[camera.name] == "* 4.00 8.00 12.00 * 4.50 9.00 13.50 500.0 1.33 36 500"
    assert "preprocessing" not in next(line for line in lines if line.startswith("224x224, batch 2"))
    assert failure_lines(failures, several=True) == ["  onnx fp16, int8 (224x224 batch 2): no"]


def test_calls_are_timed_by_turns(monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr(latency.time, "perf_counter", lambda: float(next(ticks)))  # every call takes a second
    order = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    times = latency.measure_in_turns(calls, CPU, seconds=3, least=4, warm_up=1, turn=2)
    assert "".join(order) == "aabb" + 2 * "aabb"
    assert times["a"] == times["b"] == Latency(1000.0, 1000.0, 1000.0, 1000.0, 4)
    assert latency.measure(lambda: None, CPU, seconds=0.5, least=20).calls == 5  # ten times the seconds, not 20 calls


def test_the_gpu_that_computes_is_waited_for_and_no_other(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: waited.append(device))
    latency.measure(lambda: None, torch.device("cuda:1"), seconds=0.0, least=2, warm_up=1)
    assert set(waited) == {torch.device("cuda:1")}
    waited.clear()
    latency.measure(lambda: None, CPU, seconds=0.0, least=2, warm_up=1)
    assert waited == []


def test_plan(tiny_directory, tmp_path):
    wanted = Wanted(
        *(tiny_directory, [(64, 64), (64, 96)], [1, 4], ["torch", "aoti"], None),
        *([TIMM, "transformers:owner/name"], [], "cuda:0", tmp_path / "exports"),
    )
    rows, failures = plan(wanted)
    assert len(rows) == 4 * (3 + 3 + 2)  # three precisions of torch and of aoti, others in fp32 only
    assert {(f.row.name, f.reason) for f in failures} == {
        ("torch eager int8", "torch modules run in fp32, fp16, bf16 here"),
        ("aoti int8", "this format has fp32, fp16, bf16"),
    }
    exports = [row for row in rows if row.kind == "aoti"]
    assert len({row.source for row in exports}) == len(exports)
    assert all(needs_export(row, wanted.cache) for row in exports)
    assert [row.source for row in rows if row.label == "transformers:name"] == ["owner/name"] * 4


@pytest.fixture(scope="module")
def camera_export(export_once, tmp_path_factory):
    made = export_once("onnx", size=(64, 96), camera=Camera(90, 160))
    out = tmp_path_factory.mktemp("camera") / "camera.onnx"
    for one, other in ((made, out), (sidecar(made), sidecar(out))):
        shutil.copy(one, other)
    return out


def test_an_artefact_is_measured_as_it_is(camera_export, tiny_directory, tmp_path, one_thread):
    out = camera_export
    rows, _ = plan(Wanted(tiny_directory, [(64, 64)], [1, 2], [], None, [], [out], "cpu", tmp_path / "exports"))
    assert [(row.name, row.size, row.batch) for row in rows] == [
        ("camera.onnx of 90x160 frames fp32", (64, 96), batch) for batch in (1, 2)
    ]
    assert not needs_export(rows[0], tmp_path / "exports")
    subject = open_subject(rows[1], (720, 1280), "cpu", 1)
    assert subject.facts["preprocessing_inside"]
    assert subject.facts["min_cosine"] > 0.9999
    assert subject.network()["cls"].shape == (2, 64)
    assert torch.equal(subject.end_to_end().cls, subject.network()["cls"])


@pytest.fixture
def their_directory(tmp_path):
    """A model directory as transformers itself writes it."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=16
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "theirs")
    processor = transformers.BitImageProcessor(
        size={"shortest_edge": 248}, image_mean=list(ModelConfig().mean), image_std=list(ModelConfig().std)
    )
    processor.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
def test_other_libraries_models(their_directory, size, one_thread):
    rows = {"timm": Row("timm", "vit_tiny_patch16_224", "fp32", size, 2, TIMM)}
    rows["resnet"] = Row("timm", "resnet10t", "fp32", size, 2, "timm:resnet10t")
    if size[0] == size[1]:
        rows["transformers"] = Row("transformers", str(their_directory), "fp32", size, 2, "transformers:tiny")
    for name, row in rows.items():
        with torch.no_grad():
            subject = open_subject(row, (90, 160), "cpu", 1)
            features = [subject.network(), subject.end_to_end()]
        if name == "transformers":
            features = [output.last_hidden_state for output in features]
        tokens = 1 + size[0] * size[1] // 256
        expected = {
            "timm": (2, tokens, 192),
            "resnet": (2, 512, size[0] // 32, size[1] // 32),
            "transformers": (2, tokens, 64),
        }[name]
        assert [tuple(feature.shape) for feature in features] == [expected] * 2
        assert torch.allclose(*features, atol=1e-4)  # the same frames, prepared twice


def test_transformers_pixels_are_those_of_its_own_processor(their_directory, monkeypatch):
    transformers = pytest.importorskip("transformers")
    seen = []
    model = transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(their_directory))
    forward = type(model).forward
    monkeypatch.setattr(
        type(model), "forward", lambda self, pixels: seen.append(pixels) or forward(self, pixels), raising=True
    )
    row = Row("transformers", str(their_directory), "fp32", (224, 224), 1, "transformers:tiny")
    with torch.no_grad():
        open_subject(row, (90, 160), "cpu", 1).network()
    frame = np.asarray(open_image(bundled_photographs()[0]).resize((160, 90)))
    expected = transformers.AutoImageProcessor.from_pretrained(their_directory)(frame, return_tensors="pt")
    assert torch.allclose(seen[0], expected["pixel_values"])
    ours = Encoder(ModelConfig().build_backbone(), ModelConfig()).preprocess(frame)
    assert (seen[0] - ours).abs().mean() < 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "100"], "height 100 is not a multiple of the patch size 16; nearest: 96 and 112"),
        (["--batch", "0"], "--batch, --threads and --rounds are 1 or more"),
        (["--seconds", "nan"], "--seconds more than 0"),
        (["--device", "cuda:99"], "none of the CUDA GPUs here"),
        (["--device", "gpu"], "none of the CUDA GPUs here"),
        (["--against", "timm:vit_nothing"], "timm has no model 'vit_nothing'"),
        (["--against", "vit_tiny"], "--against takes timm:NAME and transformers:DIR_OR_ID, got 'vit_tiny'"),
        (["--artefact", "nothing.onnx"], "nothing.onnx does not exist; write it with vde-export"),
        (["--model", "nothing"], "neither a directory"),
    ],
)
def test_what_does_not_fit_is_one_sentence(run_command, command_line, arguments, message, tmp_path):
    error = run_command(bench.main, *command_line, *arguments)
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "bench").exists()


@pytest.mark.parametrize(("option", "word"), [("--formats", "caffe"), ("--precisions", "fp8")])
def test_an_unknown_word_is_told_with_those_that_are_known(run_command, command_line, capsys, option, word):
    assert run_command(bench.main, *command_line, option, word) == 2
    assert f"argument {option}: invalid choice: '{word}' (choose from" in capsys.readouterr().err


def test_a_model_transformers_does_not_know(run_command, command_line, tmp_path):
    pytest.importorskip("transformers")
    error = run_command(bench.main, *command_line, "--against", f"transformers:{tmp_path}")
    assert f"transformers cannot load {tmp_path}: " in error
    assert "\n" not in error


def test_an_artefact_for_another_device_is_refused(camera_export, tmp_path):
    check_artefact(camera_export, "cpu")
    check_artefact(camera_export, "cuda:0")  # ONNX itself runs anywhere
    out = tmp_path / camera_export.name
    shutil.copy(camera_export, out)
    replace(Artefact.read(camera_export), made_for={"device": "cuda"}).write(sidecar(out))
    with pytest.raises(InputError, match=r"camera\.onnx was made for cuda; give --device cuda, or export it for cpu"):
        check_artefact(out, "cpu")


def test_without_matplotlib_it_says_so_at_once(run_command, command_line, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "matplotlib is not installed; install it with" in run_command(bench.main, *command_line)


def test_no_figure_is_not_a_number():
    row = Row("torch", "", "fp32", (64, 64), 1, "torch eager")
    records = Report({}, {}, [result(row, 1, 2)], [Floor((64, 64), 1, 1.0, {"fp32": 10.0})], []).records()
    assert not any(isinstance(value, float) and math.isnan(value) for value in records[0].values())


@pytest.mark.parametrize("rate", [1e9, 1e11])
def test_the_floor_keeps_to_its_time_however_slow_the_processor(monkeypatch, rate):
    """A processor without bf16's units does a product of 2048 in a quarter of a minute."""
    sides, spent = [], []

    def product_ms(side, precision, device, seconds):
        sides.append(side)
        once = 2000 * side**3 / rate
        spent.append(max(2 * once, 1000 * seconds))
        return once

    monkeypatch.setattr(floor, "_product_ms", product_ms)
    assert floor.matmul_rate("bf16", "cpu", 2.0) == pytest.approx(rate / 1e9)
    assert sum(spent) < 6000
    assert sides[-1] == (512 if rate == 1e9 else 2048)
