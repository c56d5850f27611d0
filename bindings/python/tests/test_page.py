"""Pages, and what shows itself in a notebook."""

import base64
import html
import io
import json
import re
import threading

import numpy as np
import pytest
from PIL import Image

import zfnet
from zfnet import _page
from zfnet._progress import Progress


# Sandboxed: with the notebook's origin its scripts could do there whatever they like.
_FRAME = r'<iframe title="([^"]*)" style="[^"]*" sandbox="allow-scripts" srcdoc="([^"]*)"></iframe>'


@pytest.fixture(scope="module")
def page(net, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("pages") / "a <page>"
    return zfnet.top9(net, data, layers=["conv1", "conv2"], out=out, maps=3, progress=False)


def test_it_is_the_commands_page(page, run, data, command, tmp_path):
    flags = ["--data", data, "--layers", "conv1,conv2", "--maps", 3, "--out", tmp_path]
    command("study", "features", "--checkpoint", run, *flags)
    files = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    folder = page.path.parent
    assert {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()} == set(files)
    for name, expected in files.items():
        assert (folder / name).read_bytes() == expected, name


def test_the_frame_needs_no_file(page):
    shown = page._repr_html_()
    (title, inside) = re.fullmatch(_FRAME, shown).groups()
    assert html.unescape(title) == "a <page>"
    inside = html.unescape(inside)
    assert inside == page.html() and inside.startswith("<!DOCTYPE html>")
    markup = re.sub(r"<script.*?</script>", "", inside, flags=re.DOTALL)
    assert not re.search(r'\ssrc="', markup)
    assert all(link.startswith(("#", "data:")) for link in re.findall(r'href="([^"]*)"', markup))
    assert "url(" not in markup.replace("url(data:", "")
    pictures = set(re.findall(r'data-src="([^"]*)"', markup))
    assert len(pictures) == 4
    for name in pictures:
        assert f'"{name}": "data:image/' in inside


def test_large_pictures_are_halved_and_larger_ones_refused(page, monkeypatch):
    size = sum(path.stat().st_size for path in page.path.parent.rglob("*") if path.suffix in (".png", ".jpg"))
    monkeypatch.setattr(_page, "_LARGEST", size - 1)
    pictures = re.search(r'id="page.pictures">(.*?)</script>', page.html(), re.DOTALL).group(1)
    for name, data in json.loads(pictures).items():
        kind, content = data.split(";base64,")
        assert kind == "data:image/jpeg"
        whole = Image.open(page.path.parent / html.unescape(name))
        halved = Image.open(io.BytesIO(base64.b64decode(content)))
        assert halved.size == tuple(-(-side // 2) for side in whole.size)
    monkeypatch.setattr(_page, "_LARGEST", 100)
    assert "are too many for a notebook: open" in page._repr_html_() and "maps=16" in page._repr_html_()


def test_two_calls_do_not_write_into_one_folder(net, data, tmp_path, monkeypatch):
    written, refused, ended = threading.Event(), threading.Event(), []

    class Waits(Progress):
        def show(self, *args):
            written.set()
            assert refused.wait(60)

    with monkeypatch.context() as patch:
        patch.setattr(_page, "Progress", Waits)
        work = lambda: ended.append(zfnet.top9(net, data, out=tmp_path, progress=False))
        first = threading.Thread(target=work)
        first.start()
        assert written.wait(60)
    try:
        with pytest.raises(zfnet.Error, match="another call is writing into it"):
            zfnet.top9(net, data, out=tmp_path, progress=False)
    finally:
        refused.set()
        first.join()
    assert ended and ended[0].path.exists()
    assert not (tmp_path / "lock").exists()
    zfnet.top9(net, data, out=tmp_path, progress=False)  # and when that is over


def test_a_page_that_is_gone_says_so(page, tmp_path):
    assert "No such file" in zfnet.Page(tmp_path / "index.html")._repr_html_()


def test_arguments(net, run, data, tmp_path):
    page = zfnet.top9(run, data, "conv1", tmp_path / "one", maps=1, rule="guided", threads=1, progress=False)
    assert "conv1" in page.path.read_text() and "guided" in page.path.read_text()
    for flags, kind, words in [
        ({"layers": ["conv9"]}, ValueError, "no layer `conv9`"),
        ({"map": 3}, TypeError, "'map'"),
        ({"map": None}, TypeError, "'map'"),
        ({"maps": 0}, ValueError, "0"),
        ({"device": "cpu"}, TypeError, "yet to be loaded"),
        ({"precision": "f32"}, TypeError, "'precision'"),
        ({"units": ["conv1:99"]}, ValueError, "0 to 7, found 99"),
    ]:
        with pytest.raises(kind) as raised:
            zfnet.top9(net, data, out=tmp_path / "two", progress=False, **flags)
        assert words in str(raised.value) and "--" not in str(raised.value)
    with pytest.raises((zfnet.Error, OSError), match="nowhere"):
        zfnet.top9(net, "nowhere", out=tmp_path / "two", progress=False)


def test_a_projection_shows_itself(net, file):
    shown = net.project(file, "conv1:0", rule="gradient")
    assert shown._repr_png_().startswith(b"\x89PNG")
    assert shown.image.size == (32, 32) and np.array_equal(np.asarray(shown.image), shown.pixels)
    assert "conv1:0" in repr(shown)
