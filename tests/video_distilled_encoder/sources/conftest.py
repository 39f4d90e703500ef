import numpy as np
import pytest

LENGTHS = (12, 9, 15)
HEIGHT, WIDTH = 48, 64


class Coded:
    """Pictures whose colours tell camera, episode and frame; these stand above on the left, and the rest is black."""

    cameras = ("left", "right")
    lengths = LENGTHS
    size = WIDTH, HEIGHT

    @staticmethod
    def picture(camera, episode, frame):
        image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        image[: HEIGHT // 2, : WIDTH // 2] = 40 + 120 * camera, 40 + 60 * episode, 30 + 12 * frame
        return image

    @staticmethod
    def told(image):
        """Return (camera, episode, frame) of a picture that was compressed, and see that it stands upright."""
        assert image.shape == (HEIGHT, WIDTH, 3)
        assert image.dtype == np.uint8
        assert image[HEIGHT // 2 + 4 :].mean() < 6
        assert image[:, WIDTH // 2 + 4 :].mean() < 6
        red, green, blue = image[2 : HEIGHT // 2 - 2, 2 : WIDTH // 2 - 2].reshape(-1, 3).mean(0)
        return round((red - 40) / 120), round((green - 40) / 60), round((blue - 30) / 12)

    def check(self, source, camera, episode, interval):
        """See that a source shows every frame of a camera's view of an episode, each at its time, and no other."""
        frames = list(source.frames())
        length = self.lengths[episode]
        assert [self.told(frame.image) for frame in frames] == [(camera, episode, number) for number in range(length)]
        assert np.allclose([frame.time for frame in frames], np.arange(length) * interval, atol=1e-6)
        assert not any(frame.new_shot for frame in frames)
        info = source.info()
        assert (info.width, info.height, info.frames) == (*self.size, length)
        assert info.fps == pytest.approx(1 / interval)
        slower = list(source.frames(min_interval=2 * interval))
        assert [self.told(frame.image)[2] for frame in slower] == list(range(0, length, 2))


@pytest.fixture(scope="session")
def coded():
    return Coded()
