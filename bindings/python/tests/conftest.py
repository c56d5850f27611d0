"""A set of pictures and a network that is trained on them for a moment, for all tests."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import zfnet

NETWORK = """
name = "small"
classes = 2
input = { size = 32, resize = 36, std = 64.0 }
layers = [
  { type = "conv", name = "conv1", channels = 8, kernel = 5, stride = 2 },
  { type = "relu" },
  { type = "maxpool", name = "pool1", kernel = 3, stride = 2 },
  { type = "lrn" },
  { type = "conv", name = "conv2", channels = 12, kernel = 3, pad = 1 },
  { type = "relu" },
  { type = "fc", name = "fc3", outputs = 16 },
  { type = "relu" },
  { type = "dropout" },
  { type = "fc", name = "fc4" },
]
[recipe]
init = "he"
learning_rate = 0.01
schedule = "constant"
epochs = 6
batch_size = 8
"""


def picture(seed: int) -> np.ndarray:
    """Stripes, across if `seed` is even, on noise."""
    random = np.random.default_rng(seed)
    rows, columns = random.integers(40, 60, 2)
    y, x = np.mgrid[:rows, :columns]
    stripes = np.sin((y if seed % 2 == 0 else x) * random.uniform(0.6, 0.9))
    noise = random.normal(0, 20, (rows, columns, 3))
    return np.clip(128 + 80 * stripes[:, :, None] + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for split, count in [("train", 32), ("val", 8)]:
        for seed in range(count):
            folder = root / split / ("across" if seed % 2 == 0 else "down")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(seed + (1000 if split == "val" else 0))).save(folder / f"{seed}.png")
    return root


@pytest.fixture(scope="session")
def toml(tmp_path_factory):
    path = tmp_path_factory.mktemp("network") / "small.toml"
    path.write_text(NETWORK)
    return path


@pytest.fixture(scope="session")
def run(data, toml, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "run"
    return zfnet.train(arch=toml, data=data, out=out, progress=False).path


@pytest.fixture(scope="session")
def net(run):
    return zfnet.load(run)


@pytest.fixture(scope="session")
def file(data):
    return data / "val" / "across" / "0.png"


@pytest.fixture(scope="session")
def command():
    """Runs the command that came with the package, and gives what it writes."""
    path = os.path.join(os.path.dirname(sys.executable), "zfnet")

    def called(*args):
        done = subprocess.run([path, *map(str, args)], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return called
