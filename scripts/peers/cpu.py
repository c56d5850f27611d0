#!/usr/bin/env python3
"""`zfnet` on the CPU beside its peers: who is how much faster, as Markdown for benches/record/.

    python scripts/peers/cpu.py --zfnet target/release/zfnet [--peers DIR] [--threads 2]
        [--before OTHER/zfnet] [--parts step,forward,bf16,project,batches,threads,rust] [--rounds 3]
        [--minutes 14] [--json FILE] > record.md

Each contender is a process of its own, whose time is the median over several steps after a warm-up.
They run in alternation (A B C A B C ...), so that a machine that changes changes for all of them;
what is compared are the medians over the rounds. Run it with the Python that has PyTorch, ONNX
Runtime and `onnx`; --before is our own program of an earlier time, a contender more; --peers is the folder with the programs peer-burn, peer-candle and peer-tch
(README.md beside this file). What is missing, or refuses, is left out and named at the end.

Further parts: exact (ours without Winograd), layers (ours beside PyTorch's, pass by pass), and
settings (training steps of PyTorch in all settings that might be its best).
"""

import argparse
import dataclasses
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TORCH = Path(__file__).resolve().with_name("cpu_torch.py")

# PyTorch as it comes: NCHW, its own LRN, its own choice of a loop for SGD.
DEFAULT = []
# At its best here: of all that `--parts settings` tries, the fastest. Memory is kept from one step
# to the next instead of being given back, and channels stand last.
BEST = ["--channels-last", "--lrn", "slices", "--sgd", "fused"]
BEST_BF16 = ["--channels-last", "--lrn", "roots", "--sgd", "fused", "--precision", "bf16"]
BEST_FORWARD = ["--channels-last", "--lrn", "slices"]
COMPILED_FORWARD = [*BEST_FORWARD, "--compile"]
KEPT_MEMORY = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=34359738368"
    ":glibc.malloc.trim_threshold=34359738368:glibc.malloc.top_pad=268435456"
}

USUAL = ["step", "forward", "bf16", "project", "batches", "threads", "rust"]
PARTS = [*USUAL, "exact", "layers", "settings"]


@dataclasses.dataclass(frozen=True)
class Run:
    """A contender: its name in the tables, its command, and what its environment has besides."""

    name: str
    command: tuple
    environment: tuple = ()

    @property
    def key(self):
        """What is run, under whichever name."""
        return self.command, self.environment


