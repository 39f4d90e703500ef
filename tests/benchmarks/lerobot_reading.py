"""Write a LeRobot data set, or read one, by LeRobot itself; run by `recordings.py --lerobot` in LeRobot's environment.

python lerobot_reading.py write ROOT IMAGES.npy FPS   three episodes of (N, H, W, 3) pictures, one camera
python lerobot_reading.py read ROOT                   prints JSON: seconds of processor time, frames, versions
"""

import importlib.metadata
import json
import sys
import time
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

CAMERA = "observation.images.front"


def write(root: Path, images: np.ndarray, fps: int) -> None:
    """Write pictures as LeRobot records them, with its own defaults for video."""
    feature = {"dtype": "video", "names": ["height", "width", "channels"], "shape": images.shape[1:]}
    action = {"dtype": "float32", "shape": (1,), "names": ["x"]}
    dataset = LeRobotDataset.create("local/x", fps=fps, root=root, features={CAMERA: feature, "action": action})
    for part in np.array_split(images, 3):
        for image in part:
            dataset.add_frame({CAMERA: image, "action": np.zeros(1, np.float32), "task": "none"})
        dataset.save_episode()
    dataset.finalize()


def read(root: Path) -> None:
    """Read all frames in their order, as LeRobot's training does without workers."""
    dataset = LeRobotDataset("local/x", root=root)
    begin = time.process_time()
    count = sum(dataset[number][CAMERA].shape[0] == 3 for number in range(len(dataset)))
    facts = {"seconds": time.process_time() - begin, "frames": count, "lerobot": importlib.metadata.version("lerobot")}
    print(json.dumps({**facts, "decoder": str(getattr(dataset, "_video_backend", None) or dataset.video_backend)}))


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]), np.load(sys.argv[3]), int(sys.argv[4]))
    else:
        read(Path(sys.argv[2]))
