#!/usr/bin/env python3
"""One contender of scripts/peers/cpu.py, in a process of its own: PyTorch or ONNX Runtime.

    cpu_torch.py step --batch 32 [--channels-last] [--lrn slices] [--sgd fused] [--precision bf16]
    cpu_torch.py forward --batch 32 [--channels-last] [--compile]
    cpu_torch.py onnx --model FILE --batch 32      (cpu_torch.py make-onnx --model FILE writes it)
    cpu_torch.py project --seeds 9 [--channels-last]
    cpu_torch.py layers --batch 32 [--channels-last]

Each prints one JSON object with `rows`, as `zfnet bench --json` does. The network is the one of
src/model/presets/zfnet.toml, but that conv1 is padded by one pixel on all sides, as PyTorch's
users do it: the same sizes, without the copy of the input that rounding up costs in PyTorch. The
update of a step is SGD with momentum and weight decay; the limit on filters' sizes, which is in our
step, is left out of PyTorch's. Inputs are ready in the layout that is asked for.
"""

import argparse
import contextlib
import functools
import json
import statistics
import time
from types import SimpleNamespace

SECONDS = 2.0  # of measuring, about


def measured(name, run, batch):
    """A row: the median of at least three runs, for about SECONDS, after one or two more."""
    begun = time.perf_counter()
    run()
    if time.perf_counter() - begun < SECONDS:
        run()
    times = []
    while len(times) < 3 or sum(times) < SECONDS:
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    median = statistics.median(times)
    return {"id": name, "milliseconds": median * 1e3, "images_per_second": batch / median}


def description():
    """ZFNet with conv1 padded as in PyTorch."""
    from zfnet_torch import architecture

    found = architecture("zfnet", SimpleNamespace())
    found["layers"][0] |= {"pad": 1, "rounding": "floor"}
    return found


def make(args):
    """The network and a batch for it, in the layout that was asked for."""
    import torch
    from zfnet_torch import Lrn, Network, draw_weights

    torch.manual_seed(0)
    about = description()
    network = Network(about, lrn_slices=args.lrn == "slices")
    draw_weights(network, about["recipe"])
    if args.lrn == "roots":
        for layer in network.chain:
            if isinstance(layer, Lrn):
                layer.forward = functools.partial(lrn_by_roots, layer)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    network = network.to(memory_format=layout)
    return network, torch.randn(args.batch, 3, 224, 224).contiguous(memory_format=layout)


def lrn_by_roots(lrn, x):
    """LRN as shifted sums in the type of x, which autocast makes bf16; d^-0.75 of two roots."""
    import torch
    import torch.nn.functional as F

    before, after = lrn.size // 2, (lrn.size - 1) // 2
    squares = F.pad(x.square(), (0, 0, 0, 0, before, after))
    total = sum(squares[:, shift : shift + x.shape[1]] for shift in range(lrn.size))
    root = torch.rsqrt(lrn.k + lrn.alpha * total)
    return x * (root * root.sqrt())


def step(args):
    """A training step: forward, loss, backward, update."""
    import torch
    import torch.nn.functional as F

    network, x = make(args)
    network.train()
    labels = torch.arange(args.batch) % 1000
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=1e-4,
        momentum=0.9,
        weight_decay=5e-4,
        foreach=args.sgd == "foreach",
        fused=args.sgd == "fused",
    )
    cast = contextlib.nullcontext
    if args.precision == "bf16":
        cast = lambda: torch.autocast("cpu", torch.bfloat16)

    def loss_of(x, labels):
        with cast():
            return F.cross_entropy(network(x).float(), labels)

    if args.compile:
        loss_of = torch.compile(loss_of)

    def run():
        optimizer.zero_grad(set_to_none=True)
        loss_of(x, labels).backward()
        optimizer.step()

    return [measured("step", run, args.batch)]


def forward(args):
    """Logits of a batch."""
    import torch

    network, x = make(args)
    network.eval()
    if args.compile:
        network = torch.compile(network)
    with torch.inference_mode():
        return [measured("forward", lambda: network(x), args.batch)]


