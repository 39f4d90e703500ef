"""PooDLe against the numbers of its specification, and against its losses written out point by point in float64."""

import json
import math

import numpy as np
import pytest
import torch
from torchvision.models.optical_flow import raft_small

from training.common import distributed
from training.data.box import Box
from training.data.flow import Motion
from training.engine.assembly import build_method
from training.engine.log import read_log
from training.engine.run import dry_run, pretrain
from training.methods import poodle
from training.methods.method import At
from training.methods.poodle import BatchNorm, Decoder, box_around, carry_and_undo, centres, distance, sub_crops, undo
from training.methods.self_distillation import LONG
from training.recipes.recipe import read_recipe
from video_distilled_encoder import InputError

SMALL = [
    "--views.global_size=64",
    "--views.local_size=32",
    "--views.local_views=2",
    "--objective.hidden=24",
    "--objective.bottleneck=12",
    "--objective.decoder_width=16",
    "--backbone.drop_path=0.0",
    "--backbone.model_args.depth=3",
]


def recipe_of(*settings):
    return read_recipe(["smoke", "poodle-cpu"], [*SMALL, *settings])


def build(*settings):
    torch.manual_seed(0)
    method = build_method(recipe_of(*settings)).train()
    torch.manual_seed(1)
    for parameter in method.student.parameters():  # that the student is not the teacher
        parameter.data += 0.1 * torch.randn_like(parameter)
    return method


def batch(clips=2, points=16, local=2, side=64):
    """Two frames a clip, each with flow to the other that is made up."""
    generator = torch.Generator().manual_seed(2)
    rng = np.random.default_rng(0)
    objective = recipe_of().objective
    affine = [[[poodle.affine(rng, objective, 0.5) for _ in range(2)] for _ in range(2)] for _ in range(clips)]
    return {
        "global": {
            "pixels": torch.randn(clips, 2, 3, side, side, generator=generator).double(),
            "affine": torch.from_numpy(np.array(affine)),
            "flow": 6 * torch.randn(clips, 2, 2, points, points, generator=generator),
            "inside": torch.rand(clips, 2, points, points, generator=generator) > 0.2,
            "occluded": torch.rand(clips, 2, points, points, generator=generator) > 0.8,
        },
        "local": {
            "pixels": torch.randn(clips, 4 * local, 3, 32, 32, generator=generator).double(),
            "followed": torch.tensor([[True] * 7 + [False]] * clips),
        },
    }


def bilinear(picture, x, y):
    """Read a (C, h, w) picture at places from -1 to 1, as if by hand."""
    height, width = picture.shape[1:]
    column = min(max((x + 1) * width / 2 - 0.5, 0), width - 1)
    row = min(max((y + 1) * height / 2 - 0.5, 0), height - 1)
    left, top = math.floor(column), math.floor(row)
    right, below = min(left + 1, width - 1), min(top + 1, height - 1)
    a, b = column - left, row - top
    upper = (1 - a) * picture[:, top, left] + a * picture[:, top, right]
    lower = (1 - a) * picture[:, below, left] + a * picture[:, below, right]
    return (1 - b) * upper + b * lower


def seen_through(picture, affine):
    """Turn a (C, S, S) picture pixel by pixel; what lies beyond its edges is 0, and half a pixel fades to it."""
    side = picture.shape[1]
    padded = torch.nn.functional.pad(picture, [side] * 4)
    out = torch.zeros_like(picture)
    for row in range(side):
        for column in range(side):
            x, y = affine @ np.array([(2 * column + 1) / side - 1, (2 * row + 1) / side - 1])
            out[:, row, column] = bilinear(padded, x / 3, y / 3)
    return out


