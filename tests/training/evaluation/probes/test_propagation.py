import numpy as np
import pytest
import torch
from PIL import Image

from training.evaluation.data.labels import read_labels
from training.evaluation.probes import propagation
from training.evaluation.probes.propagation import VARIANTS, Variant
from video_distilled_encoder.errors import InputError


def naive(features, labels, variant):
    """The formula, patch by patch, in float64."""
    features = features.double().numpy()
    features = features / np.linalg.norm(features, axis=-1, keepdims=True)
    count, height, width, _ = features.shape
    carried = [labels.double().numpy()]
    for now in range(1, count):
        context = [0, *range(max(now - variant.context, 1), now)]
        frame = np.zeros_like(carried[0])
        for i in range(height):
            for j in range(width):
                found = []
                for then in context:
                    for p in range(height):
                        for q in range(width):
                            if max(abs(p - i), abs(q - j)) <= variant.radius:
                                found.append((features[now, i, j] @ features[then, p, q], carried[then][p, q]))
                found = sorted(found, key=lambda pair: -pair[0])[: variant.top_k]
                weights = np.exp(np.array([cosine for cosine, _ in found]) / variant.temperature)
                frame[i, j] = sum(w * label for w, (_, label) in zip(weights, found, strict=True)) / weights.sum()
        carried.append(frame)
    return np.stack(carried[1:])


@pytest.mark.parametrize(
    ("context", "radius", "top_k", "temperature"), [(2, 2, 3, 0.1), (0, 1, 20, 0.7), (9, 30, 5, 0.05)]
)
def test_equals_the_formula(monkeypatch, context, radius, top_k, temperature):
    torch.manual_seed(0)
    monkeypatch.setattr(propagation, "TILE", 3)
    variant = Variant("", context, radius, top_k, temperature, size=(1, 1))
    features = torch.randn(5, 4, 7, 6)
    labels = torch.rand(4, 7, 3)
    got = torch.stack(list(propagation.propagate(features, labels, variant)))
    assert got.dtype == torch.float32
    assert np.allclose(got, naive(features, labels, variant), atol=1e-5)


def test_the_tiles_do_not_show():
    torch.manual_seed(0)
    features, labels = torch.randn(3, 26, 29, 8).half(), torch.rand(26, 29, 2)
    variant = Variant("", 7, 4, 5, 0.1, size=(1, 1))
    got = torch.stack(list(propagation.propagate(features, labels, variant)))
    assert np.allclose(got, naive(features.float(), labels, variant), atol=1e-5)


def test_equal_features_give_the_mean_of_the_neighbourhood():
    labels = torch.rand(20, 31, 2)
    variant = Variant("", 3, 2, 5, 0.1, size=(1, 1))
    features = torch.linspace(-1, 1, 8).expand(3, 20, 31, 8)
    first, second = propagation.propagate(features, labels, variant)
    assert torch.allclose(first[10, 15], labels[8:13, 13:18].mean((0, 1)), atol=1e-6)
    assert torch.allclose(first[0, 30], labels[:3, 28:].mean((0, 1)), atol=1e-6)
    both = torch.stack([labels[8:13, 13:18], first[8:13, 13:18]])
    assert torch.allclose(second[10, 15], both.mean((0, 1, 2)), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "frame", "patch", "size"),
    [
        ("dino", (480, 854), 16, (480, 832)),
        ("dino", (480, 854), 14, (476, 826)),
        ("dino", (1920, 1080), 16, (832, 480)),
        ("rsp", (480, 854), 16, (480, 880)),
        ("siammae", (480, 910), 14, (476, 868)),
    ],
)
def test_sizes(name, frame, patch, size):
    assert VARIANTS[name].input_size(*frame, patch) == size


def test_a_size_by_width():
    assert Variant("", 1, 1, 1, 0.1, width=880).input_size(720, 1280, 16) == (480, 880)


def test_the_setting_says_every_number():
    assert VARIANTS["dino"].setting() == {
        "variant": "dino",
        "context": 7,
        "radius": 12,
        "top_k": 5,
        "temperature": 0.1,
        "short_side": 480,
        "multiple": 64,
    }


def test_labels_come_back_from_the_grid():
    labels = np.kron(np.random.default_rng(0).choice([0, 3, 9], (5, 6)), np.ones((16, 16))).astype(np.uint8)
    grid = propagation.labels_on_grid(labels, [0, 3, 9], (5, 6))
    assert grid.shape == (5, 6, 3)
    assert torch.equal(grid.sum(-1), torch.ones(5, 6))
    back = propagation.decide(grid, [0, 3, 9], (5, 6))
    assert np.array_equal(back, labels[8::16, 8::16])


def test_channels_are_stretched_before_the_decision():
    carried = torch.zeros(2, 2, 2)
    carried[..., 0] = torch.tensor([[0.92, 1.0], [0.92, 0.8]])
    carried[..., 1] = 1 - carried[..., 0]
    # Stretched, background is .6 1 / .6 0 and the object .4 0 / .4 1: the object wins where it is strongest.
    assert propagation.decide(carried, [0, 7], (2, 2)).tolist() == [[0, 0], [0, 7]]


def test_an_image_that_holds_no_labels(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png is not a single-channel"):
        read_labels(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no")
    with pytest.raises(InputError, match=r"b\.png cannot be read as a label image"):
        read_labels(tmp_path / "b.png")
