"""Training."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import _zfnet
from ._network import Network, load
from ._progress import Progress


@dataclass(frozen=True)
class Run:
    """A run of training."""

    path: Path
    """Its folder."""

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """What metrics.jsonl has: a dict for each step, each epoch, what its layers show, and each alarm."""
        with open(self.path / "metrics.jsonl", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def load(self, **options: Any) -> Network:
        """Its best checkpoint, with options of zfnet.load."""
        return load(self.path, **options)


def train(
    *,
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    arch: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **flags: Any,
) -> Run | str:
    """Trains a network on a folder of images, as `zfnet train` does.

    data: a folder with train/CLASS/* and val/CLASS/* (JPEG or PNG), or shards made by `zfnet pack`.
    out: the run's folder: checkpoints and metrics.jsonl.
    arch: "zfnet", "zfnet-mini", ... or a TOML file; with resume=True it may be left out.
    progress: whether to show how far it is, what it notes, and its alarms.
    flags: the command's, by the same names with underscores (`zfnet train --help`): epochs=10, learning_rate=0.01,
    milestones=[8, 9], resume=True.

    Ctrl-C finishes the step, saves, and raises KeyboardInterrupt; the same call with resume=True goes on bit for bit. A
    second one does not wait for that.

    Returns the run; with dry_run=True, which writes nothing, a text that says what the training will need.
    """
    given = [("data", data), ("out", out), ("arch", arch), *flags.items()]
    return _zfnet.train(given, Progress(progress)) or Run(Path(os.fspath(out)))