@pytest.mark.parametrize("quirks", ["none", "authors"])
@pytest.mark.parametrize("kind", ["layer", "batch"])
def test_the_dense_loss_is_the_formula(quirks, kind, one_thread):
    method = build(f"--objective.quirks={quirks}", f"--objective.norm={kind}", "--objective.pooled_weight=0").double()
    views = batch()["global"]
    got = method({"global": views}, At(0.2))
    points, side = 16, 64
    pixels, affine = views["pixels"].flatten(0, 1), views["affine"].flatten(0, 1).numpy().astype(np.float64)
    with torch.no_grad():
        turned = [torch.stack([seen_through(pixels[n], affine[n, role]) for n in range(4)]) for role in (0, 1)]
        learnt = method.student.dense_predictor(method.student.dense(turned[0])[1]).permute(0, 3, 1, 2)
        taught = method.teacher.dense(turned[1])[1].permute(0, 3, 1, 2)
    assert learnt.shape == (4, 12, 16, 16)
    losses, count = [], 0
    for image in range(4):
        other = image ^ 1
        flow = views["flow"].flatten(0, 1)[image].double().numpy()
        back, back_of_other = np.linalg.inv(affine[image, 0]), np.linalg.inv(affine[other, 1])
        if quirks == "authors":  # the turned map is carried by the flow of what is not turned
            carried = torch.zeros_like(taught[other])
            for row in range(points):
                for column in range(points):
                    x, y = column + flow[0, row, column] / 4, row + flow[1, row, column] / 4
                    carried[:, row, column] = bilinear(taught[other], 2 * x / 15 - 1, 2 * y / 15 - 1)
        of_image = []
        for row in range(points):
            for column in range(points):
                place = np.array([(2 * column + 1) / points - 1, (2 * row + 1) / points - 1])
                own = back @ place
                there = back_of_other @ (place if quirks == "authors" else place + 2 * flow[:, row, column] / side)
                if max(*abs(own), *abs(there)) > 1 or views["occluded"].flatten(0, 1)[image, row, column]:
                    continue
                if not views["inside"].flatten(0, 1)[image, row, column]:
                    continue
                z = bilinear(learnt[image], *own)
                target = bilinear(carried if quirks == "authors" else taught[other], *there)
                of_image.append(((z / z.norm() - target / target.norm()) ** 2).sum().item())
        losses.append(np.mean(of_image))
        count += len(of_image)
    assert got.metrics["dense_loss"].item() == pytest.approx(np.mean(losses), rel=1e-9)
    assert got.total.item() == pytest.approx(np.mean(losses) / 2, rel=1e-9)
    assert got.metrics["counted"].item() == pytest.approx(count / 1024)
    assert got.metrics["left_view"].item() == pytest.approx((~views["inside"]).double().mean().item())
    hidden = (views["occluded"] & views["inside"]).double().mean().item()
    assert got.metrics["occluded"].item() == pytest.approx(hidden)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_pooled_loss_is_the_formula(pooling):
    method = build("--objective.dense_weight=0", f"--objective.pooling={pooling}").double()
    views = batch()["local"]
    got = method({"local": views}, At(0.2))
    losses = []
    for clip in range(2):
        for number in range(4):
            vectors = []
            for tower, crop in ((method.student, number), (method.teacher, 4 + number)):
                tokens = tower.backbone.forward_features(views["pixels"][clip, crop][None])[0]
                vector = tower.pooled_projector(tokens[0] if pooling == "cls" else tokens[1:].mean(0))
                vectors.append(vector)
            z, target = method.student.pooled_predictor(vectors[0]), vectors[1]
            losses.append(((z / z.norm() - target / target.norm()) ** 2).sum().item())
    assert got.metrics["pooled_loss"].item() == pytest.approx(np.mean(losses), rel=1e-9)
    assert got.total.item() == pytest.approx(np.mean(losses) / 2, rel=1e-9)
    assert got.metrics["followed"].item() == pytest.approx(7 / 8)


def test_what_is_alike_is_0_apart_and_what_is_opposite_4():
    z = torch.randn(3, 8, 5, 5, dtype=torch.float64)
    all_points = torch.ones(3, 5, 5, dtype=torch.bool)
    assert distance(z, 3 * z, all_points).item() == pytest.approx(0, abs=1e-12)
    assert distance(z, -2 * z, all_points).item() == pytest.approx(4)
    some = torch.rand(3, 5, 5) > 0.5
    mixed = torch.where(some[:, None], z, -z)
    assert distance(z, mixed, some).item() == pytest.approx(0, abs=1e-12)
    assert distance(z, mixed, ~some).item() == pytest.approx(4)
    assert distance(z, mixed, torch.zeros_like(some)).item() == 0


