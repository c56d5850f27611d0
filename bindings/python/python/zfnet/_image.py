"""What the compiled part takes as an image."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import PIL.Image

Image = Union[str, "os.PathLike[str]", "PIL.Image.Image", "NDArray[np.uint8]"]

# Of 8 bits or fewer a channel: others Pillow makes RGB of by cutting off what is above 255.
_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
_EXPECTED = "expected an image: a path, a Pillow image, or a numpy array of uint8, [rows, columns, 3] or [rows, columns]"


def source(image: Image) -> str | NDArray[np.uint8]:
    """A path, or pixels [rows, columns, 3] in C's order: not copied if they are so already."""
    if isinstance(image, (str, os.PathLike)):
        path = os.fspath(image)
        if not isinstance(path, str):
            raise TypeError(f"{_EXPECTED}; found a path of {type(path).__name__}")
        return path
    if isinstance(image, np.ndarray):
        return _pixels(image)
    pillow = sys.modules.get("PIL.Image")  # who has one of its images has imported it
    if pillow is not None and isinstance(image, pillow.Image):
        return _pixels(np.asarray(_rgb(image)))
    raise TypeError(f"{_EXPECTED}; found {type(image).__name__}")


def _rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode not in _MODES:
        raise TypeError(
            f"{_EXPECTED}; found a Pillow image of mode {image.mode}, which Pillow would cut off at 255: scale it to 0 to"
            " 255 as uint8 first"
        )
    try:
        return image.convert("RGB")
    except OSError:
        raise  # a file that is damaged, with Pillow's words
    except Exception as error:  # Pillow raises whatever its own state leads to
        raise ValueError(f"the Pillow image cannot be read, perhaps since it was closed: {error}") from error


def _pixels(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype != np.uint8:
        raise TypeError(f"{_EXPECTED}; found values of {array.dtype}")
    if array.ndim == 2:
        array = np.repeat(array[:, :, np.newaxis], 3, axis=2)
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ValueError(f"{_EXPECTED}; found shape {list(array.shape)}")
    return np.ascontiguousarray(array)
