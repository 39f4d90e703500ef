"""How fast recordings are read beside each format's own reader, and what storing a JPEG anew costs and gives.

    python tests/benchmarks/recordings.py VIDEO [--frames 120] [--rounds 5] [--lerobot PYTHON]

Writes one camera's frames, 640x480, into each format and reads them by `sources` and by a plain loop with the package
of the format, both to RGB arrays, in turns in one process. Prints milliseconds of processor time a frame, the least of
the rounds. With --lerobot, the interpreter of an environment with LeRobot (`pip install 'lerobot[dataset]==0.6.1'` in
Python 3.12), LeRobot writes a data set of v3, and both read it in turns, each in its own environment. Then, of frames
that are JPEGs already: what a second compression changes in pixels and in the features of the bundled encoder, and what
a region of a frame takes that has restart markers beside the whole of one that has none.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import h5py
import numpy as np
import tfrecord
import torch
import zarr
from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory
from PIL import Image
from rosbags.highlevel import AnyReader
from rosbags.rosbag1 import Writer
from rosbags.typesys import Stores, get_typestore
from torch.nn.functional import cosine_similarity

from training.data import jpeg
from training.data.box import Box
from training.data.frame_store import ExtractConfig, extract_sources
from video_distilled_encoder import Encoder
from video_distilled_encoder.sources import find_sources
from video_distilled_encoder.sources.source import Asked
from video_distilled_encoder.video import read_frames, write_video

FPS = 20
STAMP = 1_700_000_000


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lerobot", metavar="PYTHON", help="of an environment with LeRobot")
    args = parser.parse_args()
    frames = itertools.islice(read_frames(args.video), args.frames)
    images = [np.asarray(Image.fromarray(frame.image).resize((640, 480), Image.Resampling.BICUBIC)) for frame in frames]
    print(f"{len(images)} frames of 640x480, ms of processor time a frame: ours, the format's own, ratio")
    with tempfile.TemporaryDirectory() as folder:
        for name, write, plain in FORMATS:
            path = Path(folder) / name
            write(path, images)
            (source,) = find_sources([path], Asked(fps=FPS))
            ways = (lambda source=source: (frame.image for frame in source.frames()), lambda p=path, r=plain: r(p))
            times = [[_time(way) for way in ways] for _ in range(args.rounds)]
            ours, theirs = (min(column) for column in zip(*times, strict=True))
            print(f"{name:12} {1e3 * ours / len(images):6.2f} {1e3 * theirs / len(images):6.2f} {ours / theirs:6.2f}")
        if args.lerobot:
            beside_lerobot(args.lerobot, Path(folder), images, args.rounds)
    second_loss(images[:: max(1, len(images) // 10)])
    regions(images[:: max(1, len(images) // 10)])


def _time(read: Callable[[], Iterator[np.ndarray]]) -> float:
    begin = time.process_time()
    count = sum(image.shape == (480, 640, 3) for image in read())
    assert count
    return time.process_time() - begin


def beside_lerobot(python: str, folder: Path, images: list[np.ndarray], rounds: int) -> None:
    """Print what reading LeRobot's own data set takes, ours and extraction to a frame store beside LeRobot's."""
    np.save(folder / "images.npy", np.stack(images))
    root = folder / "lerobot"

    def lerobot(*words: object) -> str:
        script = Path(__file__).with_name("lerobot_reading.py")
        done = subprocess.run([python, script, *map(str, words)], stdout=subprocess.PIPE, check=True, text=True)
        return done.stdout.splitlines()[-1] if done.stdout else ""

    lerobot("write", root, folder / "images.npy", FPS)
    sources = find_sources([root])
    ours, extraction, theirs = [], [], []
    for number in range(rounds):
        ours.append(_time(lambda: (frame.image for source in sources for frame in source.frames())))
        begin = time.process_time()
        found = extract_sources(sources, folder / f"frames-{number}", ExtractConfig())
        extraction.append(time.process_time() - begin)
        assert not [error for error in found if isinstance(error, Exception)]
        facts = json.loads(lerobot("read", root))
        assert facts["frames"] == len(images)
        theirs.append(facts["seconds"])
    scale = 1e3 / len(images)
    for name, seconds in (("LeRobot v3", min(ours)), ("  extracted", min(extraction))):
        print(f"{name:12} {scale * seconds:6.2f} {scale * min(theirs):6.2f} {seconds / min(theirs):6.2f}")
    print(f"  LeRobot {facts['lerobot']} decodes with {facts['decoder']}")


def in_file(image: np.ndarray, quality: int = 90, subsampling: str = "4:2:0") -> bytes:
    """Return a JPEG as cameras write it, without restart markers."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return buffer.getvalue()