def test_where_views_are_turned_and_carried_the_same_points_meet():
    """Two views of one plane whose colours are its places: what is compared is equal where it counts."""
    rng, objective = np.random.default_rng(3), recipe_of().objective
    points, side = 32, 64
    places = (np.arange(points) + 0.5) * 2 / points - 1
    plane = torch.from_numpy(np.stack(np.meshgrid(places, places)))[None]
    shift = np.array([9.0, -5.0])  # what is at p in the first is at p + shift in the second
    moved = plane - torch.from_numpy(2 * shift / side)[None, :, None, None]
    flow = torch.from_numpy(shift)[None, :, None, None].expand(1, 2, points, points)
    own, other = (torch.from_numpy(poodle.affine(rng, objective, 0.5)).double()[None] for _ in range(2))
    first, seen = undo(poodle.turn(plane, own), own, points)
    second, found = carry_and_undo(poodle.turn(moved, other), other, flow, side)
    here, there = plane[0], plane[0] + torch.from_numpy(2 * shift / side)[:, None, None]
    inner = (seen & found)[0] & (torch.stack([here, there]).abs() < 0.9).all(0).all(0)
    assert 0.4 < inner.double().mean() < 0.9
    assert torch.allclose(first[0][:, inner], second[0][:, inner], atol=1e-6)
    assert torch.allclose(first[0][:, inner], plane[0][:, inner], atol=1e-6)
    zero = torch.zeros(1, 2, points, points, dtype=torch.float64)
    carried = poodle.carry_like_authors(plane, torch.eye(2, dtype=torch.float64)[None], zero, side)[0]
    off = (carried - plane).abs().amax() * points / 2
    assert 0.4 < off < 0.51  # without flow it is up to half a point off


def test_batch_norm_is_torchs_in_training_and_keeps_nothing():
    ours, theirs = BatchNorm(6).double(), torch.nn.BatchNorm2d(6).double().train()
    for parameter, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.nn.init.normal_(parameter)
        other.data.copy_(parameter.data)
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64) * 3 + 100
    assert torch.allclose(ours.eval()(x), theirs(x.movedim(-1, 1)).movedim(1, -1), atol=1e-10)
    assert not list(ours.buffers())
    method = build("--objective.norm=batch")
    assert not list(method.buffers())
    assert sum(isinstance(module, BatchNorm) for module in method.teacher.modules()) == 2 * 3 + 2


def share_of(folder):
    """Compute the gradients of one of two clips, averaged over two processes that see one each."""
    torch.set_num_threads(1)
    rank = distributed.start("cpu").rank
    method = build("--objective.norm=batch").double()
    replica = distributed.replicate(method)
    half = {group: {name: x[rank : rank + 1] for name, x in views.items()} for group, views in batch().items()}
    loss = replica(half, At(0.2)).total
    loss.backward()
    mean = distributed.average(loss.detach())
    if rank == 0:
        gradients = {name: parameter.grad for name, parameter in method.student.named_parameters()}
        torch.save({"loss": mean, **gradients}, f"{folder}/found.pt")
    distributed.stop()


def test_batch_norm_sees_the_clips_of_all_processes(tmp_path, one_thread, start_world):
    code = "import runpy, sys; runpy.run_path(sys.argv[1])['share_of'](sys.argv[2])"
    processes = start_world("-c", code, __file__, tmp_path)
    assert [process.wait(120) for process in processes] == [0, 0], [process.err() for process in processes]
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    method = build("--objective.norm=batch").double()
    loss = method(batch(), At(0.2)).total
    loss.backward()
    assert found.pop("loss").item() == pytest.approx(loss.item(), rel=1e-12)
    for name, parameter in method.student.named_parameters():
        accurate = 1e-6 if name == "backbone.pos_embed" else 1e-9  # timm resizes positions in float32
        assert torch.allclose(found[name], parameter.grad, rtol=accurate, atol=accurate), name


