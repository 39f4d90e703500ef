import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from training import evaluate
from training.evaluation.data.segmentation import VOID
from training.evaluation.finetune.backbone import VitPyramid
from training.evaluation.finetune.upernet import UperNet, pixel_loss
from training.evaluation.protocols import upernet as protocol
from video_distilled_encoder import ModelConfig

TINY = [
    "crop=64", "image_size=[96, 64]", "scale=[0.75, 1.5]", "channels=24", "auxiliary_channels=16", "window=96",
    "stride=64", "iterations=25", "batch_size=4", "warmup=2", "learning_rate=1e-2",
]  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def colours(coloured_set, tmp_path):
    """A data set whose classes are colours."""
    return coloured_set(tmp_path, train=12, test=4, void_rows=3, block=32)


def small_network(classes=5):
    torch.manual_seed(0)
    options = {"embed_dim": 32, "num_heads": 2, "depth": 6, "num_classes": 0, "img_size": 64}
    pyramid = VitPyramid(timm.models.VisionTransformer(dynamic_img_size=True, **options))
    return UperNet(pyramid, classes, channels=16, auxiliary_channels=8)


def test_logits_are_of_the_images_size():
    network = small_network().eval()
    assert network(torch.randn(2, 3, 50, 70)).shape == (2, 5, 50, 70)
    losses = small_network().losses(torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.uint8))
    assert losses.keys() == {"loss", "loss_auxiliary"}
    assert losses["loss_auxiliary"] < 0.6 * losses["loss"]


def test_void_pixels_do_not_count():
    logits = torch.randn(2, 3, 4, 4)
    labels = torch.randint(0, 3, (2, 4, 4)).to(torch.uint8)
    assert pixel_loss(logits, labels).item() == pytest.approx(cross_entropy(logits, labels.long()).item())
    labels[:, :2] = VOID
    half = cross_entropy(logits[:, :, 2:], labels[:, 2:].long()) / 2
    assert pixel_loss(logits, labels).item() == pytest.approx(half.item())


def test_one_window_is_one_pass():
    network = small_network().eval()
    pixels = torch.randn(1, 3, 64, 90)
    with torch.no_grad():
        assert torch.allclose(protocol.slide(network, pixels, 96, 64), network(pixels), atol=1e-6)


@pytest.mark.parametrize(
    ("height", "width", "window", "stride"), [(70, 101, 32, 21), (64, 64, 32, 32), (20, 50, 32, 9)]
)
def test_windows_are_averaged(height, width, window, stride):
    torch.manual_seed(0)
    pixels = torch.randn(1, 3, height, width)

    def network(part):  # depends on the window it is seen in
        return part.cumsum(2).cumsum(3)[:, :2] / 100

    total, count = np.zeros((2, height, width)), np.zeros((height, width))
    # mmsegmentation's slide_inference
    for row in range(max(height - window + stride - 1, 0) // stride + 1):
        for column in range(max(width - window + stride - 1, 0) // stride + 1):
            bottom, right = min(row * stride + window, height), min(column * stride + window, width)
            top, left = max(bottom - window, 0), max(right - window, 0)
            total[:, top:bottom, left:right] += network(pixels[..., top:bottom, left:right])[0].numpy()
            count[top:bottom, left:right] += 1
    assert np.allclose(protocol.slide(network, pixels, window, stride)[0], total / count, atol=1e-5)


def test_augmentation_moves_image_and_labels_together():
    settings = protocol.UpernetSettings(crop=48, image_size=(96, 64), scale=(0.4, 1.5), iterations=1)
    labels = torch.zeros(64, 96, dtype=torch.uint8)
    labels[20:50, 30:70] = 1
    image = torch.where(labels == 1, 255, 0).to(torch.uint8).expand(3, -1, -1).contiguous()
    config = ModelConfig(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    agreement = []
    for seed in range(20):
        torch.manual_seed(seed)
        pixels, moved = protocol.augment(image, labels, config, settings)
        assert pixels.shape == (3, 48, 48)
        assert moved.shape == (48, 48)
        assert (pixels[:, moved == VOID] == 0).all()
        inside = moved != VOID
        agreement.append(((pixels[1] > 0) == (moved == 1))[inside].float().mean().item())
    assert min(agreement) > 0.9


def test_a_crop_of_several_classes_is_sought():
    labels = torch.zeros(64, 256, dtype=torch.uint8)
    labels[:, 224:] = 1
    shares = []
    for seed in range(30):
        torch.manual_seed(seed)
        top, left = protocol.choose_crop(labels, 64, 0.75)
        crop = labels[top : top + 64, left : left + 64]
        shares.append((crop == 0).float().mean().item())
    assert sum(share < 0.75 for share in shares) > 8  # one crop in twelve is such a one
    assert protocol.choose_crop(labels[:10, :10], 64, 0.75) == (0, 0)


def test_fitted_size():
    assert protocol.fitted_size((360, 480), 2048, 512) == [512, 683]
    assert protocol.fitted_size((100, 1000), 2048, 512) == [205, 2048]


def test_command_on_colours(run_command, colours, tiny_directory, tmp_path, capsys):
    out = tmp_path / "result.json"
    data = ["--data", colours, "--layout", "camvid", "--preset", "upernet-small", "--workers", 0, "--set", *TINY]
    assert run_command(evaluate.main, "upernet", "--model", tiny_directory, "--out", out, *data) is None
    result = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == result
    assert result["figures"]["loss"]["last_tenth"] < 0.6 * result["figures"]["loss"]["first_tenth"]
    assert result["figures"]["pixel_accuracy"] > 75  # chance is 33
    assert result["setting"]["iterations"] == 25
    assert result["data"]["test"].endswith("4 images")


def test_what_a_worker_finds_is_told_in_its_words_alone(run_command, colours, tiny_directory):
    label = sorted(path for path in colours.rglob("trainannot/*.png"))[0]
    Image.fromarray(np.full((64, 96), 77, np.uint8)).save(label)
    data = ["--data", colours, "--layout", "camvid", "--preset", "upernet-small", "--workers", 1, "--set", *TINY]
    told = run_command(evaluate.main, "upernet", "--model", tiny_directory, *data)
    assert "77" in told
    assert "\n" not in told


def test_wrong_input_is_one_sentence(run_command, colours, tiny_directory):
    def error(model, *extra):
        arguments = ["--data", colours, "--layout", "camvid", "--model", model, "--workers", 0, *extra]
        return run_command(evaluate.main, "upernet", *arguments)

    assert "pixels cannot be fine-tuned; choose an encoder" in error("pixels")
    assert "dev/NAME.jpg and devannot/NAME.png" in error(tiny_directory, "--train-split", "dev")
    assert "no setting steps" in error(tiny_directory, "--set", "steps=3")
    label = colours / "trainannot" / "3.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(label)
    assert "but its labels" in error(tiny_directory, "--preset", "upernet-small", "--set", *TINY)
