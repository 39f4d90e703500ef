import math

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import jaccard_score

from training.evaluation.data.labels import VOID
from training.evaluation.metrics import segmentation as metrics


def square(top, left, side=40, shape=(96, 128)):
    mask = np.zeros(shape, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def blobs(seed, shape=(60, 83)):
    coarse = np.random.default_rng(seed).random((shape[0] // 10 + 1, shape[1] // 10 + 1)) < 0.4
    return np.kron(coarse, np.ones((10, 10), bool))[: shape[0], : shape[1]]


def slow_boundary(mask):
    """The benchmark's boundary map, pixel by pixel."""
    height, width = mask.shape
    found = set()
    for y in range(height):
        for x in range(width):
            right = mask[y, x + 1] if x + 1 < width else False
            below = mask[y + 1, x] if y + 1 < height else False
            diagonal = mask[y + 1, x + 1] if x + 1 < width and y + 1 < height else False
            here = mask[y, x]
            if y == height - 1 and x == width - 1:
                continue
            if y == height - 1:
                differs = here != right
            elif x == width - 1:
                differs = here != below
            else:
                differs = here != right or here != below or here != diagonal
            if differs:
                found.add((y, x))
    return found


def slow_f(mask, truth):
    radius = math.ceil(0.008 * math.hypot(*mask.shape))
    found, wanted = slow_boundary(mask), slow_boundary(truth)

    def share(points, others):
        near = [any((y - v) ** 2 + (x - u) ** 2 <= radius**2 for v, u in others) for y, x in points]
        return sum(near) / len(near)

    if not found or not wanted:
        precision, recall = (0, 1) if found else (1, 0) if wanted else (1, 1)
    else:
        precision, recall = share(found, wanted), share(wanted, found)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_definition_pixel_by_pixel(seed):
    mask, truth = blobs(seed), np.roll(blobs(seed + seed % 2), (seed, 2), (0, 1))
    assert set(zip(*np.nonzero(metrics.boundary(mask)), strict=True)) == slow_boundary(mask)
    assert metrics.boundary_accuracy(mask, truth) == pytest.approx(slow_f(mask, truth), abs=1e-12)
    both = sum(a and b for a, b in zip(mask.flat, truth.flat, strict=True))
    either = sum(a or b for a, b in zip(mask.flat, truth.flat, strict=True))
    assert metrics.region_similarity(mask, truth) == pytest.approx(both / either)


def test_known_values():
    mask, empty = square(20, 30), np.zeros((96, 128), bool)
    assert metrics.region_similarity(mask, mask) == metrics.boundary_accuracy(mask, mask) == 1
    assert metrics.region_similarity(empty, empty) == metrics.boundary_accuracy(empty, empty) == 1
    assert metrics.region_similarity(mask, empty) == metrics.boundary_accuracy(mask, empty) == 0
    assert metrics.boundary_accuracy(empty, mask) == 0
    # The diagonal is 160, so boundaries may be ceil(1.28) = 2 pixels apart.
    assert metrics.region_similarity(mask, square(20, 40)) == pytest.approx(30 / 50)
    assert metrics.boundary_accuracy(mask, square(20, 32)) == 1
    assert metrics.boundary_accuracy(square(2, 2), square(50, 80)) == 0


def test_a_shifted_square_by_hand():
    mask, shifted = square(20, 30), square(20, 40)
    assert metrics.region_similarity(mask, shifted) == pytest.approx(30 / 50)
    # Each boundary is the rim of 41 x 41 pixels, 160 in all; near is 2 pixels. The horizontal sides share 31 columns,
    # and 2 beyond are near. A vertical side is 10 columns from the other's: only what lies right below a rim is near.
    horizontal = 2 * (31 + 2)
    ends = 2 * 2
    assert metrics.boundary_accuracy(mask, shifted) == pytest.approx((horizontal + ends) / 160)


def test_two_crossing_lines_by_hand():
    # A mask's right half and its upper half: each boundary is one line of 40, crossing the other at one pixel.
    right, upper = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    right[:, 20:] = True
    upper[:20] = True
    # Diagonal 56.6, radius 1: of a line's 40 pixels, those 1 to either side of the other line are near: 3 of 40.
    assert metrics.boundary_accuracy(right, upper) == pytest.approx(3 / 40)
    assert metrics.region_similarity(right, upper) == pytest.approx(1 / 3)


def test_dilation_is_a_disk():
    points = np.zeros((9, 9), bool)
    points[4, 4] = True
    grown = metrics.dilate(points, 2)
    assert grown.sum() == 13
    assert grown[2, 4]
    assert not grown[2, 3]


def test_statistics_are_the_benchmarks():
    values = np.array([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    # Borders of the quarters, in frames from 1: 1, 2.75, 4.5, 6.25, 8 -> 1, 3, 5, 6, 8.
    got = metrics.statistics(values)
    assert got.mean == pytest.approx(0.65)
    assert got.recall == pytest.approx(5 / 8)
    assert got.decay == pytest.approx(0.9 - 0.4)
    assert metrics.statistics(np.array([0.7])) == (0.7, 1, 0)


def test_the_score_equals_scikit_learns():
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 2, 5, VOID], size=(40, 50))
    prediction = rng.choice([0, 1, 2, 5], size=(40, 50))
    got = metrics.confusion_matrix(torch.tensor(prediction), torch.tensor(labels, dtype=torch.uint8), 11)
    valid = labels != VOID
    expected = sklearn_confusion(labels[valid], prediction[valid], labels=range(11))
    assert np.array_equal(got, expected)
    iou = metrics.intersection_over_union(got)
    assert np.isnan(iou[[3, 4, 6, 7, 8, 9, 10]]).all()
    theirs = jaccard_score(labels[valid], prediction[valid], labels=[0, 1, 2, 5], average=None)
    assert np.allclose(iou[[0, 1, 2, 5]], theirs)


def test_how_sure_a_mean_iou_is_by_units():
    rng = np.random.default_rng(0)
    units = {f"v{number}": rng.integers(0, 50, (3, 3)) + np.diag([200, 100, 10 * number]) for number in range(5)}
    figures = metrics.figures_by_unit(units, ("a", "b", "c"))
    matrices = list(units.values())

    def miou(chosen):
        total = sum(chosen)
        return np.mean([total[k, k] / (total[k].sum() + total[:, k].sum() - total[k, k]) for k in range(3)])

    assert figures["miou"] == round(100 * miou(matrices), 2)
    parts = [5 * miou(matrices) - 4 * miou(matrices[:k] + matrices[k + 1 :]) for k in range(5)]
    assert list(figures["units"].values()) == pytest.approx([100 * part for part in parts], abs=0.006)
    assert np.mean(list(figures["units"].values())) == pytest.approx(figures["miou"], abs=1)
    assert figures["half_a"] == pytest.approx(100 * np.mean(parts[::2]), abs=0.006)
    draws = np.random.default_rng(1).integers(0, 5, (20_000, 5))
    means = 100 * np.array(parts)[draws].mean(1)
    assert figures["interval"] == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.3)
    nothing = {"void": np.zeros((3, 3), int)}
    assert metrics.figures_by_unit(nothing | units, ("a", "b", "c")) == figures


def test_the_interval_of_a_mean_iou_is_of_what_more_images_would_give():
    """Rare classes, which are poor, are in no draw of half the units: a bootstrap of sums lies above the whole."""
    rng = np.random.default_rng(0)
    classes, units, trials = 30, 12, 40
    often, right = 1.5 / np.arange(1, classes + 1), np.linspace(0.8, 0.1, classes)

    def unit():
        confusion = np.zeros((classes, classes), int)
        for number in np.flatnonzero(rng.random(classes) < often):
            confusion[number, number] = found = rng.binomial(200, right[number])
            confusion[number, rng.integers(0, classes)] += 200 - found
        return confusion

    truth = metrics.figures_of(sum(unit() for _ in range(5000)), [str(n) for n in range(classes)])["miou"]
    inside = 0
    for _ in range(trials):
        found = metrics.figures_by_unit({str(n): unit() for n in range(units)}, [str(n) for n in range(classes)])
        inside += found["interval"][0] <= truth <= found["interval"][1]
    assert inside >= 0.75 * trials


def test_one_unit_has_no_interval():
    figures = metrics.figures_by_unit({"all": np.diag([3, 1])}, ("a", "b"))
    assert (figures["units"], figures["interval"], figures["half_b"]) == ({"all": 100.0}, [None, None], None)


def test_confusions_are_summed_by_unit():
    images = [np.full((2, 2), number) for number in (1, 2, 4)]
    sums = metrics.sum_by_unit(iter(images), ["x", "y", "x"])
    assert {name: int(matrix[0, 0]) for name, matrix in sums.items()} == {"x": 5, "y": 2}
    assert images[0][0, 0] == 1
