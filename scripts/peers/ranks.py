#!/usr/bin/env python3
"""Two ranks of one thread beside one of two, and PyTorch's DistributedDataParallel on gloo: as Markdown for benches/record/.

    python scripts/peers/ranks.py --zfnet target/release/zfnet --data DIR [--batch 64] [--rounds 3] > record.md

The program has to be built with the feature mpi, and `mpirun` has to be its launcher. DIR is a folder of images from
which a small one of ten steps is made. Contenders run in alternation; of each the second epoch's rate is taken, of
PyTorch the median of as many steps, on inputs that are ready. Run it with the Python that has PyTorch.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cpu import BEST, KEPT_MEMORY

STEPS = 10
RANKS = 2


def small_set(source, folder, images):
    """A folder of so many training images and a few for validation, as links."""
    for split, count in (("train", images), ("val", 20)):
        classes = sorted(path for path in (source / split).iterdir() if path.is_dir())[:10]
        for index in range(count):
            of_class = sorted(classes[index % len(classes)].iterdir())
            image = of_class[index // len(classes)]
            target = folder / split / image.parent.name / image.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(image.resolve())


def ours(args, data, ranks, threads, parts, scratch):
    """Images a second of the second epoch."""
    out = Path(scratch) / f"run-{time.monotonic_ns()}"
    command = [args.zfnet, "train", "--arch", "zfnet", "--data", data, "--out", out, "--batch-size", args.batch]
    command += ["--epochs", 2, "--accumulate", parts, "--threads", threads, "--workers", 1, "--no-watch", "--keep", 1]
    command += ["--device", "cpu"]
    if ranks > 1:
        command = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", ranks, *command]
    environment = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    subprocess.run(["rm", "-rf", out])
    found = re.search(r"epoch 2: .* (\d+(?:\.\d+)?) images/s", ran.stderr)
    if ran.returncode != 0 or not found:
        sys.exit(f"{' '.join(map(str, command))}: {ran.stderr[-2000:]}")
    return float(found[1])


def torch(args):
    """Images a second of PyTorch by as many processes of one thread."""
    port = str(20000 + time.monotonic_ns() % 20000)
    running = []
    for rank in range(RANKS):
        environment = os.environ | KEPT_MEMORY | {
            "RANK": str(rank), "WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, __file__, "--as-peer", "--batch", str(args.batch)]
        running.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    printed = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        sys.exit("PyTorch's processes have failed")
    return float(printed[0])


def peer(args):
    """One of PyTorch's processes."""
    import cpu_torch
    import torch
    import torch.distributed as distributed
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    settings = argparse.Namespace(batch=args.batch // RANKS, channels_last=True, lrn="slices")
    network, images = cpu_torch.make(settings)
    labels = torch.randint(0, 1000, (settings.batch,))
    network = DistributedDataParallel(network)
    update = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4, fused=True)

    def step():
        update.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        update.step()

    times = []
    for index in range(STEPS + 2):
        begun = time.perf_counter()
        step()
        if index >= 2:
            times.append(time.perf_counter() - begun)
    if distributed.get_rank() == 0:
        print(args.batch / statistics.median(times))
    distributed.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zfnet", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--as-peer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.as_peer:
        return peer(args)
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        small_set(args.data, data, STEPS * args.batch)
        contenders = {
            "one rank of two threads": lambda: ours(args, data, 1, 2, 1, scratch),
            "the same, a batch in 2 parts": lambda: ours(args, data, 1, 2, 2, scratch),
            "the same, a batch in 8 parts": lambda: ours(args, data, 1, 2, 8, scratch),
            "two ranks of one thread, 2 parts": lambda: ours(args, data, 2, 1, 2, scratch),
            f"PyTorch DDP, gloo, two processes of one thread ({' '.join(BEST)})": lambda: torch(args),
        }
        rates = {name: [] for name in contenders}
        for _ in range(args.rounds):
            for name, run in contenders.items():
                rates[name].append(run())
                print(f"{name}: {rates[name][-1]:.1f}", file=sys.stderr)
    medians = {name: statistics.median(of_name) for name, of_name in rates.items()}
    first = next(iter(medians.values()))
    print(f"Training step of zfnet, batch {args.batch}, images/s, medians of {args.rounds} rounds in alternation\n")
    print("| | images/s | beside the first | all |\n|---|---:|---:|---|")
    for name, median in medians.items():
        every = ", ".join(f"{rate:.1f}" for rate in rates[name])
        print(f"| {name} | {median:.1f} | {median / first:.2f} | {every} |")


if __name__ == "__main__":
    main()
