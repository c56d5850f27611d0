"""Networks of PyTorch that are in memory."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, Sequence

import numpy as np

from . import _zfnet
from ._network import Network

_SIZE = 224  # torchvision's


def from_torch(
    module: Any,
    preprocess: Literal["paper", "torchvision", "caffe"] = "torchvision",
    *,
    classes: Sequence[str] | None = None,
    input_size: int | tuple[int, int] | None = None,
    device: str = "auto",
    threads: int | None = None,
    instructions: Literal["portable", "avx2"] | None = None,
) -> Network:
    """Takes a network over from PyTorch: torchvision's alexnet and vgg, an nn.Sequential, or any module that runs others
    one after another: Conv2d, ReLU, MaxPool2d, LocalResponseNorm, Linear, BatchNorm2d behind a layer with weights (folded
    into it), Dropout, Flatten, and average pooling where it changes nothing. Weights are copied.

    The module is run, in evaluation mode, on one random image to see which modules it calls, and on others to see whether
    the network that was made gives the same: its outputs, or the softmax of them or the logarithm of that.

    preprocess: how images are prepared for it, which a module does not say: "torchvision" (0 to 1, less ImageNet's mean,
    divided by its standard deviation), "caffe" (BGR, 0 to 255, less ImageNet's mean colour) or "paper" (0 to 255, less
    128).
    classes: their names; ImageNet's where there are 1000 unless they are given.
    input_size: rows and columns of its input, or one number for both; 224.
    device, threads, instructions: as for zfnet.load.

    Raises ValueError that names what is no such module, and where it is.
    """
    import torch

    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"expected a torch.nn.Module, found {type(module).__name__}")
    size = _SIZE if input_size is None else input_size
    size = (size, size) if isinstance(size, int) else size
    if not isinstance(size, (tuple, list)) or len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"input_size: expected rows and columns, or one number for both, found {input_size!r}")
    rows, columns = size
    name = type(module).__name__
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.inference_mode():
            chain = _Chain(module, (rows, columns))
            network = Network(
                _zfnet.from_chain(
                    "network" if name == "Sequential" else name,
                    chain.layers,
                    channels=chain.channels,
                    size=(rows, columns),
                    preprocess=preprocess,
                    classes=None if classes is None else list(classes),
                    device=device,
                    threads=threads,
                    instructions=instructions,
                )
            )
            chain.compare(network)
    finally:
        for part, was in training.items():
            part.training = was
    return network


class _Chain:
    """The layers that a module runs, and what stands behind the last one."""

    def __init__(self, module: Any, size: tuple[int, int]) -> None:
        import torch

        self.module = module
        self.layers: list[tuple[str, str, dict[str, Any]]] = []
        self._ended: str | None = None  # the path of a softmax
        weights = next(module.parameters(), None)
        first = next((part for part in module.modules() if isinstance(part, torch.nn.Conv2d)), None)
        if weights is None or first is None:
            raise ValueError(f"{type(module).__name__}: expected a network with a Conv2d, found none")
        self._like = {"device": weights.device, "dtype": weights.dtype}
        self.channels = first.in_channels
        image = torch.randn((1, self.channels, *size), generator=torch.Generator().manual_seed(0))
        self._ends = self._between(size)
        self._run(image, self._take, size)

    def _run(self, image: Any, hook: Any, size: tuple[int, int], before: Any = None) -> Any:
        """Runs the module, with `hook` called with each module that has no others inside: path, module, inputs and
        output, in place of which it may return another; and before it is run, `before` with path, module and inputs."""
        import torch

        hooks = []
        for path, part in self.module.named_modules():
            if next(part.children(), None) is None:

                def called(part: Any, inputs: Any, output: Any, path: str = path) -> Any:
                    return hook(path, part, inputs, output)

                hooks.append(part.register_forward_hook(called))
                if before is not None:
                    hooks.append(part.register_forward_pre_hook(partial(before, path)))
        try:
            output = self.module(image.to(**self._like))
            if not isinstance(output, torch.Tensor):
                expected = f"{type(self.module).__name__}: expected a module that gives one tensor"
                raise ValueError(f"{expected}, found {type(output).__name__}")
            return output
        except RuntimeError as error:
            rows, columns = size
            raise ValueError(
                f"the module does not take images of {rows}x{columns} (say its input_size): {error}"
            ) from error
        finally:
            for hook in hooks:
                hook.remove()

    def _take(self, path: str, part: Any, inputs: Any, output: Any) -> None:
        import torch
        from torch import nn

        def wrong(reason: str) -> ValueError:
            return ValueError(f"{path or 'the module'} ({type(part).__name__}): {reason}")

        if len(inputs) != 1 or not isinstance(output, torch.Tensor):
            raise wrong("expected a module that makes one tensor of another")
        if self._ended is not None:
            raise wrong(f"expected nothing behind {self._ended}, which gives the probabilities")
        pair = nn.modules.utils._pair
        match part:
            case nn.Conv2d():
                if part.padding_mode != "zeros" or pair(part.dilation) != (1, 1):
                    raise wrong("expected zeros beyond the edge, and no dilation")
                down, across = part.kernel_size
                if part.padding == "same":
                    above, left = (down - 1) // 2, (across - 1) // 2
                    pad = [above, down - 1 - above, left, across - 1 - left]
                else:
                    above, left = (0, 0) if part.padding == "valid" else pair(part.padding)
                    pad = [above, above, left, left]
                self._add(path, part, "conv", stride=list(part.stride), pad=pad, groups=part.groups)
            case nn.Linear():
                self._add(path, part, "fc")
            case nn.BatchNorm2d() | nn.BatchNorm1d():
                self._fold(part, wrong)
            case nn.ReLU():
                self._add(path, part, "relu")
            case nn.MaxPool2d():
                if pair(part.dilation) != (1, 1):
                    raise wrong("expected no dilation")
                above, left = pair(part.padding)
                kernel, stride = pair(part.kernel_size), pair(part.stride)
                pad = [above, above, left, left]
                self._add(path, part, "maxpool", kernel=kernel, stride=stride, pad=pad, ceil=part.ceil_mode)
            case nn.LocalResponseNorm():
                if part.size % 2 == 0:
                    raise wrong(f"expected an odd number of channels, found {part.size}")
                self._add(path, part, "lrn", size=part.size, alpha=part.alpha, beta=part.beta, k=part.k)
            case nn.Dropout():
                self._add(path, part, "dropout", rate=part.p)
            case nn.AvgPool2d() | nn.AdaptiveAvgPool2d():
                if not torch.equal(inputs[0], output):
                    found, made = ("x".join(map(str, of.shape[2:])) for of in (inputs[0], output))
                    hint = "" if made == "1x1" else ": perhaps with another input_size"
                    raise wrong(f"averages {found} to {made}, which no layer here does{hint}")
            case nn.Softmax() | nn.LogSoftmax():
                self._ended = path
            case nn.Flatten() | nn.Identity():
                pass
            case _:
                raise wrong("is no layer that is known")

    def _add(self, path: str, part: Any, kind: str, **fields: Any) -> None:
        if kind in ("conv", "fc"):
            fields["weight"] = _array(part.weight)
            outputs = part.weight.shape[0]
            fields["bias"] = np.zeros(outputs, np.float32) if part.bias is None else _array(part.bias)
        self.layers.append((path, kind, fields))

    def _fold(self, part: Any, wrong: Any) -> None:
        from torch.nn.utils.fusion import fuse_conv_bn_weights

        if not self.layers or self.layers[-1][1] not in ("conv", "fc"):
            raise wrong("expected it right behind a Conv2d or a Linear")
        if part.running_mean is None:
            raise wrong("expected statistics from training")
        fields = self.layers[-1][2]
        weight, bias = (_tensor(fields[name]) for name in ("weight", "bias"))
        numbers = [None if of is None else of.detach().cpu().float() for of in (part.running_mean, part.running_var)]
        scale, shift = (None if of is None else of.detach().cpu().float() for of in (part.weight, part.bias))
        weight, bias = fuse_conv_bn_weights(weight, bias, *numbers, part.eps, scale, shift)
        fields["weight"], fields["bias"] = _array(weight), _array(bias)

    def compare(self, network: Network) -> None:
        """Whether the network gives what the module does: of several images, in one form of its outputs.

        Raises ValueError if it does not: the module does more than to run modules one after another.
        """
        import torch

        if self._ended is None and not self._in_one_form(self._ends):
            raise self._other()
        if self._ended is not None and not all(torch.equal(*pair) for pair in self._ends):
            raise self._other()
        last = network.layers[-1].name
        pairs = []
        for image in _probes(network._network.canvas_size):
            seen = torch.from_numpy(network.input(image)).permute(2, 0, 1).unsqueeze(0)
            given = self._run(seen, lambda *_: None, network.input_size).float().cpu().flatten()
            ours = torch.from_numpy(network.activations(image, last)[last])
            if ours.ndim == 3:
                ours = ours.permute(2, 0, 1)
            pairs.append((ours.flatten(), given))
        if not self._in_one_form(pairs):
            raise self._other()

    def _between(self, size: tuple[int, int]) -> list[tuple[Any, Any]]:
        """Whether each module is given what the one before has made; and what the last one makes beside what the whole
        gives.

        What a module makes is replaced by random numbers, of both signs in turn: what is computed from them on the way
        (a relu, say) shows, whatever numbers the weights lead to.

        Raises ValueError that names the first that is given something else.
        """
        import torch

        made: Any = None
        maker = ""

        def given(path: str, part: Any, inputs: Any) -> None:
            if made is None or len(inputs) != 1 or not isinstance(inputs[0], torch.Tensor):
                return
            if not torch.equal(inputs[0].flatten(), made.flatten()):
                raise ValueError(
                    f"{path} ({type(part).__name__}): it is not given what {maker} makes: the network branches, or something"
                    " is computed between them, as by torch.nn.functional, for which modules (nn.ReLU, nn.MaxPool2d) have"
                    " to stand"
                )

        def replaced(path: str, part: Any, inputs: Any, output: Any) -> Any:
            nonlocal made, maker
            if not isinstance(output, torch.Tensor):
                return None
            maker = path
            values = torch.empty(output.shape).uniform_(-1, 1, generator=random)
            made = (sign * (9 * values + values.sign())).to(output)  # none near 0
            return made.clone()  # in place of which the next module may write its own

        pairs = []
        for sign in (1, -1):
            made, random = None, torch.Generator().manual_seed(0)
            image = torch.zeros((1, self.channels, *size))
            found = self._run(image, replaced, size, given).float().cpu().flatten()
            pairs.append((made.float().cpu().flatten(), found))
        return pairs

    def _in_one_form(self, pairs: list[tuple[Any, Any]]) -> bool:
        """Whether what a module gives are outputs, of all pairs of the two, or of all their softmax or its logarithm."""
        import torch

        forms = [lambda ours: ours]
        if pairs[0][0].numel() > 1:  # of one output softmax is 1, whatever the output is
            forms += [lambda ours: ours.softmax(0), lambda ours: ours.log_softmax(0)]
        tolerance = 1e-3 if self._like["dtype"] in (torch.float32, torch.float64) else 3e-2

        def equal(ours: Any, given: Any) -> bool:
            return ours.shape == given.shape and bool((ours - given).abs().max() <= tolerance * ours.abs().max())

        return any(all(equal(form(ours), given) for ours, given in pairs) for form in forms)

    def _other(self) -> ValueError:
        return ValueError(
            f"{type(self.module).__name__}: what it gives is not what its modules give one after another: something is"
            " computed behind them"
        )


def _probes(size: tuple[int, int]) -> list[np.ndarray]:
    """Images that a network is compared on: noise of several contrasts, and plain colours."""
    random = np.random.default_rng(0)
    contrasts = [(0, 256), (64, 192), (0, 64), (192, 256)]
    noise = [random.integers(low, high, (*size, 3), np.uint8) for low, high in contrasts]
    colours = [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 128, 255)]
    return noise + [np.full((*size, 3), colour, np.uint8) for colour in colours]


def _array(tensor: Any) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().cpu().float().numpy())


def _tensor(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(array)