def make_onnx(args):
    """Writes the network as an ONNX file, with the operator that ONNX has for LRN."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(0)
    nodes, weights = [], []
    last, channels, size = "pixels", 3, 224

    def node(kind, inputs, **attributes):
        name = f"{kind}{len(nodes)}"
        nodes.append(helper.make_node(kind, [last, *inputs], [name], **attributes))
        return name

    def parameters(*shape):
        names = []
        for part, of in (("weight", shape), ("bias", shape[:1])):
            name = f"{part}{len(weights)}"
            values = (0.01 * rng.standard_normal(of)).astype(np.float32)
            weights.append(numpy_helper.from_array(values, name))
            names.append(name)
        return names

    for spec in description()["layers"]:
        kind = spec["type"]
        if kind == "conv":
            k, s, p = spec["kernel"], spec.get("stride", 1), spec.get("pad", 0)
            names = parameters(spec["channels"], channels, k, k)
            last = node("Conv", names, kernel_shape=[k, k], strides=[s, s], pads=[p] * 4)
            channels, size = spec["channels"], (size + 2 * p - k) // s + 1
        elif kind == "fc":
            if size > 1:
                last = node("Flatten", [])
            outputs = spec.get("outputs", 1000)
            last = node("Gemm", parameters(outputs, channels * size * size), transB=1)
            channels, size = outputs, 1
        elif kind == "relu":
            last = node("Relu", [])
        elif kind == "maxpool":
            k, s = spec["kernel"], spec["stride"]
            last = node("MaxPool", [], kernel_shape=[k, k], strides=[s, s], ceil_mode=1)
            size = -(-(size - k) // s) + 1
        elif kind == "lrn":
            # Its alpha, like PyTorch's, is the paper's times the window's size.
            last = node("LRN", [], size=5, alpha=5e-4, beta=0.75, bias=2.0)
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 224, 224])
    logits = helper.make_tensor_value_info(last, TensorProto.FLOAT, ["batch", 1000])
    graph = helper.make_graph(nodes, "zfnet", [pixels], [logits], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    save(model, args.model)
    return []


def onnx(args):
    """Logits of a batch by ONNX Runtime."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    options.add_free_dimension_override_by_name("batch", args.batch)
    session = onnxruntime.InferenceSession(args.model, options, ["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((args.batch, 3, 224, 224), np.float32)
    return [measured("forward", lambda: session.run(None, {"pixels": x}), args.batch)]


def project(args):
    """The deconvnet from single units of conv5 down to pixels, all of them of one image."""
    import torch
    import torch.nn.functional as F

    args.batch = 1
    network, x = make(args)
    layers = []  # from the pixels up: convolutions and pools, with what the backward pass needs
    with torch.inference_mode():
        for name, layer in network.named_children():
            if name == "fc6":
                break
            if name.startswith("pool"):
                shape = x.shape[2:]
                x, where = F.max_pool2d(x, 3, 2, ceil_mode=True, return_indices=True)
                layers.append(("pool", shape, where.expand(args.seeds, -1, -1, -1)))
            elif name.startswith("conv"):
                shape = x.shape[2:]
                x = layer(x)
                beyond = [
                    size - ((made - 1) * layer.stride[0] + kernel - 2 * layer.padding[0])
                    for size, made, kernel in zip(shape, x.shape[2:], layer.kernel_size)
                ]
                layers.append(("conv", layer, beyond))
            elif name.startswith("norm"):
                x = layer(x)
            else:  # relu
                x = F.relu(x)
        layers.pop()  # pool5, which is above conv5
        layout = torch.channels_last if args.channels_last else torch.contiguous_format
        seeds = torch.zeros(args.seeds, 256, 13, 13).contiguous(memory_format=layout)
        for i in range(args.seeds):
            seeds[i, i, i * 7 % 13, i * 5 % 13] = 1.0

        def run():
            y = seeds
            for kind, about, more in reversed(layers):
                if kind == "pool":
                    y = F.max_unpool2d(y, more, 3, 2, output_size=about)
                else:
                    y = F.conv_transpose2d(
                        F.relu(y), about.weight, None, about.stride, about.padding, more
                    )
            return y

        if run().shape[2:] != (224, 224):
            raise SystemExit("the deconvnet's pixels are not 224 x 224")
        return [measured("project", run, args.seeds)]


def layers(args):
    """Each layer's passes, with the names of `zfnet bench`."""
    import torch

    network, x = make(args)
    rows = []
    with torch.inference_mode():
        shapes = []
        for layer in network.chain:
            shapes.append(x.shape)
            x = layer(x)
    names = {id(layer): name for name, layer in network.named_children()}
    layout = torch.channels_last if args.channels_last else torch.contiguous_format

    def row(layer, op, run):
        rows.append(measured(f"zfnet/{names[id(layer)]}/{op}", run, args.batch))

    for layer, shape in zip(network.chain, shapes):
        name = names.get(id(layer), "")
        x = torch.randn(shape)
        if x.dim() == 4:
            x = x.contiguous(memory_format=layout)
        if not name.startswith(("conv", "fc", "pool", "norm")):
            continue
        x.requires_grad_(name != "conv1")
        with torch.no_grad():
            row(layer, "forward", lambda: layer(x))
        y = layer(x)
        dy = torch.randn_like(y)
        ways = {"backward-data": [x] if x.requires_grad else []}
        if name.startswith(("conv", "fc")):
            ways["backward-filter"] = [layer.weight, layer.bias]
        for op, wanted in ways.items():
            if wanted:
                row(layer, op, lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = {
        "step": step,
        "forward": forward,
        "make-onnx": make_onnx,
        "onnx": onnx,
        "project": project,
        "layers": layers,
    }
    parser.add_argument("command", choices=commands)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=9, help="units projected at a time")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--lrn", choices=["builtin", "slices", "roots"], default="builtin")
    parser.add_argument("--sgd", choices=["loop", "foreach", "fused"], default="loop")
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--model", help="an ONNX file")
    args = parser.parse_args()
    versions = {}
    if args.command in ("make-onnx", "onnx"):
        if args.command == "onnx":
            import onnxruntime

            versions["onnxruntime"] = onnxruntime.__version__
    else:
        import torch

        torch.set_num_threads(args.threads)
        versions["torch"] = torch.__version__
    print(json.dumps({**versions, "rows": commands[args.command](args)}))


if __name__ == "__main__":
    main()
