"""Networks of PyTorch; without PyTorch these tests are skipped."""

import pickle

import numpy as np
import pytest

import zfnet
from conftest import picture

torch = pytest.importorskip("torch")
nn = torch.nn


def small(*more):
    """A chain for 32 pixels, with weights that differ from layer to layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2, padding=2),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.LocalResponseNorm(5, alpha=1e-2),
        nn.Conv2d(8, 12, 3, padding="same", groups=2, bias=False),
        nn.ReLU(),
        nn.Identity(),
        nn.AdaptiveAvgPool2d(8),
        nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(12 * 8 * 8, 20), nn.ReLU(), nn.Linear(20, 3), *more),
    )


def agree(net, module, image, tolerance=1e-4):
    """Logits beside PyTorch's own."""
    with torch.no_grad():
        seen = torch.from_numpy(net.input(image)).permute(2, 0, 1)[None]
        expected = module.eval()(seen)[0].numpy()
    last = net.layers[-1].name
    found = net.activations(image, last)[last]
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def test_a_sequential(caplog):
    caplog.set_level("INFO", "zfnet")
    module = small()
    module[1].running_mean.uniform_(-1, 1)
    module[1].running_var.uniform_(0.5, 2)
    module.train()
    module[9][1].eval()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    net = zfnet.from_torch(module, input_size=32, classes=["a", "b", "c"])
    assert [part.training for part in (module, module[1], module[9][1])] == [True, True, False]
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert net.classes == ["a", "b", "c"] and net.input_size == (32, 32)
    assert [layer.kind for layer in net.layers if layer.parameters] == ["conv", "conv", "fc", "fc"]
    assert any("5 [12, 4, 3, 3] is conv2" in line for line in caplog.messages)
    agree(net, module, picture(0))
    agree(net, module, picture(1))
    # Activations in the middle, and with gradients of PyTorch's.
    with torch.no_grad():
        seen = torch.from_numpy(net.input(picture(0))).permute(2, 0, 1)[None]
        middle = module[:7](seen)[0].permute(1, 2, 0).numpy()
    name = [layer.name for layer in net.layers if layer.kind == "conv"][1]
    found = net.activations(picture(0), name)[name]
    assert found.shape == middle.shape and np.abs(found - middle).max() <= 1e-4 * np.abs(middle).max()


def test_the_gradient_is_pytorchs():
    module = small()
    nn.init.constant_(module[9][4].bias, 10)
    net = zfnet.from_torch(module, input_size=32)
    image = picture(0)
    last = net.layers[-1].name
    logits = net.activations(image, last)[last]
    best = int(logits.argmax())
    assert logits[best] > 0  # by its bias: a unit that does not fire has no projection
    seen = torch.from_numpy(net.input(image)).permute(2, 0, 1)[None].requires_grad_()
    module.eval()(seen)[0, best].backward()
    expected = seen.grad[0].permute(1, 2, 0).numpy()
    found = net.project(image, f"{last}:{best}", rule="gradient").values
    assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()


def test_softmax_at_the_end_is_left_out():
    module = small(nn.Softmax(1))
    net = zfnet.from_torch(module, input_size=32)
    assert net.layers[-1].kind == "fc"


class Adds(nn.Module):
    """Computes something between modules."""

    def __init__(self):
        super().__init__()
        self.body = small()

    def forward(self, x):
        return self.body(x) + x.mean()


class Pair(nn.Module):
    """Gives two tensors."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        y = self.conv(x)
        return y, y


class Reuses(nn.Module):
    """One relu in several places, and flattening without a module."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, stride=2)
        self.relu, self.fc, self.unused = nn.ReLU(), nn.Linear(6 * 14 * 14, 4), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        x = self.relu(self.conv2(self.relu(self.conv1(x))))
        return self.fc(torch.flatten(x, 1))


def test_modules_with_a_forward_of_their_own():
    module = Reuses()
    net = zfnet.from_torch(module, input_size=32)
    assert [layer.kind for layer in net.layers] == ["conv", "relu", "conv", "relu", "fc"]
    agree(net, module, picture(2))
    with pytest.raises(ValueError, match="Adds: what it gives is not what its modules give"):
        zfnet.from_torch(Adds(), input_size=32)


class Behind(nn.Module):
    """Computes something behind a chain, that no module does."""

    def __init__(self, seed, outputs, behind):
        super().__init__()
        torch.manual_seed(seed)
        self.chain = nn.Sequential(nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 7 * 7, outputs))
        self.behind = behind

    def forward(self, x):
        return self.behind(self.chain(x))


