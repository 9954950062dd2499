"""Counts in a compiled program: floating-point operations of its products, bytes its collectives
move, bytes of memory it reads and writes; every loop's body times its trips.

XLA's own `cost_analysis` counts a loop's body once. This reads the text of the optimised,
partitioned module, so the numbers are those of one chip. TPUs write matrix products as
convolutions; batch dimensions become windows with holes.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re

import numpy as np

WIDTHS = {
    "pred": 1,
    "s4": 0.5,
    "u4": 0.5,
    "s8": 1,
    "u8": 1,
    "f8e4m3fn": 1,
    "f8e5m2": 1,
    "s16": 2,
    "u16": 2,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
    "c64": 8,
    "token": 0,
}
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
)
# What moves no data: names for parts of other values, and the loops that hold the rest.
FREE = {
    "parameter",
    "constant",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
    "replica-id",
    "iota",
    "opt-barrier",
    "domain",
}
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (\([^=]*?\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")


@dataclasses.dataclass
class Instruction:
    name: str
    shape: str  # as written: one array or a tuple
    opcode: str
    operands: list[str]
    rest: str  # what follows the operands: attributes
    root: bool


@dataclasses.dataclass
class Counts:
    """Of one chip and one run of the program. collectives: kind → bytes sent by the chip; crossing:
    those of them that leave a slice; unknown_loops: loops whose number of trips is not written in
    the program (counted once)."""

    flops: float = 0.0
    memory: float = 0.0
    collectives: dict[str, float] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(float)
    )
    crossing: float = 0.0
    unknown_loops: int = 0

    @property
    def moved(self) -> float:
        return sum(self.collectives.values())


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """({computation: {name: Instruction}}, name of the entry computation)."""
    computations, entry, current = {}, "", None
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        head = re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif current is not None and (match := _INSTRUCTION.match(line)):
            operands, rest = _split(match[5])
            current[match[2]] = Instruction(
                match[2], match[3], match[4], operands, rest, bool(match[1])
            )
    return computations, entry


def _split(text: str) -> tuple[list[str], str]:
    """(operand texts, attributes) of what follows an opening parenthesis."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter in "({[") - (letter in ")}]")
        if depth == 0:
            inside = text[:place]
            names = re.findall(r"%([\w.\-]+)", inside)
            return names or [inside.strip()], text[place + 1 :]
    return [], text


def _arrays(shape: str) -> list[tuple[str, tuple[int, ...], str]]:
    return [
        (kind, tuple(int(n) for n in sizes.split(",") if n), layout or "")
        for kind, sizes, layout in _ARRAY.findall(shape)
        if kind in WIDTHS
    ]


def num_bytes(shape: str) -> float:
    """Bytes in the chip's main memory of an array or tuple as HLO writes it; scratch memory (S(n)
    layouts) is left out."""
    return sum(
        WIDTHS[kind] * math.prod(sizes)
        for kind, sizes, layout in _arrays(shape)
        if "S(" not in layout
    )


def _logical_bytes(shape: str) -> list[float]:
    return [WIDTHS[kind] * math.prod(sizes) for kind, sizes, _ in _arrays(shape)]


def count(text: str, chips_per_slice: int | None = None) -> Counts:
    """Counts of the optimised HLO `text` (`compiled.as_text()`)."""
    computations, entry = parse(text)
    total = Counts()
    _walk(computations, entry, 1.0, total, False, chips_per_slice)
    return total


