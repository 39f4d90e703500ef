"""Twenty steps of ACT and of Diffusion through the real LeRobot, on a data set made here; run by `lerobot.sh`."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

CAMERAS = {"observation.images.front": (96, 128), "observation.images.wrist": (96, 128)}
SMALL = {
    "vde_act": "dim_model=64 n_heads=4 dim_feedforward=128 n_encoder_layers=1 n_vae_encoder_layers=1 chunk_size=8 "
    "n_action_steps=8",
    "vde_diffusion": "down_dims=[32,64] horizon=8 n_action_steps=4 num_inference_steps=4 crop_shape=[88,120] "
    "drop_n_last_frames=3",
}


def make_dataset(root: Path) -> None:
    """Two episodes of two cameras: a bright square that the action follows."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    image = {"dtype": "image", "names": ["height", "width", "channels"]}
    vector = {"dtype": "float32", "shape": (2,), "names": ["x", "y"]}
    features = {name: image | {"shape": (*size, 3)} for name, size in CAMERAS.items()}
    features |= {"observation.state": vector, "action": vector}
    dataset = LeRobotDataset.create("local/square", fps=10, features=features, root=root, use_videos=False)
    random = np.random.default_rng(0)
    for _ in range(2):
        at = random.uniform(20, 70, 2).astype(np.float32)
        for _ in range(24):
            move = random.uniform(-2, 2, 2).astype(np.float32)
            frame = {"observation.state": at, "action": at + move, "task": "follow"}
            for name, (height, width) in CAMERAS.items():
                picture = random.integers(0, 60, (height, width, 3), dtype=np.uint8)
                picture[int(at[1]) : int(at[1]) + 12, int(at[0]) : int(at[0]) + 12] = 255
                frame[name] = picture
            dataset.add_frame(frame)
            at = np.clip(at + move, 10, 75).astype(np.float32)
        dataset.save_episode()
    dataset.finalize()


def train(kind: str, dataset: Path, encoder: Path, out: Path, *more: str) -> Path:
    """Twenty steps by LeRobot's own command; returns the directory of the saved policy."""
    policy = [f"--policy.{setting}" for setting in [f"type={kind}", f"encoder={encoder}", *SMALL[kind].split(), *more]]
    command = ["lerobot-train", f"--dataset.repo_id=local/{dataset.name}", f"--dataset.root={dataset}", *policy]
    command += ["--policy.push_to_hub=false", "--policy.device=cpu", "--policy.image_size=[64,96]", "--steps=20"]
    command += ["--batch_size=4", "--num_workers=0", "--save_freq=20", "--log_freq=5", f"--output_dir={out}"]
    done = subprocess.run(command, capture_output=True, text=True)
    print(*[line[-150:] for line in (done.stdout + done.stderr).splitlines() if "loss" in line][-4:], sep="\n")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return out / "checkpoints" / "last" / "pretrained_model"


def actions_of(kind: str, saved: Path, dataset: Path) -> torch.Tensor:
    """Load a policy and its processors as LeRobot does and act on three frames."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(saved)
    policy = get_policy_class(config.type).from_pretrained(saved)
    before, after = make_pre_post_processors(config, pretrained_path=str(saved))
    frames = LeRobotDataset("local/square", root=dataset)
    torch.manual_seed(0)
    policy.reset()
    given = [*CAMERAS, "observation.state"]
    return torch.stack([after(policy.select_action(before({k: frames[i][k] for k in given}))) for i in (0, 1, 2)])


def check(kind: str, frozen: bool, dataset: Path, encoder: Path, out: Path) -> None:
    """Train, save, load here, and where the encoder's directory is gone: the same actions."""
    from safetensors.torch import load_file

    saved = train(kind, dataset, encoder, out, f"freeze_encoder={str(frozen).lower()}")
    weights, start = load_file(saved / "model.safetensors"), load_file(encoder / "model.safetensors")
    place = next(name for name in weights if name.endswith("encoder.backbone.cls_token"))
    trunk = place.removesuffix("cls_token")
    moved = [name for name in start if not torch.equal(start[name], weights[trunk + name])]
    assert bool(moved) != frozen, f"{len(moved)} of the encoder's {len(start)} tensors moved"
    actions = actions_of(kind, saved, dataset)
    hidden = encoder.rename(encoder.with_name("hidden"))
    apart = subprocess.run([sys.executable, __file__, kind, saved, dataset], capture_output=True, text=True)
    hidden.rename(encoder)
    assert apart.returncode == 0, apart.stderr[-3000:]
    again = torch.tensor(json.loads(apart.stdout.splitlines()[-1]))
    assert torch.equal(actions, again), (actions - again).abs().max()
    print(
        f"{kind}, {'frozen' if frozen else 'trained'} encoder: {len(moved)} of {len(start)} of its tensors moved; same"
    )


def main(folder: Path) -> None:
    """Prove both policies, the encoder frozen and trained."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.utils.import_utils import register_third_party_plugins

    from video_distilled_encoder import Encoder

    register_third_party_plugins()
    assert {"vde_act", "vde_diffusion"} <= set(PreTrainedConfig.get_known_choices()), "LeRobot has not found the plugin"
    print("lerobot", importlib.metadata.version("lerobot"), "torch", torch.__version__)
    shutil.rmtree(folder, ignore_errors=True)
    make_dataset(folder / "square")
    Encoder.from_pretrained("nota/vfd-vits16").save_pretrained(folder / "encoder")
    for kind in SMALL:
        for frozen in (True, False):
            check(kind, frozen, folder / "square", folder / "encoder", folder / f"{kind}-{frozen}")


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        from lerobot.utils.import_utils import register_third_party_plugins

        register_third_party_plugins()
        print(json.dumps(actions_of(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])).tolist()))