class Contenders:
    """The commands of everybody, for one setting of the paired script."""

    def __init__(self, args, scratch):
        self.args, self.model = args, str(Path(scratch) / "zfnet.onnx")

    def ours(self, *flags, threads=None, name="zfnet", program=None):
        threads = str(threads or self.args.threads)
        command = [program or self.args.zfnet, "bench", "--arch", "zfnet", "--device", "cpu", "--json"]
        return Run(name, (*command, "--threads", threads, *map(str, flags)))

    def before(self, *flags, name="zfnet before"):
        """Our program of an earlier time, if there is one to compare with."""
        program = self.args.before
        return [self.ours(*flags, name=name, program=program)] if program else []

    def torch(self, name, command, *flags, batch=None, kept_memory=True):
        flags = [command, "--threads", self.args.threads, *flags]
        if batch:
            flags += ["--batch", batch]
        environment = tuple(KEPT_MEMORY.items()) if kept_memory else ()
        return Run(name, (sys.executable, str(TORCH), *map(str, flags)), environment)

    def rust(self, name, batch, steps):
        threads = str(self.args.threads)
        environment = (("RAYON_NUM_THREADS", threads), ("OMP_NUM_THREADS", threads))
        program = str(Path(self.args.peers or ".") / f"peer-{name}")
        return Run(name, (program, str(batch), str(steps)), environment)

    def comparisons(self, part):
        """The tables of a part: title, contenders, ours first."""
        ours, torch = self.ours, self.torch
        if part == "step":
            for batch in (32, 128):
                yield (
                    f"Training step, batch {batch}",
                    [
                        ours("--step", "--batch", batch),
                        *self.before("--step", "--batch", batch),
                        torch("PyTorch, default", "step", *DEFAULT, batch=batch, kept_memory=False),
                        torch("PyTorch, best", "step", *BEST, batch=batch),
                    ],
                )
        elif part == "forward":
            for batch in (32, 1):
                yield (
                    f"Forward, batch {batch}",
                    [
                        ours("--forward", "--batch", batch),
                        *self.before("--forward", "--batch", batch),
                        torch("PyTorch, best", "forward", *BEST_FORWARD, batch=batch),
                        torch("PyTorch, compiled", "forward", *COMPILED_FORWARD, batch=batch),
                        torch("ONNX Runtime", "onnx", "--model", self.model, batch=batch),
                    ],
                )
        elif part == "bf16":
            for batch in (32, 128):
                flags, bf16 = ("--step", "--batch", batch), ("--precision", "bf16")
                yield (
                    f"Training step in bf16, batch {batch}",
                    [
                        ours(*flags, *bf16),
                        *self.before(*flags, *bf16),
                        *self.before(*flags, name="zfnet before, f32"),
                        torch("PyTorch, autocast, best", "step", *BEST_BF16, batch=batch),
                    ],
                )
        elif part == "project":
            yield (
                "Nine projections of one image from conv5 to pixels",
                [
                    ours("--layer", "conv5", "--op", "project"),
                    *self.before("--layer", "conv5", "--op", "project"),
                    torch("PyTorch, best", "project", "--channels-last"),
                ],
            )
        elif part == "rust":
            yield (
                "Training step of other Rust frameworks, batch 32",
                [
                    ours("--step", "--batch", 32),
                    self.rust("tch", 32, 5),
                    self.rust("burn", 32, 2),
                    self.rust("candle", 32, 2),
                ],
            )
        elif part == "exact":
            yield (
                "Training step without Winograd, batch 32",
                [
                    ours("--step", "--batch", 32),
                    ours("--step", "--batch", 32, "--exact", name="zfnet --exact"),
                ],
            )
        elif part == "batches":
            runs = [(batch, ours("--step", "--batch", batch)) for batch in (16, 32, 64, 128, 256)]
            yield (
                "Training step by batch",
                [dataclasses.replace(run, name=f"zfnet, batch {batch}") for batch, run in runs],
            )
        elif part == "threads":
            few = ours("--step", "--batch", 32, threads=1, name="zfnet, 1 thread")
            many = ours("--step", "--batch", 32, name=f"zfnet, {self.args.threads} threads")
            yield "Training step by threads, batch 32", [many, few]
        elif part == "layers":
            yield (
                "Layers, batch 32",
                [
                    ours("--batch", 32),
                    torch("PyTorch, best", "layers", *BEST_FORWARD, batch=32),
                ],
            )
        elif part == "settings":
            tried = [
                f"--channels-last --lrn {lrn} --sgd {sgd}"
                for lrn in ("builtin", "slices")
                for sgd in ("loop", "foreach", "fused")
            ]
            tried += ["--channels-last --lrn roots --sgd fused"]
            tried += [tried[-1] + " --compile", "--lrn roots --sgd fused"]
            for precision in ("f32", "bf16"):
                flags = [f"{flags} --precision {precision}" for flags in tried]
                yield (
                    f"PyTorch's settings, training step in {precision}, batch 32",
                    [torch(some, "step", *some.split(), batch=32) for some in flags],
                )


@dataclasses.dataclass
class Result:
    """What one process said: its rows, the figures of the first, and the most MB it had."""

    rows: list
    images_per_second: float
    milliseconds: float
    peak: float
    versions: dict


def execute(run):
    """Runs a contender: its Result, or a line that says why there is none."""
    environment = os.environ | dict(run.environment)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(run.command, stdout=out, stderr=err, env=environment)
        except OSError as error:
            return f"{run.command[0]}: {error.strerror}"
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        said = err.read().decode(errors="replace").strip().splitlines()
        if process.returncode:
            errors = [line for line in said if "rror" in line] or said or ["no message"]
            return f"exit status {process.returncode}: {errors[0].strip()}"
        found = json.loads(out.read())
    rows = found.get("rows", [found])
    first = rows[0] if rows else {"milliseconds": 0.0, "images_per_second": 0.0}
    return Result(
        rows=rows,
        milliseconds=first["milliseconds"],
        # Our row of nine projections at a time says milliseconds only.
        images_per_second=first.get("images_per_second", 9e3 / max(first["milliseconds"], 1e-9)),
        peak=usage.ru_maxrss * 1024 / 1e6,
        versions={k: found[k] for k in ("torch", "onnxruntime") if k in found},
    )


def table(*lines):
    head, *rest = [[str(cell) for cell in line] for line in lines]
    align = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, align, *rest]) + "\n"


def compared(title, runs, results):
    """One comparison as Markdown: medians, and how often as fast the first contender is."""
    first_name = runs[0].name if runs[0].name.startswith("zfnet") else "the first"
    unit = "projections/s" if "projections" in title else "images/s"
    lines = [("", "ms", unit, "rounds", f"{first_name} / it", "peak MB")]
    first = None
    for run in runs:
        found = results.get(run.key, [])
        if not found:
            continue
        rates = [result.images_per_second for result in found]
        rate = statistics.median(rates)
        first = first or (rate if run is runs[0] else None)
        lines.append(
            (
                run.name,
                f"{statistics.median(r.milliseconds for r in found):,.1f}",
                f"{rate:,.1f}",
                " ".join(f"{r:.1f}" for r in rates),
                f"{first / rate:.2f}" if first and run is not runs[0] else "",
                f"{statistics.median(r.peak for r in found):,.0f}",
            )
        )
    return f"### {title}\n\n{table(*lines)}" if len(lines) > 1 else ""