def test_what_is_computed_behind_the_modules_is_seen_whatever_the_weights():
    clamp = lambda x: x.clamp(0, 1)
    for seed in range(10):
        for outputs, behind in [(3, torch.relu), (1, torch.relu), (1, clamp), (1, torch.sigmoid), (2, torch.abs)]:
            with pytest.raises(ValueError, match="Behind: what it gives is not"):
                zfnet.from_torch(Behind(seed, outputs, behind), input_size=32)
    for behind in [lambda x: x, lambda x: x.softmax(1), lambda x: x.log_softmax(1)]:
        assert zfnet.from_torch(Behind(0, 3, behind), input_size=32).classes == ["class 0", "class 1", "class 2"]
    with pytest.raises(ValueError, match="Behind: what it gives is not"):
        zfnet.from_torch(Behind(0, 1, lambda x: x.softmax(1)), input_size=32)


class Between(nn.Module):
    """Computes something between modules that changes nothing where all is positive, as it is here."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 5, stride=4), nn.Linear(4 * 7 * 7, 3)
        nn.init.constant_(self.conv.bias, 100)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).flatten(1))


def test_what_is_computed_between_modules_is_seen():
    with pytest.raises(ValueError, match=r"fc \(Linear\): it is not given what conv makes: the network branches, or something"):
        zfnet.from_torch(Between(), input_size=32)


@pytest.mark.parametrize(
    "part, words",
    [
        (nn.Sigmoid(), r"9.5 \(Sigmoid\): is no layer that is known"),
        (nn.Softplus(), r"9.5 \(Softplus\)"),
        (nn.GELU(), r"9.5 \(GELU\)"),
    ],
)
def test_what_is_no_layer_here_is_named(part, words):
    with pytest.raises(ValueError, match=words):
        zfnet.from_torch(small(part), input_size=32)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="expected rows and columns, or one number for both, found '32'"):
        zfnet.from_torch(small(), input_size="32")
    with pytest.raises(ValueError, match="Pair: expected a module that gives one tensor, found tuple"):
        zfnet.from_torch(Pair(), input_size=32)
    with pytest.raises(TypeError, match="expected a torch.nn.Module, found str"):
        zfnet.from_torch("alexnet")
    with pytest.raises(ValueError, match="does not take images of 224x224"):
        zfnet.from_torch(Reuses())
    with pytest.raises(ValueError, match="8 .AdaptiveAvgPool2d.: averages 56x56 to 8x8.*input_size"):
        zfnet.from_torch(small())
    with pytest.raises(TypeError, match="cannot be pickled: make it in each process"):
        pickle.dumps(zfnet.from_torch(small(), input_size=32))
    with pytest.raises(ValueError, match="3 classes, found 2"):
        zfnet.from_torch(small(), input_size=32, classes=["a", "b"])
    with pytest.raises(ValueError, match="expected paper, torchvision or caffe"):
        zfnet.from_torch(small(), "imagenet", input_size=32)
    averages = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"1 \(AdaptiveAvgPool2d\): averages"):
        zfnet.from_torch(averages, input_size=32)
    dilated = nn.Sequential(nn.Conv2d(3, 4, 3, dilation=2))
    with pytest.raises(ValueError, match=r"0 \(Conv2d\): expected zeros beyond the edge, and no dilation"):
        zfnet.from_torch(dilated, input_size=32)
    with pytest.raises(ValueError, match="expected a network with a Conv2d"):
        zfnet.from_torch(nn.Linear(3, 3), input_size=32)


class Logits(torch.utils.data.Dataset):
    """What a network makes of pictures, worked out where they are loaded."""

    def __init__(self, net):
        self.net = net

    def __len__(self):
        return 6

    def __getitem__(self, index):
        last = self.net.layers[-1].name
        return torch.from_numpy(self.net.activations(picture(index), last)[last])


def test_in_the_workers_of_a_data_loader():
    logits = Logits(zfnet.from_torch(small(), input_size=32))
    loader = torch.utils.data.DataLoader(logits, 3, num_workers=2, multiprocessing_context="fork", timeout=60)
    assert torch.equal(torch.cat(list(loader)), torch.stack([logits[index] for index in range(6)]))


@pytest.mark.parametrize("name", ["alexnet", "vgg11_bn"])
def test_torchvision(name, tmp_path, caplog):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    module = getattr(models, name)(weights=None)
    net = zfnet.from_torch(module)
    assert len(net.classes) == 1000 and net.classes[0] == "tench" and net.input_size == (224, 224)
    image = np.tile(picture(0), (6, 6, 1))
    agree(net, module, image)
    # The same by way of a file.
    torch.save(module.state_dict(), tmp_path / "net.pth")
    with caplog.at_level("INFO", "zfnet"):
        loaded = zfnet.load(tmp_path / "net.pth", preprocess="torchvision")
    assert any("by its shapes" in line for line in caplog.messages)
    last, other = net.layers[-1].name, loaded.layers[-1].name
    found, expected = net.activations(image, last)[last], loaded.activations(image, other)[other]
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
