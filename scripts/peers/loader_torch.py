#!/usr/bin/env python3
"""Image files to training crops with PyTorch's usual parts: the peers of `zfnet bench loader --size 224`.

    loader_torch.py DIR [--seconds 5] [--resize 256] [--size 224] [--batch 128] [--workers 1]

DIR is searched for JPEG files, whatever its folders. Rows, each the median of at least five passes
that take turns with the other rows', one JSON object a line:

* pillow, opencv, torchvision / decode: full decode to RGB, one thread.
* ... / square: and the shortest side resized to --resize with antialiasing (Pillow: bilinear;
  torchvision: v2.Resize(antialias=True); OpenCV has none, so INTER_AREA), centre cut out.
* pillow, torchvision / batch: DataLoader with --workers processes; Resize, RandomCrop,
  RandomHorizontalFlip, uint8 tensors.

Needs PyTorch, torchvision, Pillow, OpenCV and NumPy. It is not part of the program.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import cv2
import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2


def opencv_square(image, side):
    h, w = image.shape[:2]
    scale = side / min(h, w)
    size = (max(side, round(w * scale)), max(side, round(h * scale)))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    image = cv2.resize(image, size, interpolation=way)
    y, x = (size[1] - side) // 2, (size[0] - side) // 2
    return np.ascontiguousarray(image[y : y + side, x : x + side])


def one_by_one(files, side):
    """Functions of a file's bytes, by name."""
    resize = v2.Compose([v2.Resize(side, antialias=True), v2.CenterCrop(side)])

    def pillow(data):
        import io

        return Image.open(io.BytesIO(data)).convert("RGB")

    def opencv(data):
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)

    def tv(data):
        return decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)

    return {
        "pillow/decode": lambda data: pillow(data).load(),
        "pillow/square": lambda data: np.asarray(resize(pillow(data))),
        "opencv/decode": opencv,
        "opencv/square": lambda data: opencv_square(opencv(data), side),
        "torchvision/decode": tv,
        "torchvision/square": lambda data: resize(tv(data)),
    }


class Files(Dataset):
    def __init__(self, files, resize, size, with_pillow):
        self.files, self.with_pillow = files, with_pillow
        ways = [v2.Resize(resize, antialias=True), v2.RandomCrop(size), v2.RandomHorizontalFlip()]
        self.ways = v2.Compose(ways + [v2.PILToTensor()] if with_pillow else ways)

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        path = self.files[index]
        if self.with_pillow:
            return self.ways(Image.open(path).convert("RGB"))
        return self.ways(decode_image(str(path), ImageReadMode.RGB))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dir", type=Path)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--resize", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    endings = (".jpg", ".jpeg")
    files = sorted(p for p in args.dir.rglob("*") if p.suffix.lower() in endings)
    # Enough for a pass to take a while, and no more than fits into memory.
    files = (files * -(-512 // len(files)))[:2048]
    data = [path.read_bytes() for path in files]

    rows = {}
    for name, work in one_by_one(files, args.resize).items():

        def run(work=work):
            for item in data:
                work(item)

        rows[name] = run
    for name, with_pillow in [("pillow/batch", True), ("torchvision/batch", False)]:
        dataset = Files(files, args.resize, args.size, with_pillow)
        loader = DataLoader(
            dataset, args.batch, shuffle=True, num_workers=args.workers, persistent_workers=True
        )

        def run(loader=loader):
            for _ in loader:
                pass

        rows[name] = run

    times = {name: [] for name in rows}
    begun = time.perf_counter()
    passes = 0
    while passes < 6 or time.perf_counter() - begun < args.seconds * len(rows):
        for name, run in rows.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
        passes += 1
    versions = {m.__name__: m.__version__ for m in (torch, torchvision, PIL, cv2)}
    for name, seconds in times.items():
        rate = len(files) / statistics.median(seconds[1:])
        row = {"id": name, "images_per_second": round(rate, 1), "passes": passes - 1}
        if name.endswith("batch"):
            row["workers"] = args.workers
        print(json.dumps(row | versions))


if __name__ == "__main__":
    main()
