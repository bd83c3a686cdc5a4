"""What a compiled step says of itself: its cost by part, what it sends, what it copies, and in which types it multiplies."""

import collections
import dataclasses
import re

from kdjax.experiment.ahead.hlo import Array, Instruction, Program
from kdjax.experiment.ahead.parts import PARTS, differentiates_teacher, part_of
from kdjax.experiment.ahead.products import Product, products
from kdjax.experiment.ahead.traffic import FREE, traffic

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
COUNTED = 2**16  # bytes from which on it is said that an array is padded, or what makes it is not rated


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of a kind in a step.

    Attributes:
      kind: such as "all-reduce".
      count: how many run.
      bytes: of what they give, together; of what goes in where that is scattered.
      largest: of the largest one.
      types: element types of what they send, that of the most bytes first.
      parts: how many run in each part of the step.
    """

    kind: str
    count: float
    bytes: float
    largest: float
    types: tuple[str, ...]
    parts: dict[str, float]

    def sent(self, devices: int) -> float:
        """Bytes each device sends, around a ring."""
        whole = self.bytes * (devices - 1) / devices
        return {"all-reduce": 2 * whole, "collective-permute": self.bytes}.get(self.kind, whole)


@dataclasses.dataclass(frozen=True)
class Cost:
    """An instruction of the schedule, where it comes from, and its estimated cycles in a step."""

    instruction: Instruction
    place: str
    cycles: float


@dataclasses.dataclass(frozen=True)
class Reading:
    """Of one device and one step.

    Attributes:
      devices: that run the program together.
      cycles: the compiler's estimate by part; empty where it gives none.
      unrated: places of instructions that give `COUNTED` bytes or more, for which it gives none where it does for others.
      dearest: the instructions with most of them.
      loops: places of loops of which it is not known how often they run; their cycles are counted once.
      traffic: bytes of what instructions read from and write to the main memory, with padding.
      flops: of convolutions and matrix products by part; empty where libraries do some of them, as on a GPU.
      collectives: one entry a kind.
      products: every convolution and matrix product, once each.
      aliased: how many of the state's arrays give their memory to the new state; `not_aliased` names the others.
      callbacks: places where the host is called.
      differentiated: places in the teacher that are differentiated.
      copies: how many copies bring arrays into another order of axes, and their bytes.
      held, padded: bytes of all results of instructions, and with what tiles fill up.
      wasteful: how many of those of 64 KiB and more take up twice their bytes.
    """

    devices: int
    cycles: dict[str, float]
    unrated: tuple[str, ...]
    dearest: tuple[Cost, ...]
    loops: tuple[str, ...]
    traffic: float
    flops: dict[str, float]
    collectives: tuple[Collective, ...]
    products: tuple[Product, ...]
    aliased: int
    not_aliased: tuple[str, ...]
    callbacks: tuple[str, ...]
    differentiated: tuple[str, ...]
    copies: tuple[float, float]
    held: float
    padded: float
    wasteful: int


def read(program: Program, steps: int = 1) -> Reading:
    """All that is asked of a program, which does so many steps."""
    state = {n: i for n, i in program.parameters().items() if i.op_name.startswith("state")}
    scheduled = [(i, times / steps) for i, times in program.in_order()]
    costs = sorted(
        (Cost(i, program.place(i), i.cycles * n) for i, n in scheduled if i.cycles), key=lambda cost: -cost.cycles
    )
    results = [array for i, _ in scheduled if i.opcode not in FREE for array in i.results]
    copied = [(i, times) for i, times in scheduled if is_layout_copy(i, program)]
    multiplied = products(program)
    counted = [product.flops is not None for product in multiplied]
    loops = {i.op_name or i.name for i, _ in scheduled if i.opcode == "while" and program.trips(i) == 1}
    return Reading(
        devices=program.partitions,
        cycles=by_part((part_of(cost.place), cost.cycles) for cost in costs),
        unrated=tuple(program.place(i) or i.name for i, _ in scheduled if costs and is_unrated(i)),
        dearest=tuple(costs[:5]),
        loops=tuple(sorted(loops)),
        traffic=traffic(program, scheduled),
        flops=by_part((p.part, p.flops * p.times / steps) for p in multiplied) if all(counted) else {},
        collectives=collectives(program, steps),
        products=multiplied,
        aliased=len(state.keys() & program.aliased),
        not_aliased=tuple(state[n].op_name.replace("\\'", "'") for n in sorted(state.keys() - program.aliased)),
        callbacks=tuple(callbacks(program)),
        differentiated=tuple(sorted({i.op_name for i in program.all() if differentiates_teacher(i.op_name)})),
        copies=(sum(n for _, n in copied), sum(n * array.padded_bytes for i, n in copied for array in i.results)),
        held=sum(array.bytes for array in results),
        padded=sum(array.padded_bytes for array in results),
        wasteful=sum(array.bytes >= COUNTED and array.padded_bytes >= 2 * array.bytes for array in results),
    )


def is_unrated(instruction: Instruction) -> bool:
    """Whether an instruction works on large arrays without an estimate. What is moved meanwhile, or by a name only, has none."""
    opcode = instruction.opcode
    moves = opcode in FREE or opcode == "custom-call" or opcode.endswith(("-start", "-done", "-update"))
    return not (moves or instruction.cycles or opcode in COLLECTIVES) and any(
        array.bytes >= COUNTED for array in instruction.results
    )


def by_part(pairs) -> dict[str, float]:
    """Sums of `(part, number)`, in the order of `PARTS`."""
    found = collections.Counter()
    for part, number in pairs:
        found[part] += number
    return {part: found[part] for part in PARTS if found[part]}


def collectives(program: Program, steps: int = 1) -> tuple[Collective, ...]:
    """By kind, in all computations. A TPU's compiler writes one down as a chain of several, each beside other work."""
    owners = {called: i.name for i in program.all() if i.opcode == "fusion" for called in i.calls}
    seen, found = set(), collections.defaultdict(list)
    for name, instructions in program.computations.items():
        for instruction in instructions:
            kind = instruction.opcode.removesuffix("-start")
            chain = instruction.attribute(r'chain_id="(\d+)"')
            link = instruction.name if chain is None else (chain, instruction.attribute(r"channel_id=(\d+)"))
            if kind not in COLLECTIVES or link in seen:
                continue
            seen.add(link)
            arrays = moved(instruction, kind)
            size = sum(array.bytes for array in arrays) * (program.partitions if kind == "reduce-scatter" else 1)
            if kind == "all-reduce" and "all-reduce-scatter" in name + owners.get(name, ""):
                kind = "reduce-scatter"  # as a TPU's compiler writes it: a sum of which a slice is kept
            found[kind].append((size, program.times(name) / steps, arrays, part_of(program.place(instruction))))
    return tuple(summed(kind, found[kind]) for kind in COLLECTIVES if found[kind])


