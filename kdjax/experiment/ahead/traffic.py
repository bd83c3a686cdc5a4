"""What a compiled program reads from and writes to a device's main memory, roughly."""

from kdjax.experiment.ahead.hlo import Array, Instruction, Program

# What neither reads nor writes memory by itself: names for what is there, and ends of what was begun before.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "after-all",
    "partition-id", "replica-id", "add-dependency", "opt-barrier",
}  # fmt: skip
SLICES = ("dynamic-slice", "gather", "slice")  # read of their first operand no more than they give


def traffic(program: Program, scheduled: list[tuple[Instruction, float]]) -> float:
    """Bytes with padding: operands and results outside of memory on the chip; of an operand that is sliced, the slice."""
    total = 0.0
    for instruction, times in scheduled:
        if instruction.opcode in FREE or instruction.opcode.endswith(("-done", "-update")):
            continue
        total += times * (bytes_read(instruction, program) + bytes_written(instruction, program))
    return total


def bytes_read(instruction: Instruction, program: Program) -> float:
    total = 0.0
    for number, name in enumerate(instruction.operands):
        source = program.by_name.get(name)
        if source is None or not any(array.in_main_memory for array in source.results):
            continue
        part = part_read(instruction, number, program)
        whole = size(source.results)
        total += whole if part is None else min(part, whole)
    return total


def part_read(instruction: Instruction, number: int, program: Program) -> float | None:
    """Bytes of an operand that an instruction reads, None for all."""
    if instruction.opcode in SLICES and number == 0:
        return sum(array.padded_bytes for array in instruction.results)
    if instruction.opcode == "dynamic-update-slice" and number == 0:
        return 0.0
    inside = [i for name in instruction.calls for i in program.computations.get(name, ())]
    if instruction.opcode != "fusion" or not inside:
        return None
    own = next((i.name for i in inside if i.opcode == "parameter" and i.given == str(number)), None)
    users = [(i, i.operands.index(own)) for i in inside if own in i.operands]
    parts = [part_read(user, at, program) for user, at in users]
    return None if not parts or None in parts else sum(parts)


def bytes_written(instruction: Instruction, program: Program) -> float:
    results = instruction.results
    if instruction.opcode == "copy-start":  # whose results name what it reads too, and what it waits with
        results = results[:1]
    elif instruction.opcode.endswith("-start"):
        sources = sum(len(program.by_name[name].results) for name in instruction.operands if name in program.by_name)
        results = results[sources : sources + 1]
    inside = [i for name in instruction.calls for i in program.computations.get(name, ())]
    last = next((i for i in inside if i.root), instruction) if instruction.opcode == "fusion" else instruction
    if last.opcode == "dynamic-update-slice":  # into what is there
        update = program.by_name.get(last.operands[1])
        if update is not None and any(array.in_main_memory for array in results):
            return sum(array.padded_bytes for array in update.results)
    return size(results)


def size(arrays: tuple[Array, ...]) -> float:
    return sum(array.padded_bytes for array in arrays if array.in_main_memory)
