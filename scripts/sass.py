"""Counts the instructions of kernels in what `cuobjdump -sass` prints: for each kernel those on the path
from its begin to its end, and those of each loop on it.

A path is the shortest one that writes to global memory, so that neither an early exit counts nor what a
rare value needs. The body of a loop is the shortest path from its head back to it; listed are those on the
path, and those that read global memory, multiply matrices or write to shared memory. `expected-step` multiplies
loops by their trips; `check-kernels.sh` holds the counts.
"""

import heapq
import math
import re
import sys
from dataclasses import dataclass, field


# What a kernel's main loops are there for: products of tensor cores, and reads of global memory.
WORK = {"HMMA", "HGMMA", "LDG", "UTMALDG"}


@dataclass
class Loop:
    head: int  # index of its first instruction
    back: int  # and of the branch back
    body: int  # instructions of a trip, the shortest
    span: int  # all between its head and its end
    on_path: bool  # whether the path takes it once
    ops: dict[str, int] = field(default_factory=dict)


@dataclass
class Kernel:
    name: str
    path: int  # instructions, each loop on it counted once
    loops: list[Loop]
    total: int

    def executed(self, trips: list[float]) -> float:
        """Instructions of a thread (or warp) whose loops, in their order, take so many trips in all."""
        loops = zip(trips, self.loops, strict=True)
        return self.path + sum((n - loop.on_path) * loop.body for n, loop in loops)


def shortest(edges, costs, start: int) -> tuple[dict[int, int], dict[int, int]]:
    """Cost from `start` to every instruction, itself included, and where each was come from."""
    found, before, queue = {}, {}, [(costs[start], start, -1)]
    while queue:
        cost, at, from_ = heapq.heappop(queue)
        if at in found:
            continue
        found[at], before[at] = cost, from_
        for to in edges[at]:
            if to not in found:
                heapq.heappush(queue, (cost + costs[to], to, at))
    return found, before


def analyse(name: str, lines: list[tuple[int, str]]) -> Kernel:
    index = {address: i for i, (address, _) in enumerate(lines)}
    forward, backward = [[] for _ in lines], []
    for i, (_, text) in enumerate(lines):
        always = not text.startswith("@")
        op = re.sub(r"^@!?U?P\w+\s+", "", text)
        target = re.search(r"\b(?:BRA|CALL\S*)\b.*?0x([0-9a-f]+)", op)
        ends = op.startswith(("EXIT", "RET", "BRA")) and always and " P" not in op.split(";")[0]
        if target and op.startswith("BRA"):
            to = index.get(int(target[1], 16))
            if to is not None and to > i:
                forward[i].append(to)
            elif to is not None and to != i:  # a branch to itself pads the end
                backward.append((to, i))
        if not ends and i + 1 < len(lines):
            forward[i].append(i + 1)
    costs = [0 if text.startswith("NOP") else 1 for _, text in lines]
    from_start, _ = shortest(forward, costs, 0)
    stores = [i for i, (_, text) in enumerate(lines) if "STG" in text or "RED" in text]
    exits = [i for i, (_, text) in enumerate(lines) if re.match(r"(@!?U?P\w+ +)?EXIT", text)]
    reverse = [[] for _ in lines]
    for i, targets in enumerate(forward):
        for to in targets:
            reverse[to].append(i)
    best = None
    for store in stores:
        if store not in from_start:
            continue
        on, _ = shortest(forward, costs, store)
        ends = [on[e] for e in exits if e in on]
        if ends:
            cost = from_start[store] + min(ends) - costs[store]
            if best is None or cost < best[0]:
                best = (cost, store)
    if best is None:
        return Kernel(name, len(lines), [], len(lines))
    # The path itself, to see which loops are on it.
    _, before = shortest(forward, costs, 0)
    path, at = set(), best[1]
    while at != -1:
        path.add(at)
        at = before[at]
    on, after = shortest(forward, costs, best[1])
    at = min((e for e in exits if e in on), key=lambda e: on[e])
    while at != -1:
        path.add(at)
        at = after[at]
    loops = []
    for head, back in sorted(set(backward)):
        cost, before = shortest(forward, costs, head)
        if back not in cost:
            continue
        ops, at = {}, back
        while at != -1:
            op = re.sub(r"^@!?U?P\w+\s+", "", lines[at][1]).split()[0].split(".")[0].rstrip(";")
            ops[op] = ops.get(op, 0) + 1
            at = before[at]
        on_path = head in path and back in path
        if on_path or ops.keys() & (WORK | {"STS"}):
            loops.append(Loop(head, back, cost[back], sum(costs[head : back + 1]), on_path, ops))
    return Kernel(name, best[0], loops, sum(costs))


def parse(text: str) -> dict[str, Kernel]:
    kernels, name, lines = {}, None, []
    for line in [*text.splitlines(), "Function : "]:
        if "Function : " in line:
            if name:
                kernels[name] = analyse(name, lines)
            name, lines = line.split("Function : ")[1].strip(), []
        elif found := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", line):
            lines.append((int(found[1], 16), found[2]))
    return kernels


def row(kernel: Kernel) -> tuple[str, int, int]:
    """What is held of a kernel: its path, and what lies in its loops that read memory or multiply."""
    inside = sum(loop.span for loop in kernel.loops if loop.ops.keys() & WORK)
    return kernel.name, kernel.path, inside


def main() -> None:
    """`sass.py` prints what is held of every kernel; `sass.py FILE` fails where one of them has more than that
    file says."""
    rows = [row(kernel) for kernel in parse(sys.stdin.read()).values()]
    if len(sys.argv) == 1:
        for name, path, inside in sorted(rows):
            print(f"{name}\t{path}\t{inside}")
        return
    lines = [line.split("\t") for line in open(sys.argv[1]).read().splitlines() if not line.startswith("#")]
    most = {name: (int(path), int(inside)) for name, path, inside in lines}
    faults = []
    for name, *found in rows:
        recorded = most.pop(name, None)
        if recorded is None:
            faults.append(f"{name}: a kernel that is not recorded")
        elif any(count > math.floor(1.03 * limit) + 4 for count, limit in zip(found, recorded)):
            faults.append(f"{name}: {found[0]} instructions and {found[1]} in loops, recorded are {recorded}")
    faults += [f"{name}: recorded, but no such kernel" for name in most]
    for fault in faults:
        print(fault, file=sys.stderr)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