def test_the_decoder_doubles_the_grid_and_takes_earlier_blocks():
    objective = read_recipe("poodle").objective
    assert Decoder(384, 12, objective).blocks == [7, 3]
    assert Decoder(64, 2, objective).blocks == [0, 0]
    method = build()
    assert method.student.decoder.blocks == [1, 0]
    patches, maps = method.student.dense(torch.randn(2, 3, 64, 96))
    assert (patches.shape, maps.shape) == ((2, 24, 64), (2, 16, 24, 12))
    flat = build("--objective.decoder_steps=0")
    assert flat.student.dense(torch.randn(2, 3, 64, 96))[1].shape == (2, 4, 6, 12)
    decoder = method.student.decoder.double()
    last, *earlier = (torch.randn(1, 4, 4, 64, dtype=torch.float64) for _ in range(3))
    whole = decoder(last, earlier)
    without = decoder(last, [earlier[0], torch.zeros_like(earlier[1])])
    lateral = decoder.laterals[1]
    added = torch.nn.functional.interpolate(
        (earlier[1] @ lateral.weight.T).permute(0, 3, 1, 2), (16, 16), mode="bilinear"
    )
    assert torch.allclose(whole - without, added.permute(0, 2, 3, 1), atol=1e-12)


def test_every_pixel_may_be_compared():
    method = build("--objective.points=image", "--objective.pooled_weight=0").double()
    views = batch(points=64)["global"]
    assert method({"global": views}, At(0.0)).metrics["dense_loss"] > 0
    recipe = recipe_of("--objective.points=image")
    planned = poodle.plan_views(np.random.default_rng(0), (160, 90), recipe.spec, still(160, 90))
    assert planned[0].arrays["flow"].shape == (2, 64, 64)


def still(width, height, x=0.0, y=0.0):
    there = np.broadcast_to(np.array([x, y], dtype=np.float32)[:, None, None], (2, 4, 4))
    return Motion(there, -there, (width, height))


def test_views_are_two_frames_of_one_region_and_sub_crops_that_follow():
    recipe = read_recipe("poodle")
    views = poodle.plan_views(np.random.default_rng(0), (640, 360), recipe.spec, still(640, 360, 20, 0))
    large, small = views[:2], views[2:]
    assert [view.frame for view in large] == [0, 1]
    assert large[0].box == large[1].box
    assert not any(view.flip for view in views)
    assert {name: large[0].arrays[name].shape for name in ("affine", "flow", "inside")} == {
        "affine": (2, 2, 2),
        "flow": (2, 56, 56),
        "inside": (56, 56),
    }
    scale = 224 / large[0].box.width
    assert np.allclose(large[0].arrays["flow"][0], 20 * scale)
    assert np.allclose(large[1].arrays["flow"][0], -20 * scale)
    assert len(small) == 4 * 6
    own, partners = small[:12], small[12:]
    assert [view.frame for view in own] == [0] * 6 + [1] * 6
    for one, other in zip(own, partners, strict=True):
        followed = bool(one.arrays["followed"])
        assert other.arrays["followed"] == followed
        assert (other.frame != one.frame) == followed
        area = lambda box: box.width * box.height  # noqa: E731
        assert area(other.box) >= 0.98 * area(one.box)
    assert (recipe.objective.hidden, recipe.run.batch_size, recipe.optimizer.clip_grad) == (4096, 128, None)


def test_affine_maps_turn_zoom_and_mirror_within_their_ranges():
    rng, objective = np.random.default_rng(0), read_recipe("poodle").objective
    maps = np.stack([poodle.affine(rng, objective, 0.5) for _ in range(500)]).astype(np.float64)
    scales, mirrored = np.abs(np.linalg.det(maps)) ** -0.5, np.linalg.det(maps) < 0
    assert (scales.min() >= 0.899, scales.max() <= 1.101) == (True, True)
    assert np.ptp(scales) > 0.19
    assert 0.4 < mirrored.mean() < 0.6
    angles = np.degrees(np.arctan2(-maps[:, 0, 1], maps[:, 1, 1]))
    assert 9.5 < np.abs(angles).max() <= 10.001
    products = maps @ maps.transpose(0, 2, 1) * scales[:, None, None] ** 2
    assert np.allclose(products, np.eye(2), atol=1e-6)


