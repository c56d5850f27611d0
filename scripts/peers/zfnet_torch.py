#!/usr/bin/env python3
"""ZFNet in PyTorch: the peer that `zfnet` is measured against. It is not part of the program.

    zfnet_torch.py bench --batch 128 256 1024 --precision bf16 [--compile [MODE]] --json
    zfnet_torch.py convolutions --batch 256 --precision bf16
    zfnet_torch.py train --data DIR --arch zfnet-mini
    zfnet_torch.py eval --checkpoint RUN/best/model.safetensors --data DIR
    zfnet_torch.py inspect --arch zfnet

`bench --json` and `convolutions` print one object a line, each as soon as it is measured, so that what
is stopped has said what it knows. `train` and `eval` print what `zfnet eval --json` prints. Network and
recipe are read from the same TOML files (src/model/presets), so that there is one description, not two.
Where PyTorch's conventions differ from the paper's:

* Sizes round up. Pooling has `ceil_mode` for it; a convolution's input gets the missing rows and
  columns of zeros at the bottom and right.
* PyTorch divides the LRN's alpha by the window's size, the paper does not, so it is given
  alpha * size.

Needs Python 3.10 and PyTorch; `train` and `eval` need Pillow too.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import statistics
import sys
import time
from multiprocessing import Pool
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

try:
    import tomllib
except ImportError:  # Python 3.10; pip has one
    from pip._vendor import tomli as tomllib

PRESETS = Path(__file__).resolve().parents[2] / "src" / "model" / "presets"

# As in crates/core/src/recipe.rs: what a description leaves out.
RECIPE = {
    "init": "normal",
    "init_std": 0.01,
    "learning_rate": 0.01,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "bias_decay": True,
    "schedule": "plateau",
    "milestones": [],
    "gamma": 0.1,
    "patience": 5,
    "epochs": 70,
    "batch_size": 128,
    "dropout": 0.5,
    "crops": "ten",
    "rms_limit": 0.1,
}
# Modes of torch.compile. `reduce-overhead` records CUDA graphs, `max-autotune` also tries kernels.
MODES = ["default", "reduce-overhead", "max-autotune"]
# Flags that take the place of the recipe's values are called as those of `zfnet train`.
FLAGS = {"init": "--init-weights", "crops": "--train-crops"}


# ---- the network ----


def architecture(name_or_file, flags):
    """A network's description, with the values of its recipe that `flags` gives."""
    preset = PRESETS / f"{name_or_file}.toml"
    text = (preset if preset.exists() else Path(name_or_file)).read_text()
    found = tomllib.loads(text)
    given = {name: getattr(flags, name, None) for name in RECIPE}
    given = {name: value for name, value in given.items() if value is not None}
    found["recipe"] = RECIPE | found.get("recipe", {}) | given
    return found


