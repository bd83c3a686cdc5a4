"""The text of a compiled program, as XLA prints it, read into instructions. Of any backend; nothing of JAX is needed."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

SIZES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8,
    "f64": 8, "c64": 8, "c128": 16, "s4": 0.5, "u4": 0.5, "token": 0,
}  # fmt: skip


class UnreadableProgram(ValueError):
    """Text that is not a program's, in one sentence."""


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a program.

    Attributes:
      kind: element type as XLA names it.
      shape: of one device.
      order: axes from the one whose neighbours lie side by side outwards; empty where no layout is given.
      tile: extents to which these axes are filled up, innermost last.
      space: 0 for the main memory; on a TPU 1 is VMEM, which is on the chip.
    """

    kind: str
    shape: tuple[int, ...]
    order: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = 0

    @property
    def bytes(self) -> float:
        return math.prod(self.shape) * element_size(self.kind)

    @property
    def padded_bytes(self) -> float:
        """With what tiles fill up."""
        extents = [self.shape[axis] for axis in self.order] or [1]
        extents += [1] * (len(self.tile) - len(extents))
        for i, tile in enumerate(reversed(self.tile)):
            extents[i] = -(-extents[i] // tile) * tile
        return math.prod(extents) * element_size(self.kind) if self.tile else self.bytes

    @property
    def in_main_memory(self) -> bool:
        return self.space == 0


@dataclasses.dataclass(frozen=True, eq=False)
class Instruction:
    """One instruction.

    Attributes:
      name, opcode: as printed, the name without its %.
      results: its arrays, one or those of a tuple.
      operands: names of the instructions it reads.
      given: the text of its operands, for what is no instruction: the number of a parameter.
      rest: the text of its attributes.
      root: whether it is what its computation returns.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    given: str
    rest: str
    root: bool

    @functools.cached_property
    def op_name(self) -> str:
        """Where it comes from: scopes and primitive, "" if that is not said."""
        return self.attribute(r'op_name="([^"]*)"') or ""

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate, if it gives one."""
        found = self.attribute(r'"estimated_cycles":"(\d+)"')
        return None if found is None else int(found)

    @property
    def calls(self) -> tuple[str, ...]:
        """Computations it runs: of a fusion, a call, a loop's body."""
        named = re.findall(
            r"(?:calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)", self.rest
        )
        listed = self.attribute(r"(?:branch_computations|called_computations)=\{([^}]*)\}") or ""
        return (*named, *re.findall(r"%?([\w.\-]+)", listed))

    def attribute(self, pattern: str) -> str | None:
        """The first group of a pattern in the text of the attributes."""
        found = re.search(pattern, self.rest)
        return found and found[1]


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A compiled program of one device.

    Attributes:
      computations: instructions by name of the computation; `entry` is where it begins.
      aliased: numbers of the parameters whose memory is an output's too.
      partitions: devices it runs on together.
    """

    computations: dict[str, tuple[Instruction, ...]]
    entry: str
    aliased: frozenset[int]
    partitions: int

    @property
    def main(self) -> tuple[Instruction, ...]:
        return self.computations[self.entry]

    def all(self) -> Iterator[Instruction]:
        for instructions in self.computations.values():
            yield from instructions

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {i.name: i for i in self.all()}

    @functools.cached_property
    def origins(self) -> dict[str, str]:
        """The `op_name` of what runs a computation, for instructions inside that have none."""
        return {name: i.op_name for i in self.all() for name in i.calls if i.op_name}

    @functools.cached_property
    def _homes(self) -> dict[str, str]:
        return {i.name: name for name, instructions in self.computations.items() for i in instructions}

    def place(self, instruction: Instruction) -> str:
        """Where an instruction comes from: its own `op_name`, or that of what runs its computation; "" if neither is said."""
        return instruction.op_name or self.origins.get(self._homes[instruction.name], "")

    @functools.cached_property
    def _times(self) -> dict[str, int]:
        found = {self.entry: 1}
        for instruction, times in self.in_order():
            found |= {called: times * self.trips(instruction) for called in instruction.calls}
        for name in list(found):  # what runs inside fusions
            inside = [name]
            while inside:
                for instruction in self.computations.get(inside.pop(), ()):
                    new = [called for called in instruction.calls if called not in found]
                    found |= dict.fromkeys(new, found[name])
                    inside += new
        return found

    def times(self, computation: str) -> int:
        """How often a computation runs."""
        return self._times.get(computation, 1)

    def parameters(self) -> dict[int, Instruction]:
        """Those of the whole program by number."""
        return {int(i.given): i for i in self.main if i.opcode == "parameter"}

    def trips(self, loop: Instruction) -> int:
        """How often a loop runs: as it says, or by the one number its condition compares with; 1 where neither is known."""
        said = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
        if said or loop.opcode != "while":
            return int(said or 1)
        condition = self.computations.get(loop.attribute(r"condition=%?([\w.\-]+)"), ())
        limits = [i.given for i in condition if i.opcode == "constant" and i.given.isdigit()]
        return int(limits[0]) if len(limits) == 1 else 1

    def in_order(self, name: str | None = None, times: int = 1) -> Iterator[tuple[Instruction, int]]:
        """Instructions as they run, and how often: those of loops, calls and branches too, of fusions only the fusion."""
        for instruction in self.computations[name or self.entry]:
            yield instruction, times
            if instruction.opcode in ("while", "call", "conditional"):
                for called in instruction.calls:
                    if called in self.computations:
                        yield from self.in_order(called, times * self.trips(instruction))


def element_size(kind: str) -> float:
    """Bytes of an element; float8 in all its forms is one."""
    return 1 if kind.startswith("f8") else SIZES.get(kind, 0)


def parse(text: str) -> Program:
    """Reads `compiled.as_text()`.

    Raises:
      UnreadableProgram: the text is not a program's.
    """
    first, _, _ = text.partition("\n")
    if not first.startswith("HloModule"):
        raise UnreadableProgram(f"The text of a compiled program begins with HloModule, this one with {first[:40]!r}.")
    computations, entry, name, found = {}, None, None, []
    for line in text.splitlines()[1:]:
        begins = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if begins and not line[:1].isspace():
            name, found = begins[2], []
            entry = name if begins[1] else entry
        elif line.startswith("}") and name is not None:
            computations[name], name = tuple(found), None
        elif name is not None:
            instruction = parse_instruction(line)
            found += [] if instruction is None else [instruction]
    if entry not in computations:
        raise UnreadableProgram("The text of the compiled program has no ENTRY, or is cut before its end.")
    aliases = re.search(r"input_output_alias=\{(.*?)\}(?:, \w+=|$)", first)
    partitions = re.search(r"num_partitions=(\d+)", first)
    return Program(
        computations, entry, frozenset(int(n) for n in re.findall(r": \((\d+),", aliases[1])) if aliases else frozenset(),
        int(partitions[1]) if partitions else 1,
    )  # fmt: skip


def parse_instruction(line: str) -> Instruction | None:
    """One line of a computation; None for a line that is no instruction."""
    begins = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not begins:
        return None
    rest = line[begins.end() :]
    end = closing(rest, 0) + 1 if rest.startswith("(") else len(re.match(r"[^\s{]*(\{[^}]*\})?", rest)[0])
    opcode = re.match(r" ([\w\-]+)\(", rest[end:])
    if not opcode:
        return None
    start = end + opcode.end() - 1
    stop = closing(rest, start)
    given = rest[start + 1 : stop]
    return Instruction(
        begins[2], opcode[1], parse_arrays(rest[:end]), tuple(re.findall(r"%([\w.\-]+)", given)), given, rest[stop + 1 :],
        bool(begins[1]),
    )  # fmt: skip


def closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes; the text's end if it does not."""
    depth = 0
    for found in re.finditer(r"[()]", text[start:]):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return start + found.start()
    return len(text)


def parse_arrays(text: str) -> tuple[Array, ...]:
    """The arrays of a type: `bf16[64,32]{1,0:T(8,128)(2,1)S(1)}`, or a tuple of them."""
    arrays = []
    for kind, shape, layout in re.findall(r"([a-z][a-z0-9]*)\[([\d,<=?]*)\](?:\{([^}]*)\})?", text):
        order, _, tiling = layout.partition(":")
        tile = re.match(r"(?:[^TS]*)T\(([\d,]*)\)", tiling)
        space = re.search(r"S\((\d+)\)", tiling)
        arrays.append(
            Array(kind, numbers(shape), numbers(order), numbers(tile[1]) if tile else (), int(space[1]) if space else 0)
        )
    return tuple(arrays)


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text))
