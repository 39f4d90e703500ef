import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from training.nn import compiling


@pytest.fixture
def compilations(monkeypatch):
    """Count the graphs that are compiled; they run as they are."""
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    torch_compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: torch_compile(f, backend=backend, **options))
    return seen


class OnGpu(torch.Tensor):
    """A tensor of the CPU that says it is on a GPU."""

    is_cuda = True


def test_what_was_counted_first_is_compiled_later(compilations):
    def double(x):
        return 2 * x

    function = compiling.compile_on_gpu(double)
    tensor = torch.ones(3).as_subclass(OnGpu)
    with FlopCounterMode(display=False):
        assert (function(tensor) == 2).all()
    assert not compilations
    assert (function(tensor) == 2).all()
    assert len(compilations) == 1
    assert (function(torch.ones(3)) == 2).all()
    assert len(compilations) == 1


def test_nothing_is_compiled_before_a_gpu_has_work(monkeypatch):
    """Importing torch's compiler takes a second, at each start of a command."""
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("the compiler was asked for"))
    assert (compiling.compile_on_gpu(lambda x: 2 * x)(torch.ones(3)) == 2).all()


def test_a_machine_that_cannot_compile_says_so_once_and_runs_the_parts_as_they_are(monkeypatch, capsys):
    calls = []

    def compile_nothing(function, **options):
        def fail(*arguments):
            calls.append(function)
            raise torch._dynamo.exc.TorchDynamoException("no compiler\nat all")

        return fail

    monkeypatch.setattr(torch, "compile", compile_nothing)
    model = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    monkeypatch.setattr(compiling, "Block", nn.Linear)
    compiling.compile_parts(model)
    for part in model:
        assert part(torch.ones(1, 2)).shape == (1, 2)
    assert len(calls) == 1
    assert capsys.readouterr().err.endswith("cannot be compiled here (no compiler) and runs as it is\n")


def test_blocks_that_are_alike_share_what_is_compiled(compilations):
    model = nn.ModuleList(compiling.Block(16, 2) for _ in range(3))
    compiling.compile_parts(model)
    for tokens in (4, 5, 4):
        x = torch.randn(2, tokens, 16)
        for block in model:
            expected = type(block).forward(block, x)
            assert torch.allclose(block(x), expected, atol=1e-6)
    assert len(compilations) == 2
