"""What of each family's graph is computed in 8 bits: the products of linear layers, and nothing else."""

import pytest
import torch
from torch import nn

from export import onnx as onnx_format
from export.job import Job
from export.network import Network
from video_distilled_encoder import Encoder, ModelConfig
from video_distilled_encoder.image_files import bundled_photographs
from video_distilled_encoder.runtimes.artefact import FEATURES, Artefact

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SMALL = {"depth": 1, "embed_dim": 64, "num_heads": 2}
FAMILIES = [
    "vit_small_patch16_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_small_patch16_dinov3",
    "vit_small_plus_patch16_dinov3",
    "vit_base_patch16_siglip_224",
    "vit_base_patch16_clip_224",
    "vit_pe_core_small_patch16_384",
    "eva02_small_patch14_224",
    "aimv2_large_patch14_224",
    "deit_small_distilled_patch16_224",
    "beit_base_patch16_224",
]


@pytest.fixture(scope="module", params=FAMILIES)
def written(request, tmp_path_factory):
    """Return a family's small backbone and its int8 graph, as vde-export writes it."""
    torch.manual_seed(0)
    config = ModelConfig(request.param, SMALL)
    encoder = Encoder(config.build_backbone().eval(), config)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, float(parameter.ndim == 1), 0.05)
    side = encoder.image_size[0] if encoder.tokens.only_size else 4 * encoder.patch_size
    artefact = Artefact(
        format="onnx",
        precision="int8",
        size=(side, side),
        default_size=(side, side),
        batch=(1, 1, 4),
        camera=None,
        outputs=FEATURES,
        embed_dim=encoder.embed_dim,
        patch_size=encoder.patch_size,
        prefix=encoder.tokens.prefix,
        has_cls=encoder.tokens.has_cls,
        mean=config.mean,
        std=config.std,
        interpolation=config.interpolation,
        crop_pct=config.crop_pct,
    )
    path = tmp_path_factory.mktemp("int8") / "encoder.onnx"
    job = Job("", encoder, "", bundled_photographs()[:2], onnx_format.PRECISIONS, path.parent)
    onnx_format.write(Network(encoder, artefact, torch.float32), path, job)
    return encoder, path


def linear_layers(encoder):
    """Return how many linear layers the features pass through."""
    pooling = [] if encoder.tokens.has_cls else [encoder.backbone.attn_pool or nn.Identity()]
    parts = [encoder.backbone.blocks, *pooling]
    return sum(isinstance(module, nn.Linear) for part in parts for module in part.modules())


def test_linear_layers_alone_are_products_of_8_bits_in_onnx(written):
    encoder, path = written
    graph = onnx.load(path).graph
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    quantised, products = set(), 0
    for node in graph.node:
        sources = [made_by.get(name) for name in node.input]
        from_8_bits = [source is not None and source.op_type == "DequantizeLinear" for source in sources]
        if node.op_type == "DequantizeLinear":
            (name,) = node.input[:1]
            stored = weights.get(name) == onnx.TensorProto.INT8
            assert stored or made_by[name].op_type == "QuantizeLinear"
        elif any(from_8_bits):
            quantised.add(node.op_type)
            products += 1
            assert from_8_bits[:2] == [True, True]
            assert sources[1].input[0] in weights  # by a weight
    assert quantised <= {"MatMul", "Gemm"}
    assert products == linear_layers(encoder)
    assert {"Softmax", "Add", "Conv"} <= {node.op_type for node in graph.node} - quantised


def test_openvino_reads_the_same_of_it(written):
    openvino = pytest.importorskip("openvino")
    encoder, path = written
    model = openvino.convert_model(path)
    products = 0
    for node in model.get_ops():
        sources = [source.get_node() for source in node.input_values()]
        if any(source.get_type_name() == "FakeQuantize" for source in sources):
            assert node.get_type_name() == "MatMul", node.get_type_name()
            products += 1
    assert products == linear_layers(encoder)
