"""Behaviour cloning in a world that one can see through, and in Meta-World where it is installed."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from training.evaluation.measure import evaluate
from training.evaluation.probes.policy import Policy, imitate, past_of, with_past
from training.evaluation.protocols import behaviour_cloning
from training.evaluation.simulation.demonstrations import AFTER, SEED, demonstrations
from training.evaluation.simulation.metaworld import MetaWorld
from training.evaluation.simulation.world import Episode, Observation, World
from training.evaluation.statistics.comparison import compare
from video_distilled_encoder import InputError


class Corridor(World):
    """Go to the end that the picture's colour tells: red is left, blue is right."""

    name = "corridor"

    def __init__(self, colours=((255, 0, 0), (0, 0, 255)), lazy=False):
        self.colours, self.lazy, self.pictures = colours, lazy, 0

    @property
    def description(self):
        return {"task": self.name, "colours": self.colours}

    def episode(self, seed, number):
        return Walk(self, int(np.random.default_rng([seed, number]).integers(2)))


class Walk(Episode):
    def __init__(self, world, side):
        self.world, self.side, self.place = world, side, 0.0

    def observe(self):
        return Observation(np.float32([self.place]), np.float32([self.place, self.side]))

    def picture(self):
        self.world.pictures += 1
        return np.full((64, 64, 3), self.world.colours[self.side], np.uint8)

    def expert(self):
        return np.float32([0.0 if self.world.lazy and self.side else 2 * self.side - 1])

    def act(self, action):
        self.place += 0.25 * float(np.clip(action[0], -1, 1))
        return self.place * (2 * self.side - 1) >= 0.99


@pytest.fixture
def corridor(monkeypatch, one_thread):
    world = Corridor()
    monkeypatch.setattr(behaviour_cloning, "open_world", lambda task, args: world)
    return world


def words(tmp_path, **options):
    asked = {"model": "constant", "data": tmp_path / "demos", "cache": tmp_path / "cache", "tasks": "corridor"}
    asked |= {"demonstrations": 8, "rollouts": 12, "horizon": 12, "epochs": 60, **options}
    return ["behaviour-cloning", *(str(word) for name, value in asked.items() for word in (f"--{name}", value))]


def test_a_policy_solves_what_its_inputs_tell_and_no_more(corridor, tmp_path):
    figures = {
        name: evaluate(words(tmp_path, inputs=name))["figures"] for name in ("thumbnail", "state", "proprioception")
    }
    assert figures["thumbnail"]["success"] == figures["state"]["success"] == 100
    assert figures["proprioception"]["success"] < 80
    assert len(figures["state"]["units"]) == 12
    assert figures["state"]["tasks"]["corridor"]["solved"] == "12 of 12"
    assert figures["state"]["tasks"]["corridor"]["wilson"] == [75.75, 100.0]  # 1 / (1 + 1.96² / 12)
    seeing = evaluate(words(tmp_path, model="pixels", pool="mean", history=1))
    blind = evaluate(words(tmp_path, history=1))
    assert seeing["figures"]["success"] == 100
    assert blind["figures"]["success"] < 80


def test_results_are_compared_rollout_by_rollout_and_the_expert_is_recorded_once(corridor, tmp_path):
    paths = {name: tmp_path / f"{name}.json" for name in ("thumbnail", "proprioception")}
    for name, path in paths.items():
        evaluate(words(tmp_path, inputs=name, out=path, pictures=tmp_path / "sheets" / f"{name}.png", evaluations=3))
        before = corridor.pictures
    table = compare(list(paths.values()))
    assert "smaller" in table
    assert "constant, proprioception" in table
    with Image.open(tmp_path / "sheets" / "thumbnail.png") as sheet:
        assert sheet.size in [(count * 68 - 4, 64) for count in (5, 6)]  # at first, and after four or five steps
    result = json.loads(paths["thumbnail"].read_text())
    assert result["figures"]["best"] >= result["figures"]["success"]
    assert list(result["fingerprint"]) == ["demonstrations of corridor"]
    evaluate([*words(tmp_path, inputs="thumbnail", out=paths["thumbnail"], evaluations=3), "--reuse"])
    assert corridor.pictures == before


