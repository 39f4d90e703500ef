import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training.nn import balance as targets
from training.nn import distillation as loss_module
from training.nn.distillation import distill

M, E, D = 37, 8, 23
TAU_S, TAU_T = 0.1, 0.05


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)

    def unit(rows):
        x = torch.randn(rows, E, generator=generator, dtype=torch.double)
        return torch.nn.functional.normalize(x, dim=-1)

    bias = torch.randn(D, generator=generator, dtype=torch.double)
    return unit(M), unit(D), unit(M), unit(D), bias


def textbook(student, student_prototypes, teacher, teacher_prototypes, bias):
    target = torch.softmax(teacher @ teacher_prototypes.T / TAU_T - bias, -1)
    log_predicted = torch.log_softmax(student @ student_prototypes.T / TAU_S, -1)
    return -(target * log_predicted).sum(-1).mean(), target


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.double, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("chunk", [5, 37, 1000])
def test_loss_and_gradients_equal_the_textbook_in_float64(tensors, dtype, tolerance, chunk):
    ours = [tensor.to(dtype).requires_grad_() for tensor in tensors]
    theirs = [tensor.detach().double().requires_grad_() for tensor in ours]
    result = distill(*ours, student_temperature=TAU_S, teacher_temperature=TAU_T, chunk=chunk)
    expected, target = textbook(*theirs)
    (3 * result.loss).backward()
    (3 * expected).backward()
    assert result.loss.item() == pytest.approx(expected.item(), rel=tolerance)
    for got, reference in zip(ours[:2], theirs[:2], strict=True):
        assert (got.grad - reference.grad).norm() / reference.grad.norm() < tolerance
    assert all(tensor.grad is None for tensor in ours[2:])
    assert result.entropy.item() == pytest.approx(torch.special.entr(target).sum(-1).mean().item(), rel=1e-5)
    assert torch.allclose(result.mean_target.double(), target.mean(0).detach(), atol=1e-6)


def test_weights_replace_the_mean(tensors):
    student, prototypes, teacher, *fixed = tensors
    weights = torch.rand(M, dtype=torch.double)
    weights /= weights.sum()
    temperatures = {"student_temperature": TAU_S, "teacher_temperature": TAU_T}
    rows = [distill(student[i : i + 1], prototypes, teacher[i : i + 1], *fixed, **temperatures).loss for i in range(M)]
    expected = sum(weight * loss for weight, loss in zip(weights, rows, strict=True))
    got = distill(*tensors, **temperatures, weights=weights, chunk=10)
    assert got.loss.item() == pytest.approx(expected.item(), rel=1e-12)


def test_many_prototypes_cost_no_precision():
    generator = torch.Generator().manual_seed(0)
    tokens, prototypes = 160, 65536
    student, teacher = (torch.randn(tokens, E, generator=generator) for _ in range(2))
    weights = torch.nn.functional.normalize(torch.randn(prototypes, E, generator=generator), dim=-1)
    tensors = (student, weights, teacher, weights, torch.zeros(prototypes))
    got = distill(*tensors, student_temperature=TAU_S, teacher_temperature=TAU_T).loss
    expected, _ = textbook(*(tensor.double() for tensor in tensors))
    assert got.item() == pytest.approx(expected.item(), rel=2e-6)


def test_gradcheck(tensors):
    student, prototypes, *fixed = tensors
    inputs = (student.requires_grad_(), prototypes.requires_grad_())

    def loss(s, p):
        return distill(s, p, *fixed, student_temperature=TAU_S, teacher_temperature=TAU_T, chunk=10).loss

    assert torch.autograd.gradcheck(loss, inputs)


def test_under_autocast_logits_are_bf16_products_and_the_rest_is_float32(tensors):
    ours = [tensor.float().requires_grad_() for tensor in tensors]
    with torch.autocast("cpu", torch.bfloat16):
        result = distill(*ours, student_temperature=TAU_S, teacher_temperature=TAU_T)
    result.loss.backward()
    expected, _ = textbook(*tensors)
    assert result.loss.dtype == torch.float32
    assert result.loss.item() == pytest.approx(expected.item(), rel=0.02)
    assert ours[0].grad.dtype == torch.float32


