import pytest
import torch

from export import aoti, parity
from export.benchmark import worker
from video_distilled_encoder.errors import InputError
from video_distilled_encoder.float32 import full_float32
from video_distilled_encoder.runtimes.aotinductor import _run_in_full


def switches():
    """Return what cuBLAS and cuDNN go by."""
    return torch._C._get_cublas_allow_tf32(), torch._C._get_cudnn_allow_tf32()


@pytest.fixture(autouse=True)
def _program():
    """A program that has switched TF32 on."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def test_the_programs_switches_are_as_before_afterwards():
    assert switches() == (True, True)
    with full_float32():
        assert switches() == (False, False)
    assert switches() == (True, True)
    torch.set_float32_matmul_precision("medium")
    with pytest.raises(ZeroDivisionError), full_float32():
        raise ZeroDivisionError
    assert (torch.get_float32_matmul_precision(), switches()) == ("medium", (True, True))


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch 2.9 named them anew")
def test_switches_set_by_their_newer_names_are_read_too():
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cudnn.rnn.fp32_precision = "ieee"
    with pytest.raises(RuntimeError):
        switches()
    with full_float32():
        assert switches() == (False, False)
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert torch.backends.cudnn.conv.fp32_precision != "tf32"


def test_packages_of_aotinductor_are_compiled_and_run_in_full(tiny, monkeypatch, tmp_path):
    seen = [_run_in_full(lambda inputs: switches(), torch.zeros(1))]

    def compile_(*_, **__):
        seen.append(switches())
        raise ValueError("that is enough")

    monkeypatch.setattr(torch.export, "export", lambda *_, **__: None)
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compile_)
    monkeypatch.setattr(aoti, "example", lambda network: None)
    monkeypatch.setattr(aoti, "dynamic_shapes", lambda network: None)
    with pytest.raises(InputError, match="that is enough"):
        aoti.write(tiny, tmp_path / "encoder.pt2", None)
    assert seen == [(False, False)] * 2


def test_exports_are_compared_with_full_float32(tiny):
    seen = set()
    hooks = [module.register_forward_hook(lambda *_: seen.add(switches())) for module in tiny.modules()]
    artefact = type("Artefact", (), {"camera": None, "outputs": ("cls", "layer_1")})
    parity.run_reference(tiny, artefact, [torch.zeros(3, 32, 32, dtype=torch.uint8)], (32, 32))
    for hook in hooks:
        hook.remove()
    assert seen == {(False, False)}


def test_the_benchmark_measures_all_in_full_float32(monkeypatch):
    monkeypatch.setattr(worker, "matmul_rate", lambda: switches())
    request = {"task": "matmul_rate", "threads": torch.get_num_threads(), "arguments": {}}
    assert worker.answer(request) == {"result": (False, False)}