def test_demonstrations_are_solved_episodes_of_their_own_seed(tmp_path):
    world = Corridor()
    found = demonstrations(tmp_path, world, 6, 20)
    assert sorted(set(found.episode)) == list(range(6))
    for number in range(6):
        of = found.episode == number
        side = world.episode(SEED, number).side
        assert of.sum() == 4 + AFTER
        assert np.array_equal(
            found.proprioception[of, 0], (2 * side - 1) * 0.25 * np.arange(4 + AFTER, dtype=np.float32)
        )
        assert np.all(found.actions[of] == 2 * side - 1)
        assert np.all(found.pictures[of] == np.uint8(world.colours[side]))
    with pytest.raises(InputError, match="was recorded as"):
        demonstrations(tmp_path, Corridor(colours=((0, 0, 0), (9, 9, 9))), 6, 20)
    (tmp_path / "corridor-6.npz").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match="delete it"):
        demonstrations(tmp_path, world, 6, 20)
    with pytest.raises(InputError, match=r"solved corridor in \d+ of 40 episodes of 20 steps"):
        demonstrations(tmp_path, Corridor(lazy=True), 20, 20)
    assert not (tmp_path / "corridor-20.npz").exists()


def test_the_past_is_of_the_same_episode_newest_first():
    episode = torch.tensor([0, 0, 0, 1, 1])
    assert past_of(episode, 3).tolist() == [[0, 0, 0], [1, 0, 0], [2, 1, 0], [3, 3, 3], [4, 3, 3]]
    features = torch.randn(5, 4)
    joined = with_past(features, past_of(episode, 3))
    expected = torch.cat([features[2], features[2] - features[1], features[1] - features[0]])
    assert torch.allclose(joined[2], expected)


def test_a_policy_trains_on_the_squared_error_and_leaves_the_generator_alone():
    inputs = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    actions = torch.stack([inputs[:, 0] - inputs[:, 1], inputs[:, 2].abs()], dim=1)
    before = torch.random.get_rng_state()
    policies = [
        ((policy(inputs) - actions).square().mean().item(), policy.training)
        for policy in imitate(inputs, actions, epochs=90, parts=3, seed=1)
    ]
    assert torch.equal(torch.random.get_rng_state(), before)
    errors = [error for error, _ in policies]
    assert len(errors) == 3
    assert errors[-1] < min(0.05, errors[0])
    assert not any(training for _, training in policies)
    assert sum(parameter.numel() for parameter in Policy(3, 2).parameters()) == 6 + 4 * 256 + 2 * 257 * 256 + 257 * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"demonstrations": 26}, "--demonstrations must be 1 to 25"),
        ({"rollouts": 0}, "--rollouts 1 to 50"),
        ({"evaluations": 61}, "--evaluations must be 1 to --epochs"),
        ({"history": 0}, "--history at least 1"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_recorded(corridor, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        evaluate(words(tmp_path, **options))
    assert not (tmp_path / "demos").exists()


def test_meta_worlds_expert_is_seen_solving_its_task(tmp_path, one_thread):
    try:
        world = MetaWorld("button-press-topdown")
    except InputError as error:
        pytest.skip(str(error))  # without the package, or a machine without EGL and OSMesa
    first = world.episode(0, 0).picture()
    world = MetaWorld("button-press-topdown")  # while the one before it is there, which is then freed
    assert np.array_equal(world.episode(0, 0).picture(), first)
    other = MetaWorld("drawer-open", side=112, hold=2)
    assert other.episode(0, 0).picture().shape == (112, 112, 3)
    assert np.array_equal(world.episode(0, 0).picture(), first)
    with pytest.raises(InputError, match="no task 'juggle'; choose from: assembly"):
        MetaWorld("juggle")
    found = demonstrations(tmp_path, world, 2, 100)
    assert found.pictures.shape[1:] == (224, 224, 3)
    assert 60 <= len(found.actions) / 2 <= 80
    assert np.abs(found.actions).max() <= 1
    red = (found.pictures[..., 0] > 120) & (found.pictures[..., 1:].max(-1) < 60)
    assert 0.01 < red.mean() < 0.2  # the arm
    place = np.array([np.argwhere(mask).mean(0) for mask in red])  # which stands upright on the left of the table
    assert place[:, 1].max() < 150
