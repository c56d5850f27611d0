"""Pages, which show themselves in a notebook."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Literal

from . import _zfnet
from ._network import Network, load
from ._progress import Progress

_LARGEST = 48 << 20  # bytes of pictures that a notebook is given
_QUALITY = 80  # of JPEGs, in per cent
_TYPES = {".png": "image/png", ".jpg": "image/jpeg"}
_PICTURE = re.compile(r'<img src="([^"]+)"')
_LINK = re.compile(r'<a href="(?!#)[^"]*">(.*?)</a>')
# Pictures stand in the page once, whatever many places show them: those that are there, and those that the page's own
# script makes when a map is enlarged. A frame is low: it begins with the maps, and what stands above them is above.
_SCRIPT = """
(() => {
  const pictures = JSON.parse(document.getElementById('page.pictures').textContent)
  const fill = image => {
    const name = image.dataset.src ?? image.getAttribute('src')
    if (Object.hasOwn(pictures, name)) image.src = pictures[name]
  }
  document.querySelectorAll('img').forEach(fill)
  new MutationObserver(changes => {
    for (const { addedNodes } of changes) {
      for (const node of addedNodes) node.querySelectorAll?.('img').forEach(fill)
    }
  }).observe(document.body, { childList: true, subtree: true })
  scrollTo(0, document.querySelector('.toc').offsetTop)
})()
"""


@dataclass(frozen=True)
class Page:
    """A page in a folder of its own. In a notebook it shows itself, in a frame that needs no other file: its pictures are
    saved with the notebook."""

    path: Path
    """Its index.html."""

    def html(self) -> str:
        """The page with all that it shows in one text. Where its pictures are too large for a notebook they are JPEGs of half
        their size, made by Pillow.

        Raises ValueError if even these are too large.
        """
        text = self.path.read_text(encoding="utf-8")
        folder = self.path.parent
        names = {html.unescape(name) for name in _PICTURE.findall(text)}
        files = {name: folder / name for name in sorted(names)}
        size = sum(file.stat().st_size for file in files.values())
        read = _read if size <= _LARGEST else _halved
        pictures = {name: read(file) for name, file in files.items()}
        size = sum(map(len, pictures.values()))
        if size > 4 * _LARGEST // 3:  # base64 writes three bytes as four
            raise ValueError(
                f"{size >> 20} MB of pictures are too many for a notebook: open {self.path}, or ask for fewer, as with maps=16"
            )
        text = _PICTURE.sub(r'<img data-src="\1"', text)
        text = _LINK.sub(r"\1", text)  # to files beside the page
        inlined = json.dumps(pictures).replace("<", "\\u003c")
        script = f'<script type="application/json" id="page.pictures">{inlined}</script><script>{_SCRIPT}</script>'
        before, body, after = text.rpartition("</body>")
        return before + script + body + after

    def _repr_html_(self) -> str:
        try:
            page = self.html()
        except (OSError, ValueError) as error:
            return f"<p>{html.escape(str(error))}</p>"
        title = html.escape(self.path.parent.name)
        style = "box-sizing:border-box;width:100%;height:640px;border:1px solid #8884"
        # The page's scripts run, but as of no origin: they cannot reach the notebook.
        frame = f'title="{title}" style="{style}" sandbox="allow-scripts"'
        return f'<iframe {frame} srcdoc="{html.escape(page)}"></iframe>'


def _read(file: Path) -> str:
    return _data(_TYPES[file.suffix], file.read_bytes())


def _halved(file: Path) -> str:
    try:
        from PIL import Image
    except ImportError:
        return _read(file)
    out = io.BytesIO()
    with Image.open(file) as picture:
        picture.convert("RGB").reduce(2).save(out, "JPEG", quality=_QUALITY)
    return _data("image/jpeg", out.getvalue())


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def top9(
    network: Network | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    layers: str | Iterable[str] | None = None,
    out: str | os.PathLike[str] = "page",
    *,
    arch: str | os.PathLike[str] | None = None,
    preprocess: Literal["paper", "torchvision", "caffe"] | None = None,
    device: str = "auto",
    threads: int | None = None,
    progress: bool = True,
    **flags: Any,
) -> Page:
    """Makes the page of the paper's Figure 2, as `zfnet study features` does: for every map its nine strongest
    activations over a set of images, projected to pixels, beside the patches that caused them.

    network: one that is loaded, or what zfnet.load takes, which arch, preprocess, device and threads are for.
    folder: images: any folder of them, one with train/CLASS/* and val/CLASS/*, or shards made by `zfnet pack`.
    layers: their names; all spatial convolutions.
    out: the page's folder.
    flags: the command's, by the same names with underscores (`zfnet study features --help`): maps=16, random=True,
    rule="guided", units=["conv5:123"].
    """
    if not isinstance(network, Network):
        network = load(network, arch=arch, preprocess=preprocess, device=device, threads=threads)
    elif (arch, preprocess, device, threads) != (None, None, "auto", None):
        raise TypeError("arch, preprocess, device and threads are for a network that is yet to be loaded")
    names = [layers] if isinstance(layers, str) else None if layers is None else list(layers)
    given = [("data", os.fspath(folder)), ("layers", names), *flags.items()]
    return Page(_zfnet.top9(network._network, os.fspath(out), given, Progress(progress)))