def windows(size, kernel, stride, before, after, rounding):
    """Number of windows along an axis (crates/core/src/shape.rs)."""
    free = size + before + after - kernel
    if rounding == "floor":
        return free // stride + 1
    count = -(-free // stride) + 1
    return count - 1 if (count - 1) * stride >= size + before else count


def sides(pad):
    """Top, bottom, left, right."""
    return [pad] * 4 if isinstance(pad, int) else list(pad)


class Conv(nn.Conv2d):
    """A convolution whose last windows may reach beyond the input, where zeros are read."""

    def __init__(self, height, width, channels, spec):
        kernel, stride = spec["kernel"], spec.get("stride", 1)
        rounding = spec.get("rounding", "ceil")
        top, bottom, left, right = sides(spec.get("pad", 0))
        p = windows(height, kernel, stride, top, bottom, rounding)
        q = windows(width, kernel, stride, left, right, rounding)
        # What the windows read beyond the input; padding of PyTorch's own kind is free.
        below = max(0, (p - 1) * stride + kernel - height - top)
        beside = max(0, (q - 1) * stride + kernel - width - left)
        symmetric = (height + 2 * top - kernel) // stride + 1 == p
        symmetric = symmetric and (width + 2 * left - kernel) // stride + 1 == q
        self.extra = None if symmetric else (left, beside, top, below)
        super().__init__(
            channels,
            spec["channels"],
            kernel,
            stride,
            (top, left) if symmetric else 0,
            groups=spec.get("groups", 1),
        )
        self.rms_limit = spec.get("rms_limit")
        self.sizes = (p, q, spec["channels"])
        # What is convolved, with the padding that is not PyTorch's.
        rows, columns = (0, 0) if symmetric else (top + below, left + beside)
        self.input = (height + rows, width + columns, channels)

    def forward(self, x):
        return super().forward(x if self.extra is None else F.pad(x, self.extra))


class Lrn(nn.Module):
    """y = x / (k + alpha * sum of x^2 over `size` neighbouring channels)^beta."""

    def __init__(self, spec, slices):
        super().__init__()
        self.size, self.k = spec.get("size", 5), spec.get("k", 2.0)
        self.alpha, self.beta = spec.get("alpha", 1e-4), spec.get("beta", 0.75)
        self.slices = slices

    def forward(self, x):
        if not self.slices:
            return F.local_response_norm(x, self.size, self.alpha * self.size, self.beta, self.k)
        # The same as a sum of shifted squares, which torch.compile makes one kernel of.
        before, after = self.size // 2, (self.size - 1) // 2
        squares = F.pad(x.float().square(), (0, 0, 0, 0, before, after))
        channels = x.shape[1]
        total = sum(squares[:, shift : shift + channels] for shift in range(self.size))
        return (x * (self.k + self.alpha * total).pow(-self.beta)).to(x.dtype)


class Network(nn.Module):
    """The chain of a description. Layers with weights have the names that our checkpoints use."""

    def __init__(self, description, lrn_slices=False):
        super().__init__()
        recipe = description["recipe"]
        height = width = description["input"]["size"]
        channels, number = 3, 0
        self.sizes = {}  # of each layer's output: rows, columns, channels
        self.chain = []
        layers = description["layers"]
        last = max(i for i, spec in enumerate(layers) if spec["type"] in ("conv", "fc"))
        for index, spec in enumerate(layers):
            kind = spec["type"]
            if kind in ("conv", "fc"):
                number += 1
            if kind == "conv":
                layer = Conv(height, width, channels, spec)
                height, width, channels = layer.sizes
                if layer.rms_limit is None:
                    layer.rms_limit = recipe["rms_limit"]
            elif kind == "fc":
                outputs = description["classes"] if index == last else spec["outputs"]
                layer = nn.Linear(height * width * channels, outputs)
                layer.rms_limit = spec.get("rms_limit") or 0.0
                self.chain.append(nn.Flatten())
                height, width, channels = 1, 1, outputs
            elif kind == "relu":
                layer = nn.ReLU(inplace=True)
            elif kind == "maxpool":
                kernel, stride = spec["kernel"], spec["stride"]
                top, bottom, left, right = sides(spec.get("pad", 0))
                if (top, left) != (bottom, right):
                    raise ValueError("pooling with different pads on two sides: not for PyTorch")
                rounding = spec.get("rounding", "ceil")
                layer = nn.MaxPool2d(kernel, stride, (top, left), ceil_mode=rounding == "ceil")
                height = windows(height, kernel, stride, top, bottom, rounding)
                width = windows(width, kernel, stride, left, right, rounding)
            elif kind == "lrn":
                layer = Lrn(spec, lrn_slices)
            elif kind == "dropout":
                layer = nn.Dropout(spec.get("rate", recipe["dropout"]))
            else:
                raise ValueError(f"no layer of type {kind}")
            short = {"maxpool": "pool", "lrn": "norm", "dropout": "drop"}.get(kind, kind)
            name = spec.get("name", f"{short}{number}")
            self.add_module(name, layer)
            self.chain.append(layer)
            self.sizes[name] = (height, width, channels)

    def forward(self, x):
        for layer in self.chain:
            x = layer(x)
        return x

    def weighted(self):
        return [layer for layer in self.chain if isinstance(layer, (nn.Conv2d, nn.Linear))]


def draw_weights(network, recipe):
    for layer in network.weighted():
        he = math.sqrt(2 / layer.weight[0].numel())
        nn.init.normal_(layer.weight, std=he if recipe["init"] == "he" else recipe["init_std"])
        nn.init.zeros_(layer.bias)


@torch.no_grad()
def limit_rms(network):
    """Scales every filter whose root mean square is above its layer's limit down to it."""
    for layer in network.weighted():
        if layer.rms_limit:
            rms = layer.weight.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
            layer.weight.mul_((layer.rms_limit / rms).clamp(max=1.0))


# ---- a training step ----


def set_precision(precision):
    """Whether products of f32 may be TF32's; and cuDNN tries what it has."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True


class Step:
    """Forward, loss, backward and update in one precision, eagerly or compiled."""

    def __init__(self, network, recipe, args):
        self.network, self.device, self.precision = (
            network,
            torch.device(args.device),
            args.precision,
        )
        if self.precision == "bf16":
            self.cast = lambda: torch.autocast(self.device.type, torch.bfloat16)
        else:
            self.cast = contextlib.nullcontext
        set_precision(self.precision)
        weights = [layer.weight for layer in network.weighted()]
        biases = [layer.bias for layer in network.weighted()]
        decay = recipe["weight_decay"]
        self.optimizer = torch.optim.SGD(
            [
                {"params": weights, "weight_decay": decay},
                {"params": biases, "weight_decay": decay if recipe["bias_decay"] else 0.0},
            ],
            lr=recipe["learning_rate"],
            momentum=recipe["momentum"],
            fused=self.device.type == "cuda",
        )
        self.loss, self.limit = self.loss_of, limit_rms
        self.compiled = bool(args.compile)
        if args.compile:
            self.loss = torch.compile(self.loss_of, mode=args.compile)
            self.limit = torch.compile(limit_rms)

    def loss_of(self, x, labels):
        with self.cast():
            return F.cross_entropy(self.network(x).float(), labels)

    def __call__(self, x, labels):
        if self.compiled:  # what recorded graphs of the last step have made may be overwritten
            torch.compiler.cudagraph_mark_step_begin()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(x, labels)
        loss.backward()
        self.optimizer.step()
        self.limit(self.network)
        return loss.detach()

    def set_rate(self, rate):
        for group in self.optimizer.param_groups:
            group["lr"] = rate


def make_network(description, args):
    torch.manual_seed(args.seed)
    slices = args.lrn == "slices" or (args.lrn is None and bool(args.compile))
    network = Network(description, slices)
    draw_weights(network, description["recipe"])
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    return network.to(args.device, memory_format=layout).train()


# ---- bench ----


def bench(args):
    """Images a second of training steps on inputs that lie ready on the device."""
    description = architecture(args.arch, args)
    device = torch.device(args.device)
    for batch in args.batch:
        row = bench_step(description, batch, device, args)
        if args.json:
            print(json.dumps(row | {"device": device_name(device), **versions()}), flush=True)
        else:
            rate = f"{row['images_per_second']:10.1f} images/s"
            print(f"{row['id']:<50} {row['milliseconds']:9.3f} ms {rate}", flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def bench_step(description, batch, device, args):
    if args.compile:
        torch.compiler.reset()  # for this batch size, not for all of them
    step = Step(make_network(description, args), description["recipe"], args)
    step.set_rate(1e-4)
    size = description["input"]["size"]
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    x = torch.randn(batch, 3, size, size, device=device, dtype=dtype)
    if args.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % description["classes"]
    seconds = median_step(lambda: step(x, labels), device, args.seconds)
    way = f"torch-{args.compile or 'eager'}"
    return {
        "id": f"{description['name']}/all/step/{args.precision}/{batch}/{way}",
        "batch": batch,
        "milliseconds": seconds * 1e3,
        "images_per_second": batch / seconds,
    }


def median_step(step, device, seconds):
    """Median seconds of a step, of as many as take `seconds` (at least five), after a warm-up."""
    cuda = device.type == "cuda"
    for _ in range(10 if cuda else 1):  # compiling, cuDNN's trials, clocks
        step()
    if cuda:
        torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(2):
        step()
    if cuda:
        torch.cuda.synchronize()
    count = max(5, min(2000, round(2 * seconds / (time.perf_counter() - begun))))
    if cuda:
        # No waiting in between, so that launches run ahead as they do in training.
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        marks[0].record()
        for mark in marks[1:]:
            step()
            mark.record()
        torch.cuda.synchronize()
        times = [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(marks)]
    else:
        times = []
        for _ in range(count):
            begun = time.perf_counter()
            step()
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


def device_name(device):
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def versions():
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    return {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": cudnn}


# ---- single convolutions ----


@torch.no_grad()
def convolutions(args):
    """Milliseconds of each convolution, by cuDNN on a GPU: forward, and both gradients."""
    description = architecture(args.arch, args)
    device = torch.device(args.device)
    set_precision(args.precision)
    network = Network(description)
    layers = [(n, layer) for n, layer in network.named_children() if isinstance(layer, Conv)]
    about = {"device": device_name(device), **versions()}
    by = "cudnn" if device.type == "cuda" else "torch-cpu"
    for number, (name, layer) in enumerate(layers):
        flops = 2 * args.batch * math.prod(layer.sizes) * layer.weight[0].numel()
        sets = operand_sets(layer, device, args)
        for op, run in operations(layer, number == 0, device).items():
            try:
                times = seconds_in_turn(run, sets, device)
            except RuntimeError as error:
                if op != "forward-fused":
                    raise
                print(f"{name}: cuDNN's convolution, bias and relu at once: {error}", file=sys.stderr)
                continue
            low, median, high = statistics.quantiles(times, n=4, method="inclusive")
            row = {
                "id": f"{description['name']}/{name}/{op}/{args.precision}/{args.batch}/{by}",
                "milliseconds": median * 1e3,
                "spread": (high - low) / median,
                "gflops": flops / median / 1e9,
            }
            print(json.dumps(row | about), flush=True)
        del sets
        if device.type == "cuda":
            torch.cuda.empty_cache()


def operations(layer, first, device):
    """Functions of x, weight, bias and y or its gradient, by name. As ours, `forward` adds a bias and cuts off
    what is negative, and `backward-filter` sums the bias's gradient too; those called `-alone` do not."""
    stride, pad, groups = layer.stride, layer.padding, layer.groups
    backward = torch.ops.aten.convolution_backward

    def gradients(x, w, dy, *wanted):
        sizes = [w.shape[0]]
        return backward(dy, x, w, sizes, stride, pad, (1, 1), False, (0, 0), groups, wanted)

    found = {
        "forward": lambda x, w, b, _: F.conv2d(x, w, b, stride, pad, 1, groups).relu_(),
        "forward-fused": lambda x, w, b, _: torch.cudnn_convolution_relu(
            x, w, b, stride, pad, (1, 1), groups
        ),
        "forward-alone": lambda x, w, b, _: F.conv2d(x, w, None, stride, pad, 1, groups),
        "backward-data": lambda x, w, b, dy: gradients(x, w, dy, True, False, False),
        "backward-filter": lambda x, w, b, dy: gradients(x, w, dy, False, True, True),
        "backward-filter-alone": lambda x, w, b, dy: gradients(x, w, dy, False, True, False),
    }
    if device.type != "cuda":
        del found["forward-fused"]
    if first:  # as in training
        del found["backward-data"]
    return found


def operand_sets(layer, device, args):
    """Operands of numbers from -1 to 1, of which none is left in a cache when its turn comes: as many
    sets as `zfnet bench` takes (`Case::prepare` in src/bench/mod.rs)."""
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    layout = torch.channels_last if args.channels_last else torch.contiguous_format

    def noise(*shape):
        values = torch.empty(shape, dtype=dtype, device=device).uniform_(-1, 1)
        return values.contiguous(memory_format=layout) if len(shape) == 4 else values

    (h, w, c), (p, q, k) = layer.input, layer.sizes
    parameters = layer.weight.numel() + k
    size = args.batch * (h * w * c + p * q * k) * dtype.itemsize + 4 * parameters
    sets = min(max(-(-2 * cache_bytes(device) // size), 1), 64)
    shapes = (args.batch, c, h, w), layer.weight.shape, (k,), (args.batch, k, p, q)
    return [[noise(*shape) for shape in shapes] for _ in range(sets)]


def cache_bytes(device):
    """Of a GPU's L2; 0 where operands may stay in a cache, as for ours."""
    if device.type != "cuda":
        return 0
    return getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 64 << 20)


def seconds_in_turn(run, sets, device):
    """Seconds of each of several runs, each on the next operands (short ones in groups), at least five, for
    about half a second: as ours are timed (`CudaBackend::seconds`)."""
    kept = [None] * len(sets)  # results, so that each run writes to other memory, too
    turn = 0

    def next_run():
        nonlocal turn
        turn = (turn + 1) % len(sets)
        kept[turn] = run(*sets[turn])

    def timed(count):
        if device.type != "cuda":
            begun = time.perf_counter()
            for _ in range(count):
                next_run()
            return (time.perf_counter() - begun) / count
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(count):
            next_run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / count

    timed(len(sets) + 1)  # cuDNN's trials, memory for the results
    count = int(min(max(2e-3 / max(timed(1), 1e-6), 1), 100)) if device.type == "cuda" else 1
    times = []
    while len(times) < 5 or sum(times) * count < 0.4:
        times.append(timed(count))
    return times


# ---- images ----


def read_square(task):
    """The centre square of an image, resized to `side`: bytes, or None if it is no usable image."""
    from PIL import Image

    path, side = task
    try:
        with Image.open(path) as image:
            image = image.convert("RGB")
            s = min(image.size)
            left, top = (image.width - s) // 2, (image.height - s) // 2
            # Pillow's bilinear filter is an antialiasing one.
            box = (left, top, left + s, top + s)
            return image.resize((side, side), Image.Resampling.BILINEAR, box=box).tobytes()
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def read_split(folder, side, limit, workers):
    """All squares of DIR/SPLIT/CLASS/*: [images, side, side, 3], their labels, class names.

    They are held in memory: for some ten thousand images, not for all of ImageNet.
    """
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    known = {".jpg", ".jpeg", ".png"}
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in known and not path.name.startswith(".")
    ]
    if limit and limit < len(files):  # evenly over the sorted list, so that every class is there
        files = [files[i * len(files) // limit] for i in range(limit)]
    tasks = [(path, side) for path, _ in files]
    with Pool(workers) as pool:
        squares = pool.map(read_square, tasks, chunksize=16)
    good = [(square, label) for square, (_, label) in zip(squares, files) if square]
    if len(good) < len(files):
        print(
            f"{len(files) - len(good)} file(s) of {folder} are no usable images and were left out",
            file=sys.stderr,
        )
    if not good:
        sys.exit(f"{folder}: no image that can be read")
    pixels = torch.frombuffer(bytearray(b"".join(square for square, _ in good)), dtype=torch.uint8)
    labels = torch.tensor([label for _, label in good])
    return pixels.view(-1, side, side, 3), labels, classes


def mean_image(pixels):
    """Of the training set, for each pixel: [side, side, 3]."""
    total = torch.zeros(pixels.shape[1:], dtype=torch.float64)
    for part in pixels.split(256):
        total += part.sum(dim=0, dtype=torch.float64)
    return (total / len(pixels)).float()


def cut(squares, mean, std, size, y, x, mirror):
    """Mean off, then crops at (y, x), mirrored where said: [N, 3, size, size], channels last."""
    values = (squares.float() - mean) / std
    steps = torch.arange(size, device=squares.device)
    rows = y[:, None] + steps
    columns = x[:, None] + torch.where(mirror[:, None], steps.flip(0), steps)
    samples = torch.arange(len(squares), device=squares.device)[:, None, None]
    return values[samples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def ten_crops(far):
    """(y, x, mirror): four corners and the centre, then the same mirrored."""
    places = [(0, 0), (0, far), (far, 0), (far, far), (far // 2, far // 2)]
    return [(y, x, mirror) for mirror in (False, True) for y, x in places]


def training_crops(kind, far, count, random):
    if kind == "random":
        y, x = (torch.randint(far + 1, (count,), generator=random) for _ in range(2))
        return y, x, torch.randint(2, (count,), generator=random).bool()
    choice = (
        torch.randint(10, (count,), generator=random) if kind == "ten" else torch.full((count,), 4)
    )
    y, x, mirror = torch.tensor(ten_crops(far)).T[:, choice]
    return y, x, mirror.bool()


# ---- training and evaluation ----


class Data:
    """A split on the device, and what happens to its pixels first."""

    def __init__(self, pixels, labels, mean, entry, device):
        self.pixels, self.labels, self.mean = (t.to(device) for t in (pixels, labels, mean))
        self.std = torch.as_tensor(entry.get("std", 1.0), device=device)
        self.size, self.far, self.device = entry["size"], entry["resize"] - entry["size"], device

    def batch(self, indices, y, x, mirror):
        indices, y, x, mirror = (t.to(self.device) for t in (indices, y, x, mirror))
        return cut(self.pixels[indices], self.mean, self.std, self.size, y, x, mirror), self.labels[
            indices
        ]


@torch.no_grad()
def evaluate(network, data, cast, crops):
    """Probabilities averaged over the crops; ties and NaN as in src/train/evaluate.rs."""
    network.eval()
    top1 = top5 = 0
    places = ten_crops(data.far) if crops == 10 else ten_crops(data.far)[4:5]
    for indices in torch.arange(len(data.labels)).split(64):
        sum_of = 0
        for y, x, mirror in places:
            spread = [torch.full_like(indices, value) for value in (y, x, mirror)]
            samples, labels = data.batch(indices, spread[0], spread[1], spread[2].bool())
            with cast():
                logits = network(samples)
            sum_of = sum_of + logits.double().softmax(dim=1)
        own = sum_of.gather(1, labels[:, None])
        lower = torch.arange(sum_of.shape[1], device=data.device) < labels[:, None]
        rank = ((sum_of > own) | ((sum_of == own) & lower)).sum(dim=1)
        rank[sum_of.isnan().any(dim=1)] = sum_of.shape[1]
        top1 += (rank >= 1).sum().item()
        top5 += (rank >= 5).sum().item()
    network.train()
    count = len(data.labels)
    return {"top1_error": top1 / count, "top5_error": top5 / count, "images": count}


def train(args):
    description = architecture(args.arch, args)
    recipe, entry = description["recipe"], description["input"]
    device = torch.device(args.device)
    pixels, labels, classes = read_split(
        args.data / "train", entry["resize"], args.limit, args.workers
    )
    val_pixels, val_labels, val_classes = read_split(
        args.data / "val", entry["resize"], args.limit, args.workers
    )
    if classes != val_classes:
        sys.exit(f"{args.data}: expected the same classes in train and val")
    description["classes"] = len(classes)
    mean = mean_image(pixels)
    data = Data(pixels, labels, mean, entry, device)
    val = Data(val_pixels, val_labels, mean, entry, device)
    network = make_network(description, args)
    step = Step(network, recipe, args)
    print(
        f"{description['name']}: {count_parameters(network)} parameters, "
        f"{len(labels)} images of {len(classes)} classes",
        file=sys.stderr,
    )
    random = torch.Generator().manual_seed(args.seed)
    rate, best, waited, steps = recipe["learning_rate"], math.inf, 0, 0
    for epoch in range(1, recipe["epochs"] + 1):
        begun, losses = time.perf_counter(), []
        order = torch.randperm(len(labels), generator=random)
        for indices in order.split(recipe["batch_size"]):
            crops = training_crops(recipe["crops"], data.far, len(indices), random)
            losses.append(step(*data.batch(indices, *crops)) * len(indices))
            steps += 1
            if steps == args.max_steps:
                break
        loss = torch.stack(losses).sum().item() / len(labels)
        seconds = time.perf_counter() - begun
        error = evaluate(network, val, step.cast, 1)["top1_error"]
        print(
            f"epoch {epoch}: train loss {loss:.4f}, top-1 error {100 * error:.2f} %, "
            f"{seconds:.1f} s, {len(labels) / seconds:.0f} images/s",
            file=sys.stderr,
        )
        if steps == args.max_steps:
            break
        waited, best = (0, error) if error < best else (waited + 1, best)
        plateau = recipe["schedule"] == "plateau" and waited >= recipe["patience"]
        if plateau or (recipe["schedule"] == "step" and epoch in recipe["milestones"]):
            rate, waited = rate * recipe["gamma"], 0
            step.set_rate(rate)
    print(json.dumps(evaluate(network, val, step.cast, 10)))


def read_safetensors(path):
    """The tensors of a file and its metadata: 8 bytes of length, a JSON header, the values."""
    data = bytearray(Path(path).read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, about in header.items():
        begin, end = about["data_offsets"]
        values = torch.frombuffer(
            data, dtype=torch.float32, offset=start + begin, count=(end - begin) // 4
        )
        tensors[name] = values.view(about["shape"])
    return tensors, metadata


def evaluate_checkpoint(args):
    """A checkpoint of ours in PyTorch: the same weights must make the same mistakes."""
    tensors, metadata = read_safetensors(args.checkpoint)
    about = json.loads(metadata["zfnet"])
    description, preprocess = about["architecture"], about["preprocess"]
    mean = tensors.pop("preprocess.mean")
    plain = preprocess["scale"] == 1.0 and preprocess["order"] == [0, 1, 2]
    if not plain:
        sys.exit(f"{args.checkpoint}: expected the paper's preprocessing")
    device = torch.device(args.device)
    network = make_network(description, args)
    network.load_state_dict(tensors)
    pixels, labels, _ = read_split(
        args.data / "val", preprocess["resize"], args.limit, args.workers
    )
    data = Data(pixels, labels, mean, preprocess, device)
    print(
        json.dumps(
            evaluate(network, data, Step(network, description["recipe"], args).cast, args.crops)
        )
    )


# ---- the rest ----


def count_parameters(network):
    return sum(p.numel() for p in network.parameters())


def inspect(args):
    """Layers, sizes and parameters, checked against what PyTorch makes of them."""
    description = architecture(args.arch, args)
    network = Network(description).eval()
    size = description["input"]["size"]
    x = torch.zeros(1, 3, size, size)
    modules = {id(module): name for name, module in network.named_children()}
    with torch.no_grad():
        for layer in network.chain:
            x = layer(x)
            name = modules.get(id(layer))
            if name is None:
                continue
            height, width, channels = network.sizes[name]
            made = list(x.shape[1:])
            if made not in ([channels, height, width], [channels]):
                sys.exit(f"{name}: worked out {height} x {width} x {channels}, PyTorch made {made}")
            parameters = sum(p.numel() for p in layer.parameters())
            print(f"{name:<8} {height:>4} x {width:<4} x {channels:<5} {parameters or '':>12}")
    print(f"{count_parameters(network)} parameters")


def main():
    parser = argparse.ArgumentParser(description="ZFNet in PyTorch, to compare zfnet with.")
    commands = parser.add_subparsers(required=True)

    def command(name, run):
        one = commands.add_parser(
            name, help=(run.__doc__ or "train, then evaluate with ten crops").splitlines()[0]
        )
        one.set_defaults(run=run)
        one.add_argument(
            "--arch", default="zfnet", help="a preset of src/model/presets, or a TOML file"
        )
        if name == "inspect":
            return one
        one.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        one.add_argument("--precision", choices=["bf16", "tf32", "f32"], default="bf16")
        one.add_argument("--channels-last", action=argparse.BooleanOptionalAction, default=True)
        if name == "convolutions":
            return one
        one.add_argument(
            "--compile",
            nargs="?",
            const="default",
            choices=MODES,
            help="torch.compile, in this mode [without one: default]",
        )
        one.add_argument(
            "--lrn",
            choices=["builtin", "slices"],
            help="PyTorch's own (eager's default), or shifted sums (compiled)",
        )
        one.add_argument("--seed", type=int, default=0)
        for field, value in RECIPE.items() if name in ("bench", "train") else ():
            flag = FLAGS.get(field, "--" + field.replace("_", "-"))
            kind = type(value)
            if kind is list:
                kind = lambda text: [int(part) for part in text.split(",")]
            elif kind is bool:
                kind = lambda text: text == "true"
            one.add_argument(flag, dest=field, type=kind, help="instead of the recipe's")
        return one

    one = command("bench", bench)
    one.add_argument("--batch", type=int, nargs="+", default=[256])
    one.add_argument("--seconds", type=float, default=2.0, help="of measuring, for each batch size")
    one.add_argument("--json", action="store_true")
    one = command("convolutions", convolutions)
    one.add_argument("--batch", type=int, default=256)
    for name, run in ("train", train), ("eval", evaluate_checkpoint):
        one = command(name, run)
        one.add_argument(
            "--data", type=Path, required=True, help="folder with train/CLASS/* and val/CLASS/*"
        )
        one.add_argument("--limit", type=int, help="at most so many images of a split")
        one.add_argument(
            "--workers",
            type=int,
            default=len(os.sched_getaffinity(0)),
            help="processes that decode",
        )
        if name == "train":
            one.add_argument("--max-steps", type=int)
        else:
            one.add_argument(
                "--checkpoint", type=Path, required=True, help="a model.safetensors of ours"
            )
            one.add_argument("--crops", type=int, choices=[1, 10], default=10)
    command("inspect", inspect)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
