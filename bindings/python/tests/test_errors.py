"""What is wrong is an exception, with the command's words."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import zfnet
from conftest import picture

PIXELS = np.zeros((40, 40, 3), np.uint8)


@pytest.mark.parametrize(
    "image, kind, words",
    [
        (None, TypeError, "found NoneType"),
        (3, TypeError, "found int"),
        ([[0, 0], [0, 0]], TypeError, "found list"),
        (b"photo.png", TypeError, "found bytes"),
        (PIXELS.astype(np.float32), TypeError, "found values of float32"),
        (PIXELS.astype(bool), TypeError, "found values of bool"),
        (PIXELS.astype(np.int8), TypeError, "found values of int8"),
        (PIXELS.astype(object), TypeError, "found values of object"),
        (PIXELS[0, 0], ValueError, "found shape [3]"),
        (PIXELS.transpose(2, 0, 1), ValueError, "found shape [3, 40, 40]"),
        (PIXELS[None], ValueError, "found shape [1, 40, 40, 3]"),
        (PIXELS[:, :, :2], ValueError, "found shape [40, 40, 2]"),
        (PIXELS[:0], ValueError, "found shape [0, 40, 3]"),
        (PIXELS[:, :, 0][:, :0], ValueError, "found shape [40, 0, 3]"),
        ("nowhere.png", FileNotFoundError, "nowhere.png"),
        ("a\0b.png", ValueError, "NUL"),
        (os.curdir, zfnet.Error, "no file"),
    ],
)
def test_images(net, image, kind, words):
    for call in [net.classify, net.input, lambda image: net.project(image, "conv1:0")]:
        with pytest.raises(kind) as raised:
            call(image)
        assert words in str(raised.value)


def test_files_that_are_no_images(net, tmp_path):
    text = tmp_path / "text.png"
    text.write_text("no image")
    with pytest.raises(zfnet.Error, match="only JPEG and PNG"):
        net.classify(text)
    short = tmp_path / "short.png"
    Image.fromarray(picture(0)).save(short)
    short.write_bytes(short.read_bytes()[:200])
    with pytest.raises(zfnet.Error, match="short.png"):
        net.classify(short)
    with pytest.raises(FileNotFoundError) as raised:
        net.classify(tmp_path / "gone.png")
    assert raised.value.errno == 2


def test_pillow_images_that_cannot_be_read(net, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(picture(0)).save(path)
    closed = Image.open(path)
    closed.close()
    with pytest.raises(ValueError, match="closed"):
        net.classify(closed)
    short = tmp_path / "short.png"
    short.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(OSError):
        net.classify(Image.open(short))


def test_layers_and_units(net, file):
    for call, words in [
        (lambda: net.activations(file, ["conv9"]), "no layer `conv9`: expected one of conv1"),
        (lambda: net.project(file, "conv9:0"), "no layer `conv9`"),
        (lambda: net.project(file, "conv1"), "expected LAYER:MAP"),
        (lambda: net.project(file, "conv1:8"), "conv1 has maps 0 to 7, found 8"),
        (lambda: net.project(file, "conv1:-1"), "expected LAYER:MAP"),
        (lambda: net.project(file, "conv1:0", rule="best"), "best"),
        (lambda: net.classify(file, crops=5), "expected 1 or 10, found 5"),
        (lambda: net.classify(file, top=0), "top: expected a number above 0"),
        (lambda: net.occlusion(file, square=0), "square: expected a number above 0"),
        (lambda: net.occlusion(file, fill="red"), "fill: expected mean, grey or blur, found red"),
        (lambda: net.occlusion(file, class_name="round"), "no class `round`"),
        (lambda: net.invariance(file, shift=90), "found a range of 90"),
    ]:
        with pytest.raises(ValueError) as raised:
            call()
        assert words in str(raised.value)
    with pytest.raises((TypeError, OverflowError)):
        net.occlusion(file, stride=-1)


def test_what_does_not_fire(run, file, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy, symlinks=True)
    weights = (copy / "last" / "model.safetensors").resolve()
    raw = bytearray(weights.read_bytes())
    size = int.from_bytes(raw[:8], "little")
    begin, end = json.loads(raw[8 : 8 + size])["conv2.bias"]["data_offsets"]
    biases = np.frombuffer(raw, np.float32, (end - begin) // 4, 8 + size + begin)
    biases[5:7] = -1e3, 1e3
    other = tmp_path / "dead.safetensors"
    other.write_bytes(raw)
    net = zfnet.load(other)
    with pytest.raises(ValueError, match="did not fire"):
        net.project(file, "conv2:5")
    assert net.project(file, "conv2:6").activation > 500


def test_a_device_that_is_not_there(run):
    with pytest.raises(zfnet.Error) as raised:
        zfnet.load(run, device="cuda:99")
    assert "backend: " in str(raised.value) and "device cpu needs no GPU" in str(raised.value)
    assert "--" not in str(raised.value)


@pytest.mark.parametrize("mode", ["I", "F", "I;16", "I;16B"])
def test_pillow_images_of_more_than_8_bits(net, mode):
    with pytest.raises(TypeError, match=f"mode {mode}, .*scale it to 0 to 255 as uint8"):
        net.classify(Image.new(mode, (40, 40)))


def test_networks(run, tmp_path, command):
    with pytest.raises(FileNotFoundError, match="expected a run, a checkpoint"):
        zfnet.load(tmp_path / "nothing")
    other = tmp_path / "a.pth"
    other.write_bytes(b"no network")
    with pytest.raises(zfnet.Error, match="a.pth"):
        zfnet.load(other)
    for wrong in [{"device": "tpu"}, {"threads": 0}, {"threads": 999}, {"instructions": "sse9"}]:
        with pytest.raises(ValueError) as raised:
            zfnet.load(run, **wrong)
        assert "--" not in str(raised.value)
    with pytest.raises(OverflowError):
        zfnet.load(run, threads=-1)
    whole = tmp_path / "run"
    shutil.copytree(run, whole, symlinks=True)
    for weights in whole.rglob("model.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(zfnet.Error, match="model.safetensors"):
        zfnet.load(whole)


def test_advice_names_arguments(run, tmp_path, data, command):
    net = tmp_path / "bare.safetensors"
    tensor = b"\0" * 4 * 27
    about = b'{"conv.weight":{"dtype":"F32","shape":[1,3,3,3],"data_offsets":[0,108]}}'
    net.write_bytes(len(about).to_bytes(8, "little") + about + tensor)
    with pytest.raises(ValueError) as raised:
        zfnet.load(net)
    assert "say which with arch NAME|FILE.toml" in str(raised.value) and "--" not in str(raised.value)
    with pytest.raises(FileExistsError) as raised:
        zfnet.train(data=data, arch="zfnet-mini", out=run, progress=False)
    assert "go on with resume, or choose another out" in str(raised.value)


def test_errors_are_where_python_looks_for_them():
    assert issubclass(zfnet.Error, RuntimeError) and zfnet.Error.__module__ == "zfnet"