def test_sub_crops_follow_the_flow_and_stay_where_it_leaves_the_view():
    rng, region = np.random.default_rng(0), Box(100, 50, 200, 160)
    areas, apart, kept = [], [], []
    for _ in range(300):
        (centre,) = centres(rng, region, 4, 1)
        box, other, followed = sub_crops(rng, region, centre, still(400, 300, 30, -10), (0.05, 0.3), 0.1)
        for found in (box, other):
            assert 100 <= found.left <= found.left + found.width <= 300
            assert 50 <= found.top <= found.top + found.height <= 210
            areas.append(found.width * found.height / (200 * 160))
        kept.append(followed)
        clear = all(
            b.left > 100 and b.top > 50 and b.left + b.width < 300 and b.top + b.height < 210 for b in (box, other)
        )
        if followed and clear:
            apart.append([other.left + other.width / 2 - centre[0], other.top + other.height / 2 - centre[1]])
    apart = np.array(apart)
    assert 0.045 < min(areas) < max(areas) < 0.31
    assert len(apart) > 30
    assert (np.abs(apart - [30, -10]) <= [21, 17]).all()
    assert 0.6 < np.mean(kept) < 1
    gone = [sub_crops(rng, region, np.array([150.0, 80]), still(400, 300, 300, 0), (0.05, 0.3), 0.1)[2] for _ in "abc"]
    assert not any(gone)
    drawn = centres(rng, region, 4, 16)
    cells = np.floor((drawn - [100, 50]) / [50, 40]).astype(int)
    assert len({tuple(cell) for cell in cells}) == 16
    assert box_around(rng, region, np.array([100.0, 50]), 1.0)[:2] == (100, 50)


def test_no_gradient_reaches_the_teacher_and_all_of_the_student_learns():
    method = build().double()
    method(batch(), At(0.5)).total.backward()
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    silent = [name for name, parameter in method.student.named_parameters() if parameter.grad is None]
    assert not silent
    names = {name.split(".")[0] for name, _ in method.teacher.named_parameters()}
    assert names == {"backbone", "decoder", "dense_projector", "pooled_projector"}


def test_a_frame_is_compared_with_the_other_one():
    method = build("--objective.pooled_weight=0").double()
    views = batch(clips=1)["global"]
    inside = torch.ones_like(views["inside"])
    inside[:, 1] = False  # no points of the second frame count, so it matters as what the first is compared with
    views |= {"inside": inside, "occluded": torch.zeros_like(inside)}
    found = []
    for change in (0, 1):
        pixels = views["pixels"].clone()
        pixels[:, 1] += change
        method.zero_grad()
        loss = method({"global": views | {"pixels": pixels}}, At(0.0)).total
        loss.backward()
        found.append((loss.item(), method.student.dense_predictor[3].weight.grad.clone()))
    assert found[0][0] != pytest.approx(found[1][0], rel=1e-6)
    assert not torch.allclose(found[0][1], found[1][1])


def test_points_that_are_never_seen_twice_stop_the_run():
    method = build()
    row = {"counted": 0.01, "occluded": 0.9, "left_view": 0.09, "patch_feature_std": 1.0}
    assert all(method.watch(row) is None for _ in range(LONG - 1))
    assert "less than 5% of the points have been seen in both frames (occluded 90%" in method.watch(row)
    assert method.watch({**row, "counted": 0.4}) is None
    collapsed = {"counted": 0.4, "patch_feature_std": 1.0, "dense_feature_std": 0.0}
    assert "collapsed" in [method.watch(collapsed) for _ in range(LONG)][-1]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--views.local_views=0", "must be 1 to 16, got 0"),
        ("--views.local_views=17", "must be 1 to 16, got 17"),
        ("--clips.frames=1", "at least 2, got 1; without time"),
        ("--objective.dense_weight=-1", "must not be negative"),
        ("--objective.zoom=[1.1,0.9]", "must be 0 < low <= high"),
        ("--objective.decoder_width=0", "must be positive"),
        ("--objective.rotation=-1", "must not be negative"),
        ("--objective.flow.estimator=raft", "flow.weights is the file of RAFT's weights"),
    ],
)
def test_what_cannot_be_is_refused(setting, message):
    with pytest.raises(InputError, match=message):
        build(setting)


