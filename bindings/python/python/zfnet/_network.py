"""Networks, and what single units show."""

from __future__ import annotations

import html
import io
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import _zfnet
from ._image import Image, source
from ._study import Invariance, Occlusion

if TYPE_CHECKING:
    import PIL.Image

Rule = Literal["deconvnet", "gradient", "guided"]


def load(
    path: str | os.PathLike[str],
    *,
    arch: str | os.PathLike[str] | None = None,
    preprocess: Literal["paper", "torchvision", "caffe"] | None = None,
    device: str = "auto",
    threads: int | None = None,
    instructions: Literal["portable", "avx2"] | None = None,
) -> Network:
    """Reads a network: RUN (its best checkpoint), RUN/step-N, a .safetensors file, or another program's .pth, .onnx or
    .caffemodel; nothing in it is executed.

    arch: for a file that has weights alone, which network they belong to: a name or a TOML file.
    preprocess: for another program's file, how its images are prepared, instead of what it says itself.
    device: "auto", "cpu", "cuda" or "cuda:N".
    threads: of the CPU; one for each core unless it is given.
    instructions: of the CPU: "portable" takes none that not every processor has, "avx2" none beyond AVX2. Values differ
    in how sums are rounded, by about 1e-5 of the largest.
    """
    options = {
        "arch": None if arch is None else os.fspath(arch),
        "preprocess": preprocess,
        "device": device,
        "threads": threads,
        "instructions": instructions,
    }
    path = os.fspath(path)
    return Network(_zfnet.load(path, **options), (os.path.abspath(path), options))


@dataclass(frozen=True)
class Layer:
    """A layer of a network. Pairs are along rows and columns."""

    name: str
    kind: str
    """conv, relu, maxpool, lrn, fc, dropout or conv_transpose."""
    shape: tuple[int, int, int]
    """Of its output for one image: rows, columns, maps."""
    kernel: int | None
    """Rows and columns of its window, if it has one; squares only."""
    stride: int | None
    """Of that window."""
    receptive_field: tuple[int, int]
    """Pixels of the input that a unit sees."""
    jump: tuple[int, int]
    """Pixels between the fields of neighbouring units; 0 if every unit sees the whole input."""
    parameters: int
    """Weights and biases."""


