import pytest
import torch

from training.loss import distill

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