def test_it_begins_at_a_release_and_tells_of_itself(clip, tmp_path, learnt_a_little, tiny_directory, from_tiny):
    settings = [*from_tiny, "--run.workers=0", "--run.steps=2", "--run.batch_size=1"]
    settings += ["--clips.stride=0.2", "--views.global_size=64", "--views.local_size=32", "--views.local_views=1"]
    settings += ["--objective.hidden=32", "--run.log_every=1", "--extract.short_side=128", "--extract.fps=10"]
    recipe = read_recipe("poodle", settings)
    assert "GFLOP a clip" in dry_run([clip], tmp_path / "run", recipe, tmp_path / "frames", False)
    pretrain([clip], tmp_path / "run", recipe, frames=tmp_path / "frames")
    learnt_a_little(tmp_path / "run", tiny_directory)
    row = read_log(tmp_path / "run" / "log.jsonl")[-1]
    assert {"occluded", "left_view", "counted", "followed", "dense_loss_of_others", "dense_feature_std"} <= row.keys()
    (folder,) = (tmp_path / "frames").rglob("*.flow")
    assert [path.name for path in folder.iterdir()] == ["dis-medium-384px-8"]
    following = [f"--run.init_from={tmp_path / 'run' / 'handover'}", "--run.steps=1"]
    pretrain([clip], tmp_path / "next", read_recipe("poodle", settings + following), frames=tmp_path / "frames")
    facts = json.loads((tmp_path / "next" / "run.json").read_text())
    assert [before["steps"] for before in facts["runs_before"]] == [2]


def test_bfloat16_learns_as_float32_does(one_thread):
    method = build()
    views = {group: {**found, "pixels": found["pixels"].float()} for group, found in batch().items()}
    expected = method(views, At(0.0))
    with torch.autocast("cpu", torch.bfloat16):
        got = method(views, At(0.0))
    for name in ("dense_loss", "pooled_loss", "dense_loss_of_others", "dense_feature_std"):
        assert got.metrics[name].item() == pytest.approx(expected.metrics[name].item(), rel=0.02), name
    assert got.metrics["counted"] == expected.metrics["counted"]


def test_without_time_no_flow_is_wanted(clip, tmp_path):
    recipe = recipe_of("--clips.still=true", "--run.steps=2", "--run.batch_size=2")
    pretrain([clip], tmp_path / "run", recipe, frames=tmp_path / "frames")
    rows = read_log(tmp_path / "run" / "log.jsonl")
    assert all(row["occluded"] == row["left_view"] == row["flow_pixels"] == 0 for row in rows)
    assert not list((tmp_path / "frames").rglob("*.flow"))


def test_the_weights_of_the_flow_are_told_and_held_to(clip, tmp_path, one_thread):
    weights = tmp_path / "raft.pth"
    torch.manual_seed(0)
    torch.save(raft_small(weights=None).state_dict(), weights)
    flow = ["--objective.flow.estimator=raft", f"--objective.flow.weights={weights}", "--objective.flow.iterations=1"]
    recipe = recipe_of(*flow, "--run.steps=2", "--run.batch_size=1", "--run.checkpoint_every=1")
    pretrain([clip], tmp_path / "run", recipe, frames=tmp_path / "frames")
    digest = json.loads((tmp_path / "run" / "run.json").read_text())["outside"]["optical flow"]
    assert digest in (tmp_path / "run" / "encoder" / "README.md").read_text()
    torch.save(raft_small(weights=None).state_dict(), weights)
    with pytest.raises(InputError, match=f"names optical flow of SHA-256 {digest}"):
        pretrain([clip], tmp_path / "run", recipe, frames=tmp_path / "frames", resume=True)
