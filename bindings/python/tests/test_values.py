"""Values are the command's, to the last bit."""

import json

import numpy as np
import pytest
from PIL import Image

import zfnet


def safetensors(path):
    """The tensors of a file of f32."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header, body = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    header.pop("__metadata__", None)
    types = {"F32": np.float32, "I64": np.int64, "I32": np.int32, "U8": np.uint8, "U32": np.uint32}
    return {
        name: np.frombuffer(body[slice(*about["data_offsets"])], types[about["dtype"]]).reshape(about["shape"])
        for name, about in header.items()
    }


def files(data):
    return sorted((data / "val").rglob("*.png"))


@pytest.mark.parametrize("crops", [1, 10])
def test_classify(net, run, data, command, crops):
    told = json.loads(command("classify", run, *files(data), "--crops", crops, "--json"))
    assert len(told) == 8
    for path, told in zip(files(data), told):
        expected = [(one["class"], np.float32(one["probability"])) for one in told["classes"]]
        found = net.classify(path, top=None, crops=crops)
        assert [(name, np.float32(probability)) for name, probability in found] == expected
        assert sum(probability for _, probability in found) == pytest.approx(1)


def test_activations_are_those_of_extract(net, run, data, command, tmp_path):
    out, names = tmp_path / "features.safetensors", ["conv1", "pool1", "conv2", "fc3", "fc4"]
    command("extract", run, "--data", data, "--layers", ",".join(names), "-o", out, "--batch-size", 1)
    told = safetensors(out)
    keys = bytes(told["keys"]).decode().split()
    assert len(keys) == 8
    for row, key in enumerate(keys):
        found = net.activations(data / "val" / key, names)
        assert list(found) == names
        for name, values in found.items():
            assert values.dtype == np.float32
            expected = told[name][row]  # [maps, rows, columns], or [outputs]
            if expected.ndim == 3:
                expected = expected.transpose(1, 2, 0)
            assert values.shape == expected.shape
            assert values.tobytes() == np.ascontiguousarray(expected).tobytes(), (name, key)


@pytest.mark.parametrize("rule", ["deconvnet", "gradient", "guided"])
@pytest.mark.parametrize("layer", ["conv1", "pool1", "conv2", "fc3", "fc4"])
def test_project(net, run, file, command, tmp_path, rule, layer):
    values = net.activations(file, layer)[layer]
    unit = f"{layer}:{int(values.reshape(-1, values.shape[-1]).max(0).argmax())}"
    page, arrays = tmp_path / "page", tmp_path / "arrays.safetensors"
    command("project", run, file, "--unit", unit, "--rule", rule, "--out", page, "--save-arrays", arrays)
    told = safetensors(arrays)
    found = net.project(file, unit, rule=rule)
    assert found.values.dtype == np.float32 and found.values.shape == (32, 32, 3)
    assert found.values.tobytes() == told["projection"].tobytes()
    assert np.any(found.values)
    assert net.input(file).tobytes() == told["input"].tobytes()
    assert values.tobytes() == told[f"activation.{layer}"].tobytes()
    (image,) = json.loads((page / "projections.json").read_text())["images"]
    (about,) = image["layers"][0]["units"]
    assert (about["y"], about["x"]) == found.position
    assert np.float32(about["value"]) == np.float32(found.activation)
    x0, y0, x1, y1 = about["field_box"]
    assert found.box == (max(y0, 0), max(x0, 0), min(y1, 32), min(x1, 32))
    (written,) = [path for path in page.rglob("*.png") if path.name != "input.png"]
    assert np.array_equal(np.asarray(Image.open(written)), np.asarray(found.image))
    # Nothing outside what the unit sees.
    y0, x0, y1, x1 = found.box
    inside = np.zeros((32, 32), bool)
    inside[y0:y1, x0:x1] = True
    assert not np.any(found.values[~inside])


def test_occlusion(net, run, file, command, tmp_path):
    command("study", "occlusion", "--checkpoint", run, file, "--square", 8, "--stride", 6, "--out", tmp_path)
    (told,) = json.loads((tmp_path / "occlusion.json").read_text())["images"]
    found = net.occlusion(file, square=8, stride=6, class_name="across")  # the file's folder
    expected = [place["probability"] for place in told["occluded"]["places"]]
    assert found.probability.flatten().tolist() == expected
    assert found.probability.shape == (len(found.rows), len(found.columns))
    assert found.probability_before == told["occluded"]["before"]["probability"]
    assert found.class_name == "across" and found.square == 8


def test_invariance(net, file):
    found = net.invariance(file, layers=["conv1", "fc3"])
    assert found.layers == ["conv1", "fc3"]
    for change, unchanged in [("shift", 0), ("scale", 1), ("rotation", 0)]:
        amounts, distances = found.amounts[change], found.distances[change]
        assert distances.shape == (2, len(amounts))
        assert np.all(distances[:, amounts == unchanged] == 0)
        assert np.all(distances[:, amounts != unchanged] > 0)


def test_images_of_every_kind_are_the_same_image(net, file):
    pillow = Image.open(file)
    array = np.asarray(pillow)
    wide = np.zeros((array.shape[0], 2 * array.shape[1], 3), np.uint8)
    wide[:, ::2] = array
    expected = net.classify(file)
    kinds = {
        "text": str(file),
        "Pillow": pillow,
        "array": array,
        "every other column": wide[:, ::2],
        "Fortran's order": np.asfortranarray(array),
        "read only": array.copy(),
        "alpha": pillow.convert("RGBA"),
    }
    kinds["read only"].flags.writeable = False
    for kind, image in kinds.items():
        assert net.classify(image) == expected, kind
    grey = pillow.convert("L")
    assert net.classify(grey) == net.classify(np.asarray(grey)) == net.classify(np.repeat(np.asarray(grey)[..., None], 3, 2))
    for mode in ["1", "LA", "P", "CMYK", "YCbCr"]:
        other = pillow.convert(mode)
        assert net.classify(other) == net.classify(np.asarray(other.convert("RGB"))), mode


def test_instructions(run, file, net):
    expected = net.activations(file, ["fc4"])["fc4"]
    for instructions in ["portable", "avx2"]:
        other = zfnet.load(run, instructions=instructions)
        found = other.activations(file, ["fc4"])["fc4"]
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    for threads in [1, 2]:
        other = zfnet.load(run, threads=threads)
        assert other.activations(file, ["fc4"])["fc4"].tobytes() == expected.tobytes()


def test_about_a_network(net):
    assert net.name == "small" and net.classes == ["across", "down"] and net.input_size == (32, 32)
    conv1, relu, pool = net.layers[:3]
    assert (conv1.name, conv1.kind, conv1.shape, conv1.kernel, conv1.stride) == ("conv1", "conv", (15, 15, 8), 5, 2)
    assert (conv1.receptive_field, conv1.jump, conv1.parameters) == ((5, 5), (2, 2), 8 * 75 + 8)
    assert relu.kind == "relu" and relu.kernel is None
    assert (pool.shape, pool.receptive_field) == ((7, 7, 8), (9, 9))
    table = repr(net.layers).splitlines()
    assert len(table) == 1 + len(net.layers) and table[1].split()[:3] == ["conv1", "conv", "15x15x8"]
    assert net.layers._repr_html_().count("<tr>") == 1 + len(net.layers)
    assert "small" in repr(net)
