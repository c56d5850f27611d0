"""Writes the PyTorch files beside it, which tests/pytorch.rs reads. Needs torch and numpy.

Values are counted up, so that the test knows them. The oldest format is written by hand, as torch 2 only reads it;
what is written is loaded again here to see that it is right.
"""
import argparse
import collections
import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
OLDER = {"_use_new_zipfile_serialization": False}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 2)
        self.bn = nn.BatchNorm2d(2)
        self.relu = nn.ReLU()
        self.register_buffer("unsaved", torch.zeros(1), persistent=False)
        start = 0
        with torch.no_grad():
            for tensor in self.state_dict().values():
                if tensor.is_floating_point():
                    tensor.copy_(torch.arange(start, start + tensor.numel()).reshape(tensor.shape))
                    start += tensor.numel()


def tar(path, state):
    """As torch to 0.1.10: a table of storages, one of tensors, and a pickle with their numbers."""
    dump = lambda value: pickle.dumps(value, protocol=2)
    storages, tensors, numbers = [dump(1)], [dump(len(state))], {}
    whole = torch.cat([tensor.flatten() for tensor in state.values()])
    storages += [dump((1, "cpu", torch.FloatStorage)), struct.pack("<q", len(whole)), whole.numpy().tobytes()]
    views, start = [], 0
    for number, (name, tensor) in enumerate(state.items(), 10):
        # The first lies in the whole, the others in parts of it.
        storage = 1 if start == 0 else number + 100
        if storage != 1:
            views.append((storage, 1, start, tensor.numel()))
        tensors += [dump((number, storage, torch.FloatTensor)), struct.pack("<ii", tensor.dim(), 0)]
        tensors += [struct.pack(f"<{tensor.dim()}q", *sizes) for sizes in (tensor.shape, tensor.stride())]
        tensors.append(struct.pack("<q", 0))
        numbers[name] = number
        start += tensor.numel()
    storages.append(dump(views))

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return str(value.number) if isinstance(value, Reference) else None

    class Reference:
        def __init__(self, number):
            self.number = number

    objects = io.BytesIO()
    references = [(name, Reference(number)) for name, number in numbers.items()]
    Pickler(objects, protocol=2).dump(collections.OrderedDict(references))
    system = {"protocol_version": 1000, "little_endian": True}
    members = {"sys_info": dump(system), "pickle": objects.getvalue(), "tensors": b"".join(tensors), "storages": b"".join(storages)}
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        end = archive.offset
    path.write_bytes(file.getvalue()[:end])  # without the padding to 10 kB
    loaded = torch.load(path, weights_only=False)
    assert list(loaded) == list(state) and all(torch.equal(loaded[name], state[name]) for name in state)


# The older format has the source of each module's class beside it.
torch.serialization.get_source_lines_and_file = lambda *_: (["class ...\n"], 1, "file.py")
net = Net()
state = net.state_dict()
torch.save(state, HERE / "zip.pth")
torch.save(state, HERE / "stream.pth", **OLDER)
tar(HERE / "tar.pth", {name: tensor for name, tensor in state.items() if tensor.is_floating_point()})
torch.save(net, HERE / "module.pth", **OLDER)
torch.save(net, HERE / "module_protocol1.pth", pickle_protocol=1, **OLDER)
torch.save(nn.DataParallel(nn.Sequential(net.conv)), HERE / "module_zip.pth")

optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
for parameter in net.parameters():
    parameter.grad = torch.ones_like(parameter)
optimizer.step()
checkpoint = {
    "epoch": 3,
    "best": torch.tensor(0.5),
    "args": argparse.Namespace(lr=np.float64(0.1), sizes=[1, 2]),
    "loss": np.float32(2.5),
    "history": np.arange(3),
    "state_dict": collections.OrderedDict(
        ("module." + name, tensor.half() if tensor.is_floating_point() else tensor)
        for name, tensor in Net().state_dict().items()
    ),
    "optimizer": optimizer.state_dict(),
    "dtype": torch.float32,
    "device": torch.device("cpu"),
}
torch.save(checkpoint, HERE / "checkpoint.pth", **OLDER)

count = torch.arange(24.0)
torch.save(
    {
        "permuted": count.reshape(2, 3, 4).permute(2, 0, 1),
        "steps": count.reshape(4, 6)[1:3, ::2],
        "later": count[3:7],
        "same": count,
        "expanded": torch.ones(1).expand(3),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(5.0),
        "half": torch.arange(3).half(),
        "bfloat": torch.arange(3).bfloat16(),
        "double": torch.arange(3).double() / 4,
        "counter": torch.arange(3),
        "parameter": nn.Parameter(torch.arange(2.0)),
    },
    HERE / "views.pth",
    **OLDER,
)
torch.save({"w": torch.eye(2).to_sparse()}, HERE / "sparse.pth", **OLDER)