class Layers(list[Layer]):
    """The layers of a network, shown as a table."""

    _HEAD = ("layer", "kind", "output", "kernel", "stride", "field", "jump", "parameters")

    def _rows(self) -> list[tuple[str, ...]]:
        def pair(values: tuple[int, int]) -> str:
            return str(values[0]) if values[0] == values[1] else "x".join(map(str, values))

        return [
            (
                layer.name,
                layer.kind,
                "x".join(map(str, layer.shape)),
                "" if layer.kernel is None else str(layer.kernel),
                "" if layer.stride is None else str(layer.stride),
                pair(layer.receptive_field),
                pair(layer.jump),
                f"{layer.parameters:,}" if layer.parameters else "",
            )
            for layer in self
        ]

    def __repr__(self) -> str:
        rows = [self._HEAD, *self._rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(self._HEAD))]

        def line(row: tuple[str, ...]) -> str:
            words = [word.ljust(width) for word, width in zip(row[:2], widths)]
            numbers = [word.rjust(width) for word, width in zip(row[2:], widths[2:])]
            return "  ".join(words + numbers).rstrip()

        return "\n".join(map(line, rows))

    def _repr_html_(self) -> str:
        def row(cells: tuple[str, ...], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(row(cells, "td") for cells in self._rows())
        return f"<table><thead>{row(self._HEAD, 'th')}</thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True, eq=False)
class Projection:
    """A unit's activation, carried back to pixels. In a notebook it shows its picture."""

    unit: str
    """LAYER:MAP."""
    rule: Rule
    """Of the backward pass."""
    position: tuple[int, int]
    """Row and column of the unit in its map: where the map is strongest."""
    activation: float
    """Of the unit."""
    box: tuple[int, int, int, int]
    """y0, x0, y1, x1 (y1 and x1 excluded): what the unit sees of the network's input, in its pixels; values are zero
    outside."""
    values: NDArray[np.float32]
    """[rows, columns, channels] of the network's input, in the order of its channels: RGB, but for a network of Caffe's,
    which has BGR. The array owns its memory."""
    pixels: NDArray[np.uint8]
    """The picture that the command writes, [rows, columns, 3] in RGB: grey is zero, and the contrast is its own."""

    @cached_property
    def image(self) -> PIL.Image.Image:
        """The picture as Pillow's image."""
        try:
            from PIL import Image as pillow
        except ImportError as error:
            raise ImportError("Projection.image needs Pillow: pip install pillow") from error
        return pillow.fromarray(self.pixels)

    def __repr__(self) -> str:
        return (
            f"Projection({self.unit} at {self.position} by {self.rule}: activation {self.activation:.4g}, box {self.box})"
        )

    def _repr_png_(self) -> bytes | None:
        try:
            image = self.image
        except ImportError:
            return None
        times = max(1, 224 // max(image.size))  # of an input of few pixels each is a square
        shown = io.BytesIO()
        image.resize((image.width * times, image.height * times), resample=0).save(shown, "PNG")
        return shown.getvalue()


class Network:
    """A network with its weights, on a device. Made by load and from_torch."""

    def __init__(self, network: _zfnet.Network, loaded: tuple[str, dict[str, Any]] | None = None) -> None:
        self._network = network
        self._loaded = loaded  # from which path, and with what options

    def __reduce__(self) -> tuple[Any, ...]:
        if self._loaded is None:
            raise TypeError(
                "a network made by zfnet.from_torch cannot be pickled: make it in each process"
            )
        path, options = self._loaded
        return partial(load, **options), (path,)

    def __repr__(self) -> str:
        rows, columns = self.input_size
        parameters = sum(layer.parameters for layer in self.layers)
        return (
            f"<zfnet.Network {self.name}: {rows}x{columns} pixels, {len(self.layers)} layers, {parameters:,} parameters,"
            f" {len(self.classes)} classes>"
        )

    @property
    def name(self) -> str:
        """Its name."""
        return self._network.name

    @cached_property
    def layers(self) -> Layers:
        """Its layers, from pixels to logits: names, shapes, receptive fields, parameters."""

        def layer(told: dict) -> Layer:
            height, width, maps = told["output"]
            return Layer(
                name=told["name"],
                kind=told["type"],
                shape=(height, width, maps),
                kernel=told.get("kernel"),
                stride=told.get("stride", 1) if "kernel" in told else None,
                receptive_field=tuple(told["field"]),
                jump=tuple(told["jump"]),
                parameters=told["parameters"],
            )

        return Layers(map(layer, json.loads(self._network.layers())))

    @cached_property
    def classes(self) -> list[str]:
        """Names of its classes, in the order of its outputs; none if it gives maps."""
        return self._network.classes

    @property
    def input_size(self) -> tuple[int, int]:
        """Rows and columns of its input."""
        return self._network.input_size

    @property
    def preprocess(self) -> str:
        """How images are prepared, in words."""
        return self._network.preprocess

    def classify(self, image: Image, top: int | None = 5, crops: Literal[1, 10] = 10) -> list[tuple[str, float]]:
        """The `top` most probable classes (all for None) and their probabilities, most probable first.

        crops: how many crops of the image are averaged: the paper's ten, or the centre alone.
        """
        if top is not None and top < 1:
            raise ValueError(f"top: expected a number above 0, found {top}")
        return self._network.classify(source(image), crops)[:top]

    def input(self, image: Image) -> NDArray[np.float32]:
        """What the network sees of an image: the centre crop as it is prepared, [rows, columns, channels]."""
        return self._network.input(source(image))

    def activations(self, image: Image, layers: str | Iterable[str]) -> dict[str, NDArray[np.float32]]:
        """What layers make of an image's centre crop, by their names: [rows, columns, maps], or [outputs] from the first
        fully connected layer on. A layer with weights is taken after its relu; the last one gives the logits. The arrays
        own their memory.
        """
        names = [layers] if isinstance(layers, str) else list(layers)
        return self._network.activations(source(image), names)

    def project(self, image: Image, unit: str, rule: Rule = "deconvnet") -> Projection:
        """What made a unit fire: the strongest place of a map (LAYER:MAP, as "conv5:123") in an image, carried back to
        pixels while all other activations of its layer are zero.

        Raises ValueError if the map is nowhere above zero.
        """
        values, pixels, position, activation, box = self._network.project(source(image), unit, rule)
        return Projection(unit, rule, position, activation, box, values, pixels)

    def occlusion(
        self,
        image: Image,
        *,
        class_name: str | None = None,
        square: int | None = None,
        stride: int | None = None,
        fill: Literal["mean", "grey", "blur"] = "mean",
        layer: str | None = None,
    ) -> Occlusion:
        """What covering parts of an image changes (the paper's Figure 7): a square slides over the network's input.

        class_name: whose probability is noted; unless it is given, the class that the network takes the image for.
        square, stride: in pixels of the input; a quarter of its shorter side, and what makes 25 positions.
        layer: whose strongest map is noted; the last spatial convolution.
        """
        found = self._network.occlusion(source(image), class_name, square, stride, fill, layer)
        return Occlusion._of(json.loads(found))

    def invariance(
        self,
        image: Image,
        *,
        class_name: str | None = None,
        layers: Iterable[str] | None = None,
        shift: int | None = None,
        step: int | None = None,
    ) -> Invariance:
        """How features change when an image is shifted, enlarged and turned (the paper's Figure 5).

        class_name: as for occlusion.
        layers: whose features; the first convolution and the last hidden layer.
        shift, step: the largest shift, and between two shifts, in pixels of the input.
        """
        names = None if layers is None else [layers] if isinstance(layers, str) else list(layers)
        found = self._network.invariance(source(image), class_name, names, shift, step)
        return Invariance._of(json.loads(found))