def summed(kind: str, single: list[tuple[float, float, tuple[Array, ...], str]]) -> Collective:
    """Of `(bytes, times, arrays, part)` of each."""
    types = collections.Counter()
    for _, times, arrays, _ in single:
        for array in arrays:
            types[array.kind] += array.bytes * times
    return Collective(
        kind,
        count=sum(times for _, times, _, _ in single),
        bytes=sum(size * times for size, times, _, _ in single),
        largest=max(size for size, _, _, _ in single),
        types=tuple(name for name, _ in types.most_common()),
        parts=by_part((part, times) for _, times, _, part in single),
    )


def moved(instruction: Instruction, kind: str) -> tuple[Array, ...]:
    """The arrays a collective gives. One that is begun, to be waited for later, names what goes in first."""
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        arrays = [a for a in instruction.results if a.kind != "u32" or a.shape]
        return tuple(arrays[len(arrays) // 2 :])
    return instruction.results


def callbacks(program: Program) -> list[str]:
    """Where the program waits for the host."""
    found = []
    for i in program.all():
        target = i.attribute(r'custom_call_target="([^"]*)"') or ""
        if "callback" in target or i.opcode in ("infeed", "outfeed") or re.search(r"is_host_transfer=true", i.rest):
            found.append(i.op_name or i.name)
    return found


def is_layout_copy(instruction: Instruction, program: Program) -> bool:
    """Whether an instruction of the schedule does nothing but bring an array into another order of axes."""
    if instruction.opcode != "copy" or not instruction.operands or not instruction.results[0].order:
        return instruction.opcode == "transpose"
    source = program.by_name.get(instruction.operands[0])
    return source is not None and source.results[0].order != instruction.results[0].order
