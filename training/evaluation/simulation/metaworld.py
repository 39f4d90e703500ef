"""Meta-World's tasks of a robot's arm (Yu et al., CoRL 2019; package metaworld, MIT), seen by one camera.

Shadows, reflections and multisampling are off: they take ten times as long on a CPU. Pictures come from EGL or OSMesa,
whichever is there (MUJOCO_GL names one), on one thread.
"""

from __future__ import annotations

import atexit
import os
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import numpy as np

from training.evaluation.simulation.world import Episode, Observation, World
from video_distilled_encoder.errors import InputError, MissingExtra, first_line, import_extra

CAMERA = "corner2"
SIDE = 224
GOALS = 50
"""That Meta-World draws for a seed."""


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep back what Meta-World and gymnasium warn of at every step: observations and actions beyond their space."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _import() -> tuple[Any, dict[str, Any]]:
    """Return the package and its scripted experts; mujoco looks for EGL or OSMesa as it is imported."""
    os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("LP_NUM_THREADS", "1")
    try:
        with _quietly():
            return import_extra("metaworld", "robot-eval"), import_extra(
                "metaworld.policies", "robot-eval"
            ).ENV_POLICY_MAP
    except MissingExtra:
        raise
    except Exception as error:  # of PyOpenGL, of no common class
        raise _cannot_draw(error) from error


def _cannot_draw(error: Exception) -> InputError:
    return InputError(
        f"pictures cannot be drawn with MUJOCO_GL={os.environ['MUJOCO_GL']}: {first_line(error)}; install libegl1 and "
        "libgl1-mesa-dri, or libosmesa6 and set MUJOCO_GL=osmesa"
    )


class MetaWorld(World):
    """A task of Meta-World.

    Args:
        name: as "button-press-topdown".
        side: of its pictures, in pixels.
        hold: steps for which an action is held, the expert's and a policy's.

    Raises:
        InputError: there is no such task, a package is missing, or nothing can draw pictures.
    """

    def __init__(self, name: str, side: int = SIDE, hold: int = 1) -> None:
        self.side, self.hold = side, hold
        self.metaworld, policies = _import()
        if f"{name}-v3" not in policies:
            known = ", ".join(sorted(known.removesuffix("-v3") for known in policies))
            raise InputError(f"Meta-World has no task {name!r}; choose from: {known}")
        self.name = name
        self.policy = policies[f"{name}-v3"]
        self.goals: dict[int, Any] = {}
        self.camera = Camera(self.episode(0, 0).env.model, side)

    @property
    def description(self) -> dict[str, object]:
        """Versions and camera."""
        packages = {package: version(package) for package in ("metaworld", "mujoco")}
        return {"task": f"{self.name}-v3", "camera": CAMERA, "side": self.side, "hold": self.hold, **packages}

    def episode(self, seed: int, number: int) -> MetaWorldEpisode:
        """Return an attempt; number is less than 50."""
        if seed not in self.goals:
            self.goals[seed] = self.metaworld.MT1(f"{self.name}-v3", seed=seed)
        benchmark = self.goals[seed]
        with _quietly():
            env = benchmark.train_classes[f"{self.name}-v3"]()
            env.set_task(benchmark.train_tasks[number])
            observation, _ = env.reset(seed=number)
        return MetaWorldEpisode(self, env, observation)


class MetaWorldEpisode(Episode):
    """An attempt at a task of Meta-World."""

    def __init__(self, world: MetaWorld, env: Any, observation: np.ndarray) -> None:
        self.world, self.env, self.observation = world, env, observation
        self.policy = world.policy()

    def observe(self) -> Observation:
        """Return what is known; the robot knows where its hand is and how far its gripper is open."""
        state = self.observation.astype(np.float32)
        return Observation(state[:4], state)

    def picture(self) -> np.ndarray:
        """Draw what the camera sees."""
        return self.world.camera.picture(self.env.model, self.env.data)

    def expert(self) -> np.ndarray:
        """Return Meta-World's scripted policy's action."""
        with _quietly():
            return np.clip(self.policy.get_action(self.observation), -1, 1).astype(np.float32)

    def act(self, action: np.ndarray) -> bool:
        """Do 4 numbers for some steps: the hand's movement in three directions, and the gripper's."""
        solved = False
        for _ in range(self.world.hold):
            with _quietly():
                self.observation, _, _, _, facts = self.env.step(np.clip(action, -1, 1))
            solved |= bool(facts["success"])
        return solved


def _free(context: Any, renderer: Any) -> None:
    """Free what a camera draws with: in its own context, for names there are names of other things elsewhere."""
    context.make_current()
    renderer.free()
    context.free()


class Camera:
    """Draws the scenes of all attempts at one task, whose models differ in places of bodies alone."""

    def __init__(self, model: Any, side: int) -> None:
        self.side = side
        mujoco = self.mujoco = import_extra("mujoco", "robot-eval")
        model.vis.quality.offsamples, model.vis.quality.shadowsize = 0, 1
        model.vis.global_.offwidth = model.vis.global_.offheight = side
        try:
            self.context = mujoco.GLContext(side, side)
            self.context.make_current()
            self.renderer = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        except Exception as error:  # of EGL, OSMesa and mujoco, of no common class
            raise _cannot_draw(error) from error
        free = weakref.finalize(self, _free, self.context, self.renderer)
        free.atexit = False
        atexit.register(free)  # the last registered comes first: before mujoco ends what it stands on
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.renderer)
        self.scene = mujoco.MjvScene(model, maxgeom=10_000)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self.scene.flags[flag] = 0
        self.view = mujoco.MjvCamera()
        self.view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self.view.fixedcamid = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, CAMERA)

    def picture(self, model: Any, data: Any) -> np.ndarray:
        """Return (side, side, 3) uint8 RGB."""
        self.context.make_current()  # another task's may be
        mujoco = self.mujoco
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(model, data, mujoco.MjvOption(), None, self.view, everything, self.scene)
        area = mujoco.MjrRect(0, 0, self.side, self.side)
        mujoco.mjr_render(area, self.scene, self.renderer)
        pixels = np.empty((self.side, self.side, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, area, self.renderer)
        return pixels[:, ::-1].copy()  # rows come from below, and this camera hangs upside down