def _walk(
    computations, name: str, times: float, total: Counts, fused: bool, chips: int | None
) -> None:
    body = computations[name]
    scattered = any(i.root and i.opcode == "dynamic-slice" for i in body.values())
    for item in body.values():
        opcode = item.opcode.removesuffix("-start")
        if opcode in ("dot", "convolution"):
            shapes = [_arrays(body[operand].shape)[0][1] for operand in item.operands[:2]]
            total.flops += times * (_dot_flops if opcode == "dot" else _convolution_flops)(
                item, *shapes
            )
        elif opcode in COLLECTIVES:
            kind = "reduce-scatter" if opcode == "all-reduce" and fused and scattered else opcode
            moved, crosses = _collective(kind, item, body, chips)
            total.collectives[kind] += times * moved
            total.crossing += times * moved * crosses
        if not fused and item.opcode not in FREE and not item.opcode.endswith("-done"):
            total.memory += times * _memory(computations, body, item)
        if item.opcode == "while":
            trips = num_trips(computations, body, item)
            total.unknown_loops += trips is None
            _walk(
                computations,
                _attribute(item, "body"),
                times * (1 if trips is None else trips),
                total,
                False,
                chips,
            )
        elif item.opcode == "conditional":
            for branch in re.findall(
                r"%([\w.\-]+)",
                (re.search(r"branch_computations=\{([^}]*)\}", item.rest) or ["", ""])[1],
            ):
                _walk(computations, branch, times, total, False, chips)
        elif item.opcode in ("fusion", "call", "async-start"):
            called = _attribute(item, "calls") or _attribute(item, "to_apply")
            if called in computations:
                _walk(computations, called, times, total, fused or item.opcode == "fusion", chips)


def _attribute(item: Instruction, name: str) -> str:
    match = re.search(name + r"=%?([\w.\-]+)", item.rest)
    return match[1] if match else ""


# ---------------------------------------------------------------- products


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"-?\d+", text)]


def _dot_flops(item: Instruction, left, right) -> float:
    match = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", item.rest)
    contracted = math.prod(left[n] for n in _numbers(match[1])) if match else 1
    return 2.0 * math.prod(_arrays(item.shape)[0][1]) * contracted


def _convolution_flops(item: Instruction, left, right) -> float:
    """2 · (products that really happen): windows that hang over the edge or fall into the holes of
    a dilation do not."""
    labels = re.search(r"dim_labels=([\w?]+)_([\w?]+)->([\w?]+)", item.rest)
    inputs, kernel, output = labels[1], labels[2], labels[3]
    out = _arrays(item.shape)[0][1]
    flops = 2.0 * out[output.index("b")] * out[output.index("f")] * right[kernel.index("i")]
    window = (re.search(r"window=\{([^}]*)\}", item.rest) or ["", ""])[1]
    parts = dict(part.split("=", 1) for part in window.split())
    rank = len(parts.get("size", "").split("x")) if "size" in parts else 0

    def field(name, default):
        return (
            [_numbers(part) for part in parts[name].split("x")]
            if name in parts
            else [default] * rank
        )

    pads = (
        [[int(n) for n in part.split("_")] for part in parts["pad"].split("x")]
        if "pad" in parts
        else [[0, 0]] * rank
    )
    for axis in range(rank):
        label = str(axis)
        stride, dilate, holes = (
            field(name, [1])[axis][0] for name in ("stride", "rhs_dilate", "lhs_dilate")
        )
        o = np.arange(out[output.index(label)])[:, None] * stride
        k = np.arange(right[kernel.index(label)])[None, :] * dilate
        place = o + k - pads[axis][0]
        real = (place >= 0) & (place % holes == 0) & (place // holes < left[inputs.index(label)])
        flops *= float(np.count_nonzero(real))
    groups = re.search(r"batch_group_count=(\d+)", item.rest)
    return flops / int(groups[1]) if groups else flops


# ---------------------------------------------------------------- collectives


def group_of(item: Instruction) -> tuple[int, list[int]]:
    """(chips that take part together, the first group's ids) from any of the ways in which HLO
    writes groups."""
    match = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}", item.rest
    )
    if match:
        names = re.findall(r"'([^']+)'=(\d+)", match[1])
        sizes = [int(size) for _, size in names]
        ids = np.arange(math.prod(sizes))
        order = re.match(r"\[([\d,]+)\](?:T\(([\d,]+))?", match[2] or "")
        if order:
            ids = ids.reshape(_numbers(order[1]))
            ids = ids.transpose(_numbers(order[2])) if order[2] else ids
        elif match[2]:
            ids = np.array(_numbers(match[2]))
        ids = ids.reshape(sizes)
        for place, (name, size) in enumerate(names):
            entry = re.search(rf"'{re.escape(name)}'(?::\((\d+)\)(\d+))?", match[3])
            if entry is None:
                ids = ids.take([0], axis=place)
            elif entry[1]:  # a slice of the axis: it is counted as (outer, size, inner)
                inner = int(size) // (int(entry[1]) * int(entry[2]))
                ids = ids.take(range(0, int(entry[2]) * inner, inner), axis=place)
        return ids.size, ids.flatten().tolist()
    match = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", item.rest)
    if match:
        shape, dims = _numbers(match[1]), _numbers(match[2])
        order = _numbers(match[3]) if match[3] else list(range(len(dims)))
        ids = np.arange(math.prod(dims)).reshape(dims).transpose(order).reshape(shape)
        return int(ids.shape[-1]), ids.reshape(-1, ids.shape[-1])[0].tolist()
    match = re.search(r"replica_groups=\{\{([\d,]*)\}", item.rest)
    ids = _numbers(match[1]) if match else []
    return len(ids), ids


