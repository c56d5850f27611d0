"""How far long work is: a bar of tqdm's if it is installed, else a line every ten seconds."""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

_PLAIN = 10.0  # seconds between two lines


class Progress:
    """Shows what the compiled part tells: see its work.rs."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._what: str | None = None
        self._bar: Any = None
        self._said = 0.0

    def show(self, what: str, done: int, total: int, more: str) -> None:
        """`done` of `total` of `what` is done; `more` are a few words that begin with a comma."""
        if not self._shown:
            return
        if what != self._what:
            self.end()
            self._what, self._said, self._bar = what, time.monotonic(), _bar(what)
        if self._bar is not None:
            self._bar.total = total
            self._bar.set_postfix_str(more.removeprefix(", "), refresh=False)
            self._bar.update(done - self._bar.n)
        elif time.monotonic() - self._said >= _PLAIN:
            self._said = time.monotonic()
            print(f"{what}: {done} of {total}{more}", file=sys.stderr)

    def line(self, text: str) -> None:
        """A line that stays."""
        if self._shown:
            self.end()
            print(text, file=sys.stderr)

    def end(self) -> None:
        """What was being done has ended."""
        if self._bar is not None:
            self._bar.close()
        self._what = self._bar = None


def _bar(what: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # in a notebook without ipywidgets, where a plain bar does
            from tqdm.auto import tqdm
    except ImportError:
        return None
    return tqdm(desc=what, leave=False)