FIGURES = [("milliseconds", ".2f"), ("gflops", ",.0f"), ("gbytes", ".1f"), ("share", ".0%")]


def median_of(rows, key):
    values = [row[key] for row in rows or [] if key in row]
    return statistics.median(values) if values else None


def compared_layers(title, runs, results):
    """Ours and PyTorch's layers, pass by pass."""
    ours, theirs = ({}, {})
    for run, into in zip(runs, (ours, theirs)):
        for row in (row for result in results.get(run.key, []) for row in result.rows):
            layer_and_pass = "/".join(row["id"].split("/")[1:3])
            into.setdefault(layer_and_pass, []).append(row)
    lines = [("", "zfnet ms", "GFLOP/s", "GB/s", "of the peak", "PyTorch ms", "zfnet / it")]
    for name, rows in ours.items():
        cells = []
        mine, other = median_of(rows, "milliseconds"), median_of(theirs.get(name), "milliseconds")
        for key, form in FIGURES:
            value = median_of(rows, key)
            cells.append("" if value is None else format(value, form))
        cells += [f"{other:.2f}", f"{other / mine:.2f}"] if other else ["", ""]
        lines.append((name, *cells))
    return f"### {title}\n\n{table(*lines)}" if ours else ""


def machine(results, args, load):
    """What the figures were measured on and with."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    ours = subprocess.run([args.zfnet, "--version"], capture_output=True, text=True).stdout
    versions = {}
    for found in results.values():
        for result in found:
            versions |= result.versions
    said = [f"{name} {version}" for name, version in versions.items()]
    return (
        f"{datetime.date.today()}, {names[0]}, {len(names)} cores, {args.threads} threads; "
        + ", ".join([ours.strip(), *said])
        + f". Load before it began: {load:.2f}."
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zfnet", required=True, help="our program")
    parser.add_argument("--before", help="our program of an earlier time")
    parser.add_argument("--peers", help="folder of peer-burn, peer-candle and peer-tch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", default=",".join(USUAL), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--minutes", type=float, default=14, help="no round that would pass them")
    parser.add_argument("--json", help="write every single figure into this file")
    args = parser.parse_args()
    parts = args.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"no part {unknown[0]}: expected some of {', '.join(PARTS)}")
    args.zfnet = str(Path(args.zfnet).resolve())
    args.before = args.before and str(Path(args.before).resolve())
    with tempfile.TemporaryDirectory() as scratch:
        measure(args, parts, Contenders(args, scratch))


def measure(args, parts, contenders):
    """Runs everybody, round by round, and prints the tables."""
    comparisons = [(part, *one) for part in parts for one in contenders.comparisons(part)]
    load = os.getloadavg()[0]
    results, failed = {}, {}  # by a run's key: its results, and why it has none
    if "forward" in parts:
        made = execute(contenders.torch("ONNX", "make-onnx", "--model", contenders.model))
        if isinstance(made, str):
            print(f"no ONNX file: {made}", file=sys.stderr)
    begun = time.monotonic()
    for number in range(args.rounds):
        spent = time.monotonic() - begun
        if number and spent * (number + 1) / number > 60 * args.minutes:
            print(f"no time for round {number + 1} of {args.rounds}", file=sys.stderr)
            break
        done = set()
        for part, title, runs in comparisons:
            for run in runs:
                if runs[0].key in failed and part != "settings":
                    break  # there is nothing to compare with
                if run.key in done or run.key in failed:
                    continue
                done.add(run.key)
                result = execute(run)
                if isinstance(result, str):
                    failed[run.key] = said = f"{title}: left out {run.name}: {result}"
                else:
                    results.setdefault(run.key, []).append(result)
                    rate = f"{result.images_per_second:.1f} images/s"
                    said = f"round {number + 1}: {title}: {run.name}: {rate}"
                print(said, file=sys.stderr, flush=True)
    minutes = (time.monotonic() - begun) / 60
    print(machine(results, args, load) + f" {minutes:.1f} minutes.\n")
    for part, title, runs in comparisons:
        show = compared_layers if part == "layers" else compared
        if text := show(title, runs, results):
            print(text)
    for why in failed.values():
        print(f"- {why}")
    if args.json:
        all_runs = {run.key: run for _, _, runs in comparisons for run in runs}
        figures = [
            {
                "name": run.name,
                "command": run.command,
                "environment": dict(run.environment),
                "rounds": [dataclasses.asdict(result) for result in results[key]],
            }
            for key, run in all_runs.items()
            if key in results
        ]
        Path(args.json).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
