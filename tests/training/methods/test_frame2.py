"""FRAME's second stage: what the memory holds, when it changes nothing, and what stays as it is."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models.vision_transformer import Attention
from torch import nn

from training.data.frame_store import FrameStore
from training.engine import checkpoint
from training.engine.assembly import build_method, clip_index
from training.engine.log import read_log
from training.engine.run import dry_run, pretrain
from training.evaluation.features import extract
from training.evaluation.measure import evaluate
from training.methods import frame2
from training.methods.method import At
from training.models.loading import hash_weights, load_model
from training.models.video_encoder import VideoEncoderModel
from training.nn.memory import Memory, MemoryAttention
from training.recipes.recipe import read_recipe
from video_distilled_encoder import Encoder, InputError, ModelConfig

TEACHERS = ["--objective.spatial_teacher=random:vit_tiny_patch16_224", "--objective.semantic_size=64"]
TEACHERS += ["--objective.semantic_teacher=random:vit_tiny_patch16_224"]
TINY = ["--backbone.architecture=vit_tiny_patch16_224", "--backbone.model_args={}"]
DOUBLE = {"dtype": torch.float64}


def recipe_of(*settings):
    return read_recipe(["smoke", "frame2-cpu"], [*TEACHERS, *settings])


def build(*settings):
    torch.manual_seed(0)
    return build_method(recipe_of(*TINY, *settings)).train()


def batch(clips=2, frames=8):
    generator = torch.Generator().manual_seed(1)
    return {"global": {"pixels": torch.randn(clips, frames, 3, 64, 64, generator=generator)}}


def attention(grid=(2, 3)):
    torch.manual_seed(0)
    layer = MemoryAttention(24, 4, grid, frames=5, memory_width=8).double()
    for positions in (layer.space, layer.time):
        nn.init.normal_(positions)
    return layer


def test_the_memory_holds_the_last_frames_in_order():
    memory = Memory(5)
    assert memory.stacked() is None
    for number in range(1, 8):
        memory.push(torch.full((1, 2, 3), float(number)))
    assert memory.stacked()[0, :, 0, 0].tolist() == [3, 4, 5, 6, 7]


def test_without_memory_the_frame_attends_to_itself():
    layer, tokens = attention(), torch.randn(3, 7, 24, **DOUBLE)
    plain = Attention(24, 4, qkv_bias=True).double()
    plain.qkv.weight.data = torch.cat([layer.cross.q.weight, layer.cross.kv.weight]).detach()
    plain.qkv.bias.data = torch.cat([layer.cross.q.bias, layer.cross.kv.bias]).detach()
    plain.proj.load_state_dict(layer.cross.proj.state_dict())
    expected = layer.block(tokens + plain(layer.norm(tokens)))
    assert torch.allclose(layer(tokens, None, (2, 3)), expected, atol=1e-12)


def test_the_memorys_order_is_that_of_its_positions_alone():
    layer, tokens = attention(), torch.randn(2, 7, 24, **DOUBLE)
    memory = torch.randn(2, 5, 6, 8, **DOUBLE)
    whole = layer(tokens, memory, (2, 3))
    order, places = torch.randperm(5), torch.randperm(6)
    shuffled = memory[:, order][:, :, places]
    assert (layer(tokens, shuffled, (2, 3)) - whole).abs().max() > 1e-3
    placed = layer.place(memory, (2, 3))
    for row in range(5):
        for patch in range(6):
            expected = memory[1, row, patch] + layer.time[row] + layer.space[0, :, patch // 3, patch % 3]
            assert torch.allclose(placed[1, row, patch], expected)
    # with their positions: what is placed is shuffled, and what looks at it does not change
    layer.place = lambda memory, grid: placed[:, order][:, :, places]
    assert torch.allclose(layer(tokens, memory, (2, 3)), whole, atol=1e-12)


def test_fewer_frames_are_the_newest_and_other_grids_are_resized():
    layer = attention()
    some = torch.zeros(1, 2, 6, 8, **DOUBLE)
    assert torch.allclose(layer.place(some, (2, 3))[0, :, 0], layer.time[-2:] + layer.space[0, :, 0, 0])
    with torch.no_grad():
        layer.space.fill_(3.0)
    assert torch.allclose(
        layer.place(torch.zeros(1, 5, 20, 8, **DOUBLE), (4, 5)) - layer.time[:, None], torch.tensor(3.0, **DOUBLE)
    )


def test_a_window_and_a_stream_give_the_same():
    student = build().student.double().eval()
    clips = torch.randn(2, 6, 3, 64, 64, **DOUBLE)
    whole, memory = student(clips), Memory(5)
    for number in range(6):
        last = student.step(student.encode(clips[:, number]), memory, (4, 4))
    assert torch.allclose(last, whole, atol=1e-12)
    other = clips.clone()
    other[:, 0] += 1
    assert (student(other) - whole).abs().max() > 1e-6


def test_the_encoder_has_no_gradients_and_stays_as_it_is():
    method, views = build("--backbone.drop_path=0.3"), batch()
    before = {name: tensor.clone() for name, tensor in method.student.backbone.state_dict().items()}
    teachers = [hash_weights(model.encoder) for model in method.teachers.all()]
    optimizer = torch.optim.AdamW(
        [p for p in method.trained.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1
    )
    for _ in range(2):
        optimizer.zero_grad()
        method(views, At(0.0)).total.backward()
        optimizer.step()
    assert all(parameter.grad is None for parameter in method.student.backbone.parameters())
    trained = {name: p for name, p in method.student.named_parameters() if not name.startswith("backbone.")}
    assert all(parameter.grad is not None for parameter in trained.values())
    after = method.student.backbone.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not method.student.backbone.training
    assert [hash_weights(model.encoder) for model in method.teachers.all()] == teachers


def make_plain(method):
    """Let the memory and the decoders pass on what they are given, and the student's backbone be the teacher's."""
    student = method.student
    student.backbone.load_state_dict(method.teachers.spatial.encoder.backbone.state_dict())
    blocks = [student.memory.block, student.spatial.block, student.spatial_ahead.block]
    for layer in [student.memory.cross.proj, *(part for block in blocks for part in (block.attn.proj, block.mlp.fc2))]:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    for layer in (student.semantic, student.semantic_ahead):
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)


def test_a_student_that_is_the_teacher_loses_nothing_and_nothing_ahead_where_nothing_moves():
    method, views = build(), batch()
    make_plain(method)
    moving = method(views, At(0.0)).metrics
    still = {"global": {"pixels": views["global"]["pixels"][:, :1].expand(-1, 8, -1, -1, -1)}}
    static = method(still, At(0.0)).metrics
    for name in ("patch_loss", "cls_loss"):
        assert moving[name].item() == pytest.approx(0, abs=1e-6)
    for name in ("patch_ahead_loss", "cls_ahead_loss"):
        assert static[name].item() == pytest.approx(0, abs=1e-6)
        assert moving[name] > 1e-3
    # nothing is learnt, so what is anticipated is what is seen
    assert moving["patch_ahead_r2"].item() == pytest.approx(moving["held_r2"].item(), abs=1e-4)
    assert static["held_r2"].item() == pytest.approx(1)


def test_losses_are_of_the_frames_that_the_paper_names():
    method = build("--objective.patch_ahead_weight=2", "--objective.cls_weight=0.5")
    assert frame2.numbers(recipe_of().spec) == [0, 1, 2, 3, 4, 5, 7, 9]
    assert frame2.clip_spec(recipe_of().spec).offsets == (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
    views = batch()
    got, frames = method(views, At(0.0)), views["global"]["pixels"]
    teacher, student = method.teachers.spatial.encoder.backbone, method.student
    with torch.no_grad():
        enriched = student(frames[:, :6])
        semantic = method.teachers.semantic.encoder.backbone
        expected = {
            "patch_loss": (
                (student.spatial(enriched[:, 1:]) - teacher.forward_features(frames[:, 5])[:, 1:]) ** 2
            ).mean(),
            "patch_ahead_loss": (
                (student.spatial_ahead(enriched[:, 1:]) - teacher.forward_features(frames[:, 6])[:, 1:]) ** 2
            ).mean(),
        }
        for name, head, frame in (("cls_loss", student.semantic, 5), ("cls_ahead_loss", student.semantic_ahead, 7)):
            learnt, taught = head(enriched[:, 0]), semantic.forward_features(frames[:, frame])[:, 0]
            expected[name] = 1 - torch.cosine_similarity(learnt, taught).mean()
    for name, value in expected.items():
        assert got.metrics[name].item() == pytest.approx(value.item(), rel=1e-4), name
    assert got.total.item() == pytest.approx(1 + 2 + 0.5 + 1, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--clips.frames=1"], "at least 2, got 1"),
        (["--objective.patch_ahead=0"], "at least 1"),
        (["--objective.cls_ahead_weight=-1"], "must not be negative"),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        build(*settings)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """An encoder to begin with."""
    torch.manual_seed(5)
    config = ModelConfig("vit_tiny_patch16_224", {"depth": 2, "embed_dim": 64, "num_heads": 2})
    folder = tmp_path_factory.mktemp("start")
    Encoder(config.build_backbone(), config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(clip, start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("frame2")
    settings = [f"--run.init_from={start}", "--run.steps=24", "--run.checkpoint_every=12", "--run.batch_size=4"]
    recipe = recipe_of(*settings, "--optimizer.learning_rate=3e-3")
    assert "GFLOP a clip" in dry_run([clip], folder / "run", recipe, folder / "frames", False)
    pretrain([clip], folder / "run", recipe, frames=folder / "frames")
    return folder / "run", folder / "frames", recipe


def test_a_run_learns_and_leaves_the_encoder_as_it_was(run, start):
    out, _, _ = run
    rows = read_log(out / "log.jsonl")
    for name in ("patch_loss", "patch_ahead_loss", "cls_loss", "cls_ahead_loss"):
        assert rows[-1][name] < 0.9 * rows[0][name]
    assert {"patch_r2", "patch_ahead_r2", "held_r2", "patch_feature_std"} <= rows[-1].keys()
    begin, end = (Encoder.from_pretrained(folder).state_dict() for folder in (start, out / "encoder"))
    assert all(torch.equal(end[name], tensor) for name, tensor in begin.items())
    assert "These are the weights that the run of `frame2` began with" in (out / "encoder" / "README.md").read_text()


def test_it_resumes_to_the_bit(run, clip, tmp_path):
    out, frames, recipe = run
    again = tmp_path / "again"
    shutil.copytree(out, again)
    for name in ("checkpoints/step-00000024", "encoder", "video_encoder"):
        shutil.rmtree(again / name)
    pretrain([clip], again, recipe, frames=frames, resume=True)
    states = [checkpoint.load_newest(folder / "checkpoints") for folder in (out, again)]
    for kind in ("model", "optimizer"):
        one, other = (getattr(state, kind) for state in states)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_it_is_gone_on_from_and_does_not_begin_with_nothing(run, clip, tmp_path):
    out, frames, _ = run
    with pytest.raises(InputError, match="say which with --init-from"):
        pretrain([clip], tmp_path / "none", recipe_of(), frames=frames)
    settings = [f"--run.init_from={out}", "--run.steps=1", "--run.checkpoint_every=1", "--optimizer.learning_rate=1e-6"]
    pretrain([clip], tmp_path / "next", recipe_of(*settings), frames=frames)
    states = [checkpoint.load_newest(folder / "checkpoints").model for folder in (out, tmp_path / "next")]
    assert torch.allclose(*(state["student.memory.time"] for state in states), atol=1e-5)


def test_what_it_learnt_is_a_model_with_a_state(run, tmp_path):
    out = run[0]
    model = load_model(f"frame2:{out}", device="cpu")
    assert isinstance(model, VideoEncoderModel)
    images = [np.random.default_rng(number).integers(0, 255, (64, 96, 3), dtype=np.uint8) for number in range(9)]
    ordered, alone = (
        extract(model, images, (64, 96), cache=tmp_path, in_order=in_order).grid for in_order in (True, False)
    )
    pixels = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in images]) / 255
    config = ModelConfig()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    network = model.network
    with torch.no_grad():
        tokens = network.backbone.forward_features((pixels - mean) / std)
        memory = network.memory.remember(tokens[None, 3:8, 1:])
        last = network.memory(tokens[8:], memory, (4, 6))[0, 1:]
        single = network.memory(tokens[8:], None, (4, 6))[0, 1:]
    assert torch.allclose(ordered[8].flatten(0, 1).float(), last, atol=2e-2)
    assert torch.allclose(alone[8].flatten(0, 1).float(), single, atol=2e-2)
    assert torch.allclose(ordered[0].float(), alone[0].float(), atol=1e-3)
    assert (ordered[8] - alone[8]).abs().max() > 1e-2


def test_a_path_may_hold_an_at_sign_and_a_model_forgets_what_was_in_order(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "u@h" / "run")
    images = [np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8) for number in range(4)]
    for told in ("", "@ahead"):
        model = load_model(f"frame2:{tmp_path / 'u@h' / 'run'}{told}", device="cpu")
        alone = model.encode(images, (64, 64)).grid
        extract(model, images, (64, 64), cache=tmp_path / "cache", in_order=True)
        assert torch.equal(model.encode(images, (64, 64)).grid, alone)


def test_anticipated_patches_are_told_of_frames_not_yet_seen(run, tmp_path):
    out = run[0]
    images = [np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8) for number in range(6)]
    rows = {}
    for told in ("now", "ahead", "held"):
        model = load_model(f"frame2:{out}@{told}", device="cpu")
        assert model.description["name"] == f"frame2:run@{told}"
        rows[told] = extract(model, images, (64, 64), cache=tmp_path, in_order=True).grid
        changed = extract(model, [*images[:5], images[0]], (64, 64), cache=tmp_path, in_order=True).grid
        same = torch.equal(changed[5], rows[told][5])
        assert same is (told != "now")  # what is told of frame 5 was known at frame 3
    with torch.no_grad():
        decoded = model.network.spatial(rows["now"].float().flatten(1, 2))
        ahead = model.network.spatial_ahead(rows["now"].float().flatten(1, 2))
    for frame in range(6):
        seen = frame - 2 if frame >= 2 else frame
        assert torch.allclose(rows["held"][frame].flatten(0, 1).float(), decoded[seen], atol=2e-2)
        expected = ahead[seen] if frame >= 2 else decoded[seen]
        assert torch.allclose(rows["ahead"][frame].flatten(0, 1).float(), expected, atol=2e-2)


def test_a_protocol_on_video_measures_the_present_and_the_anticipated_frame(run, tmp_path):
    davis = make_davis(tmp_path / "davis")
    found = {}
    for told in ("", "@ahead", "@held"):
        arguments = ["davis", "--model", f"frame2:{run[0]}{told}", "--data", str(davis), "--cache", str(tmp_path / "c")]
        found[told] = evaluate([*arguments, "--device", "cpu"])["figures"]["j_and_f"]
    assert all(0 <= value <= 100 for value in found.values())


def make_davis(root):
    for part in ("JPEGImages/480p/box", "Annotations/480p/box", "ImageSets/2017"):
        (root / part).mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("box\n")
    background = np.random.default_rng(0).integers(0, 120, (96, 128, 3), dtype=np.uint8)
    for number in range(6):
        image, mask = background.copy(), np.zeros((96, 128), np.uint8)
        image[32:64, 16 + 8 * number : 48 + 8 * number], mask[32:64, 16 + 8 * number : 48 + 8 * number] = 220, 1
        Image.fromarray(image).save(root / f"JPEGImages/480p/box/{number:05}.jpg")
        Image.fromarray(mask).save(root / f"Annotations/480p/box/{number:05}.png")
    return root


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "video_encoder.json").unlink(), "a run of frame2 leaves it"),
        (lambda folder: (folder / "video_encoder.safetensors").write_bytes(b"x"), "or not the file"),
        (lambda folder: (folder / "video_encoder.json").write_text("{}"), "is damaged"),
    ],
)
def test_a_damaged_one_is_refused(run, tmp_path, damage, message):
    shutil.copytree(run[0] / "video_encoder", tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(InputError, match=message):
        load_model(f"frame2:{tmp_path / 'copy'}", device="cpu")
    with pytest.raises(InputError, match="@now, @ahead and @held, got @never"):
        load_model(f"frame2:{run[0]}@never", device="cpu")


def test_clips_are_windows_of_the_video(run, clip):
    _, frames, recipe = run
    store = FrameStore(next(frames.rglob("*.zip")))
    index = clip_index(recipe, [store])
    _, chosen = index[0]
    seconds = store.times[chosen] - store.times[chosen[0]]
    assert np.abs(seconds - [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9]).max() < 0.051  # half of a frame interval