def _collective(kind: str, item: Instruction, body, chips: int | None) -> tuple[float, bool]:
    """(bytes that one chip sends in a ring, whether the ring leaves a slice)."""
    given = sum(
        sum(_logical_bytes(body[operand].shape)) for operand in item.operands if operand in body
    )
    if kind == "collective-permute":
        pairs = re.findall(
            r"\{(\d+),(\d+)\}",
            item.rest.partition("source_target_pairs=")[2].partition("}}")[0] + "}",
        )
        crosses = bool(chips) and any(int(a) // chips != int(b) // chips for a, b in pairs)
        return given, crosses
    size, ids = group_of(item)
    if size <= 1:
        return 0.0, False
    share = (size - 1) / size
    factor = {"all-gather": size * share, "all-reduce": 2 * share}.get(kind, share)
    return factor * given, bool(chips) and len({n // chips for n in ids}) > 1


# ---------------------------------------------------------------- memory


def _memory(computations, body, item: Instruction) -> float:
    """Bytes that one instruction reads and writes: of an array that is only sliced, the slice; of
    an update in place, the update."""
    if item.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * num_bytes(item.shape)
    if item.opcode == "dynamic-update-slice":
        return 2 * num_bytes(body[item.operands[1]].shape)
    called = computations.get(_attribute(item, "calls")) if item.opcode == "fusion" else None
    if called is None:
        return num_bytes(item.shape) + sum(
            num_bytes(body[operand].shape) for operand in item.operands if operand in body
        )
    users = collections.defaultdict(list)
    for inner in called.values():
        for operand in inner.operands:
            users[operand].append(inner)
    total = 0.0
    for inner in called.values():
        if inner.opcode == "parameter":
            outer = body.get(item.operands[_numbers(inner.operands[0])[0]])
            size = num_bytes(outer.shape if outer else inner.shape)
            uses = users[inner.name]
            if uses and all(use.opcode in ("dynamic-slice", "slice", "gather") for use in uses):
                size = min(size, sum(num_bytes(use.shape) for use in uses))
            elif uses and all(
                use.opcode == "dynamic-update-slice" and use.operands[0] == inner.name
                for use in uses
            ):
                size = 0.0
            total += size
        if inner.root:
            total += _written(called, inner, item)
    return total


def _written(called, root: Instruction, item: Instruction) -> float:
    if root.opcode == "dynamic-update-slice":
        return num_bytes(called[root.operands[1]].shape)
    if root.opcode == "bitcast" and root.operands[0] in called:
        return _written(called, called[root.operands[0]], item)
    return num_bytes(item.shape)


# ---------------------------------------------------------------- loops


def num_trips(computations, body, loop: Instruction) -> int | None:
    """How often a while loop runs: what XLA noted, else (bound − start) / step of the counter in
    its condition. For a loop that may end early this is the most it runs."""
    noted = re.search(r'known_trip_count\W+n\W+"?(\d+)', loop.rest)
    if noted:
        return int(noted[1])
    condition = computations.get(_attribute(loop, "condition"), {})
    inner = computations.get(_attribute(loop, "body"), {})
    root = next((item for item in inner.values() if item.root), None)
    for compare in _compares(computations, condition):
        table, item, outside = compare
        sides = [_resolve(table, operand, outside, condition) for operand in item.operands]
        place = next((side for side in sides if isinstance(side, tuple)), None)
        bound = next((side for side in sides if isinstance(side, int)), None)
        if place is None or bound is None or root is None or place[0] >= len(root.operands):
            continue
        step = _offset(computations, inner, root.operands[place[0]], place[0])
        start = _start(body, loop, place[0])
        if step:
            inclusive = re.search(r"direction=(LE|GE)", item.rest) is not None
            return max(0, -(-(abs(bound - start) + inclusive) // abs(step)))
    return None


def _compares(computations, condition):
    """Comparisons of counters in a condition, also within its fusions: (table, instruction,
    operands of the fusion)."""
    for item in condition.values():
        if item.opcode == "compare":
            yield condition, item, None
        elif item.opcode == "fusion":
            table = computations.get(_attribute(item, "calls"), {})
            yield from (
                (table, inner, item.operands)
                for inner in table.values()
                if inner.opcode == "compare"
            )


def _resolve(table, name, outside, condition):
    """An int for a constant, (index,) for an element of the loop's state, else None."""
    item = table.get(name)
    while item is not None and item.opcode in ("copy", "bitcast", "convert"):
        item = table.get(item.operands[0])
    if item is None:
        return None
    if item.opcode == "constant":
        numbers = _numbers(item.operands[0]) if item.operands else []
        return numbers[0] if len(numbers) == 1 and re.match(r"[su]\d+\[\]", item.shape) else None
    if item.opcode == "parameter" and outside is not None:
        return _resolve(condition, outside[_numbers(item.operands[0])[0]], None, condition)
    if item.opcode == "get-tuple-element":
        return (int(re.search(r"index=(\d+)", item.rest)[1]),)
    return None


def _offset(computations, body, name: str, index: int) -> int | None:
    """By how much the value `name` of a loop's body exceeds element `index` of the loop's state."""
    item, total, table, outside = body.get(name), 0, body, None
    while item is not None:
        if item.opcode == "get-tuple-element":
            return total if int(re.search(r"index=(\d+)", item.rest)[1]) == index else None
        if item.opcode == "fusion" and outside is None:
            outside, table = item.operands, computations.get(_attribute(item, "calls"), {})
            item = next((inner for inner in table.values() if inner.root), None)
        elif item.opcode == "parameter" and outside is not None:
            name, table, outside = outside[_numbers(item.operands[0])[0]], body, None
            item = body.get(name)
        elif item.opcode in ("copy", "bitcast"):
            item = table.get(item.operands[0])
        elif item.opcode in ("add", "subtract"):
            values = [_resolve(table, operand, outside, body) for operand in item.operands]
            number = next((value for value in values if isinstance(value, int)), None)
            if number is None:
                return None
            total += number if item.opcode == "add" else -number
            item = table.get(item.operands[1 if isinstance(values[0], int) else 0])
        else:
            return None
    return None


def _start(body, loop: Instruction, index: int) -> int:
    state = body.get(loop.operands[0])
    if state is not None and state.opcode == "tuple":
        value = _resolve(body, state.operands[index], None, body)
        return value if isinstance(value, int) else 0
    return 0