def of_file(data: bytes) -> np.ndarray:
    """Decode a picture file."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def write_bag(path: Path, images: list[np.ndarray]) -> None:
    """Write a ROS 1 bag of CompressedImage."""
    store = get_typestore(Stores.ROS1_NOETIC)
    kind = "sensor_msgs/msg/CompressedImage"
    with Writer(path) as bag:
        topic = bag.add_connection("/camera/image", kind, typestore=store)
        for number, image in enumerate(images):
            moment = store.types["builtin_interfaces/msg/Time"](sec=STAMP, nanosec=number * 10**9 // FPS % 10**9)
            moment.sec += number // FPS
            header = store.types["std_msgs/msg/Header"](seq=number, stamp=moment, frame_id="")
            said = store.types[kind](header=header, format="jpeg", data=np.frombuffer(in_file(image), np.uint8))
            bag.write(topic, moment.sec * 10**9 + moment.nanosec, store.serialize_ros1(said, kind))


def read_bag(path: Path) -> Iterator[np.ndarray]:
    """Read a bag as rosbags' documentation does."""
    with AnyReader([path]) as bag:
        for connection, _, content in bag.messages():
            yield of_file(bytes(bag.deserialize(content, connection.msgtype).data))


def write_mcap(path: Path, images: list[np.ndarray]) -> None:
    """Write an MCAP of ROS 2's CompressedImage."""
    from mcap_ros2.writer import Writer as McapWriter

    header = "================\nMSG: std_msgs/Header\nbuiltin_interfaces/Time stamp\nstring frame_id\n"
    with path.open("wb") as file, McapWriter(file) as out:
        definition = f"std_msgs/Header header\nstring format\nuint8[] data\n{header}"
        schema = out.register_msgdef("sensor_msgs/msg/CompressedImage", definition)
        for number, image in enumerate(images):
            stamp = STAMP * 10**9 + number * 10**9 // FPS
            moment = {"sec": stamp // 10**9, "nanosec": stamp % 10**9}
            said = {"header": {"stamp": moment, "frame_id": ""}, "format": "jpeg", "data": in_file(image)}
            out.write_message("/camera/image", schema, said, log_time=stamp)


def read_mcap(path: Path) -> Iterator[np.ndarray]:
    """Read an MCAP as mcap's documentation does."""
    with path.open("rb") as file:
        for found in make_reader(file, decoder_factories=[DecoderFactory()]).iter_decoded_messages():
            yield of_file(found.decoded_message.data)


def write_hdf5(path: Path, images: list[np.ndarray]) -> None:
    """Write an episode in ALOHA's layout."""
    with h5py.File(path, "w") as file:
        file.create_dataset("observations/images/camera", data=np.stack(images), chunks=(1, 480, 640, 3))


def read_hdf5(path: Path) -> Iterator[np.ndarray]:
    """Read an episode frame by frame."""
    with h5py.File(path) as file:
        array = file["observations/images/camera"]
        for number in range(len(array)):
            yield array[number]


def write_zarr(path: Path, images: list[np.ndarray]) -> None:
    """Write an episode in diffusion policy's layout."""
    root = zarr.open_group(str(path), mode="w", zarr_format=2)
    root.create_group("meta").create_array("episode_ends", data=np.array([len(images)]))
    values = np.stack(images)
    root.create_group("data").create_array("camera", data=values, chunks=(1, *values.shape[1:]))


def read_zarr(path: Path) -> Iterator[np.ndarray]:
    """Read an episode frame by frame."""
    array = zarr.open_group(str(path), mode="r")["data/camera"]
    for number in range(array.shape[0]):
        yield array[number]


def write_records(path: Path, images: list[np.ndarray]) -> None:
    """Write an episode as TFDS does."""
    path.mkdir()
    picture = {"image": {"shape": {"dimensions": ["480", "640", "3"]}, "dtype": "uint8"}}
    observation = {"featuresDict": {"features": {"camera": picture}}}
    steps = {"sequence": {"feature": {"featuresDict": {"features": {"observation": observation}}}}}
    (path / "features.json").write_text(json.dumps({"featuresDict": {"features": {"steps": steps}}}))
    facts = {"name": "set", "splits": [{"name": "train", "shardLengths": ["1"]}]}
    (path / "dataset_info.json").write_text(json.dumps(facts))
    out = tfrecord.TFRecordWriter(str(path / "set-train.tfrecord-00000-of-00001"))
    out.write({"steps/observation/camera": ([in_file(image) for image in images], "byte")})
    out.close()


def read_records(path: Path) -> Iterator[np.ndarray]:
    """Read an episode with the package `tfrecord`."""
    from tfrecord import example_pb2
    from tfrecord.reader import tfrecord_iterator

    for record in tfrecord_iterator(str(path / "set-train.tfrecord-00000-of-00001")):
        example = example_pb2.Example()
        example.ParseFromString(bytes(record))
        for data in example.features.feature["steps/observation/camera"].bytes_list.value:
            yield of_file(data)


def read_video(path: Path) -> Iterator[np.ndarray]:
    """Read a video with PyAV."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


FORMATS = [
    ("x.mp4", lambda path, images: write_video(path, images, FPS), read_video),
    ("x.mcap", write_mcap, read_mcap),
    ("x.bag", write_bag, read_bag),
    ("x.hdf5", write_hdf5, read_hdf5),
    ("x.zarr", write_zarr, read_zarr),
    ("tfds", write_records, read_records),
]


def second_loss(images: list[np.ndarray]) -> None:
    """Print what compressing JPEGs a second time, at quality 90, changes."""
    encoder = Encoder.from_pretrained("nota/vfd-vits16")

    def patches(pictures: list[np.ndarray]) -> torch.Tensor:
        found = [encoder.encode(picture, size=224, crop_mode="whole").patches.flatten(0, 1) for picture in pictures]
        return torch.cat(found)

    raw = patches(images)
    print("JPEGs compressed a second time, at quality 90: PSNR between the two; mean cosine of patches,")
    print("raw with the first, raw with the second, first with second")
    for quality, subsampling in itertools.product((75, 90, 95), ("4:2:0", "4:4:4")):
        first = [of_file(in_file(image, quality, subsampling)) for image in images]
        second = [jpeg.decode(jpeg.encode(Image.fromarray(image), 90)) for image in first]
        error = np.mean([np.square(a.astype(float) - b).mean() for a, b in zip(first, second, strict=True)])
        one, two = patches(first), patches(second)
        cosines = (float(cosine_similarity(*pair, dim=1).mean()) for pair in ((raw, one), (raw, two), (one, two)))
        told = " ".join(f"{cosine:.5f}" for cosine in cosines)
        print(f"  first {quality} {subsampling}: {10 * np.log10(255**2 / error):.1f} dB  {told}")


def regions(images: list[np.ndarray]) -> None:
    """Print what a region of a frame takes beside the whole, which a JPEG without restart markers costs."""
    large = [Image.fromarray(image).resize((1280, 720), Image.Resampling.BICUBIC) for image in images]
    plain, ours = [in_file(np.asarray(image)) for image in large], [jpeg.encode(image, 90) for image in large]
    rng = np.random.default_rng(0)
    for share in (0.05, 0.15, 0.3, 0.5):
        width, height = (min(side, round(side * share**0.5)) for side in (1280, 720))
        boxes = [Box(int(rng.integers(1281 - width)), int(rng.integers(721 - height)), width, height) for _ in ours]
        times = []
        for _ in range(5):
            begin = time.process_time()
            for data in plain:
                of_file(data)
            middle = time.process_time()
            for data, box in zip(ours, boxes, strict=True):
                jpeg.decode(data, box)
            times.append((middle - begin, time.process_time() - middle))
        whole, part = (1e3 * min(column) / len(ours) for column in zip(*times, strict=True))
        print(f"{share:.0%} of a 1280x720 frame: {part:.2f} ms, the whole one {whole:.2f} ms, {whole / part:.1f} times")


if __name__ == "__main__":
    main()