def test_several_of_the_students_tokens_share_one_of_the_teachers(tensors):
    _, prototypes, teacher, *fixed = tensors
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(3 * M, E, generator=generator, dtype=torch.double, requires_grad=True)
    temperatures = {"student_temperature": TAU_S, "teacher_temperature": TAU_T}
    got = distill(student, prototypes, teacher, *fixed, **temperatures, chunk=12)
    expected = distill(student, prototypes, teacher.repeat_interleave(3, 0), *fixed, **temperatures)
    assert got.loss.item() == pytest.approx(expected.loss.item(), rel=1e-12)
    (one,), (other,) = (torch.autograd.grad(result.loss, student) for result in (got, expected))
    assert torch.allclose(one, other, atol=1e-14)
    assert torch.allclose(got.mean_target, expected.mean_target, atol=1e-14)


def test_what_is_watched_keeps_no_graph(tensors):
    student, *rest = tensors
    result = distill(student.requires_grad_(), *rest, student_temperature=TAU_S, teacher_temperature=TAU_T)
    assert result.loss.requires_grad
    assert not result.entropy.requires_grad
    assert not result.mean_target.requires_grad


class Passes(TorchDispatchMode):
    """Counts the bytes that operations read and write in tensors as large as a chunk's logits."""

    def __init__(self, logits):
        super().__init__()
        self.bytes = 0
        self.logits = logits
        self.inside = False

    def count(self, *values):
        large = [x for x in tree_leaves(values) if isinstance(x, torch.Tensor) and x.numel() == self.logits]
        self.bytes += sum(x.numel() * x.element_size() for x in large)

    def as_one(self, function):
        """Count what goes in and out of a function, as when it is compiled to one."""

        def call(*arguments):
            self.count(arguments)
            self.inside = True
            found = function(*arguments)
            self.inside = False
            self.count(found)
            return found

        return call

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if not (self.inside or function.is_view):
            self.count(args, found)
        return found

    @property
    def passes(self):
        return self.bytes / (4 * self.logits)


def count_passes(monkeypatch, kind, dtype, compiled):
    generator = torch.Generator().manual_seed(0)
    tokens, prototypes = 96, 640
    student, teacher = (torch.randn(tokens, E, generator=generator) for _ in range(2))
    weights = torch.nn.functional.normalize(torch.randn(prototypes, E, generator=generator), dim=-1)
    mode = Passes(tokens * prototypes)
    if compiled:
        monkeypatch.setattr(loss_module, "_compare", mode.as_one(loss_module.compare))
        for name in ("_sum_columns", "_use_of_columns"):
            monkeypatch.setattr(targets, name, mode.as_one(getattr(targets, name)))
        # what a GPU multiplies into float32 is first rounded on a CPU: that is not counted
        monkeypatch.setattr(loss_module, "product", lambda a, b: product_to_float32(mode, a, b))
        monkeypatch.setattr(targets, "product", loss_module.product)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16), mode:
        if kind == "loss":
            distill(student, weights, teacher, weights, torch.zeros(prototypes), student_temperature=0.1,
                    teacher_temperature=0.05)  # fmt: skip
        else:
            targets.sinkhorn_bias(teacher, weights, 0.05)
    return mode.passes


def product_to_float32(mode, rows, columns):
    return mode.as_one(lambda a, b: (a @ b).float())(rows, columns)


@pytest.mark.parametrize(
    ("kind", "dtype", "compiled", "most"),
    [
        ("loss", torch.float32, True, 7),
        ("loss", torch.bfloat16, True, 5.5),
        ("loss", torch.float32, False, 26),
        ("sinkhorn", torch.float32, True, 6),
        ("sinkhorn", torch.float32, False, 22),
    ],
)
def test_passes_over_the_logits(monkeypatch, kind, dtype, compiled, most):
    """The usual way, operation by operation, took 39 and 32."""
    found = count_passes(monkeypatch, kind, dtype, compiled)
    assert 0 < found <= most


def test_compiled_it_is_the_same(tensors):
    student, prototypes, teacher, other, bias = (tensor.float() for tensor in tensors)
    arguments = (teacher @ other.T, bias, student @ prototypes.T, torch.full((M,), 1 / M), torch.float32)
    expected = loss_module.compare(*(x.clone() if isinstance(x, torch.Tensor) else x for x in arguments))
    got = torch.compile(loss_module.compare)(*arguments)
    for one, two in zip(got, expected, strict=True):
        assert torch.allclose(one, two, atol=1e-6)
