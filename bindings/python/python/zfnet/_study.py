"""What studies of single images find, as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Occlusion:
    """What covering parts of an image changes, by the places of the square."""

    class_name: str
    """Whose probability it is."""
    square: int
    """The square's side, in pixels of the network's input."""
    rows: NDArray[np.int64]
    """First row of the square at each place, in the same pixels."""
    columns: NDArray[np.int64]
    """First column of it."""
    probability: NDArray[np.float64]
    """Of the class, [rows, columns]."""
    probability_before: float
    """Without the square."""
    activity: NDArray[np.float32]
    """Sum of the map, [rows, columns]."""
    activity_before: float
    """Without the square."""
    unit: str
    """That map, as LAYER:MAP: the strongest of its layer without the square."""
    labels: NDArray[np.int64]
    """Most probable class, as its place in Network.classes, [rows, columns]."""

    @classmethod
    def _of(cls, found: dict[str, Any]) -> Occlusion:
        (image,) = found["images"]
        seen = image["occluded"]
        rows, columns = (np.array(corners) for corners in seen["corners"])

        def over_places(name: str, dtype: type) -> NDArray[Any]:
            return np.array([place[name] for place in seen["places"]], dtype).reshape(len(rows), len(columns))

        return cls(
            class_name=found["classes"][image["image"]["class"]],
            square=seen["square"],
            rows=rows,
            columns=columns,
            probability=over_places("probability", np.float64),
            probability_before=seen["before"]["probability"],
            activity=over_places("activity", np.float32),
            activity_before=seen["before"]["activity"],
            unit=f"{found['layer']}:{seen['map']}",
            labels=over_places("label", np.int64),
        )


@dataclass(frozen=True, eq=False)
class Invariance:
    """How features change with an image, for each of "shift" (pixels of the network's input, down), "scale" (factors) and
    "rotation" (degrees, counter-clockwise)."""

    class_name: str
    """Whose probability it is."""
    layers: list[str]
    """Whose features are compared."""
    amounts: dict[str, NDArray[np.float64]]
    """By how much the image was changed."""
    distances: dict[str, NDArray[np.float64]]
    """Of the changed image's features from the unchanged one's, Euclidean, relative to the norm of the latter: [layers,
    amounts]."""
    probability: dict[str, NDArray[np.float64]]
    """Of the class, by amount."""

    @classmethod
    def _of(cls, found: dict[str, Any]) -> Invariance:
        (image,) = found["images"]
        norms = np.array(image["norms"])[:, np.newaxis]
        by_change: dict[str, list[dict[str, Any]]] = {}
        for response in image["responses"]:
            by_change.setdefault(response["change"], []).append(response)
        return cls(
            class_name=image["class"],
            layers=found["layers"],
            amounts={of: np.array([one["amount"] for one in all]) for of, all in by_change.items()},
            distances={of: np.array([one["distances"] for one in all]).T / norms for of, all in by_change.items()},
            probability={of: np.array([one["probability"] for one in all]) for of, all in by_change.items()},
        )
