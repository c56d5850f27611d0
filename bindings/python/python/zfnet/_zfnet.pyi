# The compiled part. What users call is in the modules beside this file; their annotations are the types.

import os
from pathlib import Path
from typing import Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

__version__: str

class Error(RuntimeError): ...

class _Listener(Protocol):
    def show(self, what: str, done: int, total: int, more: str) -> None: ...
    def line(self, text: str) -> None: ...
    def end(self) -> None: ...

# A path, or pixels [rows, columns, 3] in C's order: see _image.source.
_Source = str | NDArray[np.uint8]

@final
class Network:
    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> list[str]: ...
    @property
    def input_size(self) -> tuple[int, int]: ...
    @property
    def canvas_size(self) -> tuple[int, int]: ...
    @property
    def preprocess(self) -> str: ...
    def layers(self) -> str: ...
    def classify(self, image: _Source, crops: int) -> list[tuple[str, float]]: ...
    def input(self, image: _Source) -> NDArray[np.float32]: ...
    def activations(self, image: _Source, layers: list[str]) -> dict[str, NDArray[np.float32]]: ...
    def project(
        self, image: _Source, unit: str, rule: str
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8], tuple[int, int], float, tuple[int, int, int, int]]: ...
    def occlusion(
        self,
        image: _Source,
        class_name: str | None,
        square: int | None,
        stride: int | None,
        fill: str,
        layer: str | None,
    ) -> str: ...
    def invariance(
        self,
        image: _Source,
        class_name: str | None,
        layers: list[str] | None,
        shift: int | None,
        step: int | None,
    ) -> str: ...

def load(
    path: str | os.PathLike[str],
    *,
    arch: str | None,
    preprocess: str | None,
    device: str,
    threads: int | None,
    instructions: str | None,
) -> Network: ...
def from_chain(
    name: str,
    layers: list[tuple[str, str, dict[str, Any]]],
    *,
    channels: int,
    size: tuple[int, int],
    preprocess: str | None,
    classes: list[str] | None,
    device: str,
    threads: int | None,
    instructions: str | None,
) -> Network: ...
def train(given: list[tuple[str, Any]], listener: _Listener) -> str | None: ...
def top9(network: Network, out: str | os.PathLike[str], given: list[tuple[str, Any]], listener: _Listener) -> Path: ...
def main(args: list[str]) -> int: ...
