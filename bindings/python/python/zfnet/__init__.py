"""Train ZFNet and see what a convolutional network has learnt.

>>> import zfnet
>>> net = zfnet.load("run")                     # a run, a checkpoint, .pth, .onnx, .safetensors, .caffemodel
>>> net.classify("photo.jpg")                   # [(class, probability), ...]
>>> net.project("photo.jpg", "conv5:123")       # what made that unit fire; shows itself in a notebook
>>> zfnet.top9(net, "folder", layers=["conv5"]) # the paper's Figure 2 of that network, as a page

Images are paths of JPEG or PNG files, Pillow's images (of modes with 8 bits a channel, taken as RGB), or numpy arrays
of uint8, [rows, columns, 3] in RGB or [rows, columns]. They are prepared as the command `zfnet` prepares a file, so all
values are the command's to the last bit: of a file, and of pixels that equal the command's. Pillow decodes JPEG a
little differently, so what it opens gives slightly other values than the same JPEG by its path. Arrays in C's order are
read where they lie, others are copied first; arrays that are returned own the memory that was computed into.

Wrong arguments are ValueError or TypeError, files that cannot be read or written OSError, and all else that cannot be
done is zfnet.Error. Notes on what was found in a file go to the logger `zfnet`.

Python's lock is given back while anything is computed (but for the resizing of an array), and a Network may be used
from several threads: calls of the same one wait for each other. After a fork (in a DataLoader's worker) networks go on
in the child, on one thread. Pickled, for a process that is not forked, a network is its path: it is loaded again there.
"""

from ._network import Layer, Layers, Network, Projection, load
from ._page import Page, top9
from ._study import Invariance, Occlusion
from ._torch import from_torch
from ._train import Run, train
from ._zfnet import Error, __version__

__all__ = [
    "Error",
    "Invariance",
    "Layer",
    "Layers",
    "Network",
    "Occlusion",
    "Page",
    "Projection",
    "Run",
    "__version__",
    "from_torch",
    "load",
    "top9",
    "train",
]
