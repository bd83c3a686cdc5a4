"""A step compiled ahead of time as text: a few lines for a dry run, or all of it."""

import dataclasses
from collections import Counter

from kdjax.experiment.accounting import readable
from kdjax.experiment.ahead.compiling import Ahead
from kdjax.experiment.ahead.parts import PARTS
from kdjax.experiment.ahead.reading import Collective

ESTIMATE = "a compiler's estimate, not measured"


def in_short(ahead: Ahead) -> dict[str, str]:
    """Lines by name, for a dry run."""
    reading = ahead.reading
    sent = ", ".join(collective_words(collective) for collective in reading.collectives)
    lines = {
        "memory a device": memory_line(ahead),
        "collectives a step": sent or "none",
        "state aliased": aliasing(ahead),
    }
    if reading.cycles:
        total = sum(reading.cycles.values())
        lines["estimated cycles"] = f"{total / 1e6:.3g} million: " + ", ".join(
            f"{part} {100 * cycles / total:.0f} %" for part, cycles in reading.cycles.items()
        )
    if ahead.step_time:
        lines["estimated speed"] = speed(ahead)
    return lines


def in_full(ahead: Ahead, name: str) -> str:
    """All that was read, in Markdown."""
    reading, lines = ahead.reading, []
    several = f", {ahead.dispatched} steps in one dispatch" if ahead.dispatched > 1 else ""
    lines += [
        f"{name}: {reading.devices} × {ahead.kind}, {ahead.batch_size:,} examples a step{several}; compiled in "
        f"{ahead.seconds:.0f} s, not run. All figures are of one step and one device, and {ESTIMATE}.",
        "",
    ]
    lines += [f"- {name}: {text}" for name, text in in_short(ahead).items() if name != "estimated cycles"]
    lines += [f"- times: {times_line(ahead)}"]
    lines += [f"- products: {products_line(ahead)}"]
    copied, size = reading.copies
    lines += [f"- copies into another layout: {count(copied)}, {readable(size)}"]
    share = f"{reading.padded / reading.held:.2f} times" if reading.held else "no"
    lines += [
        f"- padding: results take {share} their bytes; {reading.wasteful} of 64 KiB and more take twice theirs or more"
    ]
    lines += [f"- callbacks: {', '.join(reading.callbacks) or 'none'}"]
    lines += [f"- in no estimate of cycles: {', '.join(reading.unrated)}"] if reading.unrated else []
    lines += [f"- loops counted once: {', '.join(reading.loops)}"] if reading.loops else []
    lines += ["", *parts_table(ahead)] if reading.cycles or reading.flops else []
    if reading.dearest:
        lines += ["", "| dearest instructions | kind | result | cycles a step |", "| --- | --- | --- | ---: |"]
        for cost in reading.dearest:
            made = cost.instruction
            result = max(made.results, key=lambda array: array.bytes)
            shape = f"{result.kind}[{','.join(map(str, result.shape))}]"
            lines.append(f"| `{cost.place or made.name}` | {made.opcode} | `{shape}` | {cost.cycles:,.0f} |")
    lines += ["", *(f"wrong: {fault}" for fault in ahead.faults)] if ahead.faults else ["", "Nothing is wrong."]
    return "\n".join(lines)


def count(number: float) -> str:
    return f"{number:.3g}" if number < 1000 else f"{number:,.0f}"


def collective_words(found: Collective) -> str:
    """BatchNorm over the global batch shows as many of the student's; a gradient's is of its backward pass too."""
    parts = ", ".join(f"{part} {count(times)}" for part, times in found.parts.items())
    return f"{count(found.count)} {found.kind} of {readable(found.bytes)} in {' and '.join(found.types)} ({parts})"


def memory_line(ahead: Ahead) -> str:
    held = ", ".join(f"{name} {readable(size)}" for name, size in ahead.memory.items() if size)
    limit = f" of {readable(ahead.chip.memory)}" if ahead.chip and ahead.chip.memory else ""
    return f"{readable(ahead.needed)}{limit} ({held})"


def aliasing(ahead: Ahead) -> str:
    reading = ahead.reading
    return f"{reading.aliased} of {reading.aliased + len(reading.not_aliased)} arrays"


def times_line(ahead: Ahead) -> str:
    times = ahead.times()
    bounds = {name: seconds for name, seconds in times.items() if name != "estimated cycles"}
    said = ", ".join(f"{name} {seconds * 1e3:.3g} ms" for name, seconds in times.items())
    said += "" if ahead.reading.flops else ", FLOPs not counted, since libraries do the products"
    if not bounds:
        return said or "nothing is known of this device"
    name = max(bounds, key=bounds.get)
    if ahead.step_time:
        said += f"; at {100 * times.get('FLOPs', 0) / ahead.step_time:.0f} % of the peak in bfloat16"
        if bounds[name] < 0.5 * ahead.step_time:
            return f"{said}, bound by none of the three"
    return f"{said}; bound by {name}"


def speed(ahead: Ahead) -> str:
    seconds = ahead.step_time
    rate, whole = ahead.batch_size / seconds, ahead.total * seconds
    unit, name = next((u, n) for u, n in ((86400, "days"), (3600, "hours"), (1, "seconds")) if whole >= u or u == 1)
    length = f"{whole / unit:.3g} {name}"
    return f"{rate:,.0f} examples/s, {length} for {ahead.total:,} steps ({ESTIMATE}; evaluations and input not counted)"


def products_line(ahead: Ahead) -> str:
    kinds = Counter(f"{product.part}: {product}" for product in ahead.reading.products)
    return ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())) or "none"


def parts_table(ahead: Ahead) -> list[str]:
    cycles, flops = ahead.reading.cycles, ahead.reading.flops
    total = sum(cycles.values())
    lines = ["| part | estimated cycles | share | GFLOP of products |", "| --- | ---: | ---: | ---: |"]
    for part in PARTS:
        if part in cycles or part in flops:
            share = f"{100 * cycles.get(part, 0) / total:.1f} %" if total else "–"
            lines.append(f"| {part} | {cycles.get(part, 0):,.0f} | {share} | {flops.get(part, 0) / 1e9:.4g} |")
    return lines


def figures(ahead: Ahead) -> dict:
    """Figures of one step and one device, as data."""
    reading = ahead.reading
    return {
        "devices": reading.devices, "kind": ahead.kind, "batch_size": ahead.batch_size, "dispatched": ahead.dispatched,
        "memory": ahead.memory, "needed": ahead.needed, "cycles": reading.cycles, "flops": reading.flops,
        "traffic": reading.traffic, "times": ahead.times(), "step_time": ahead.step_time,
        "collectives": {found.kind: dataclasses.asdict(found) for found in reading.collectives},
        "aliased": reading.aliased, "not_aliased": reading.not_aliased, "faults": ahead.faults, "seconds": ahead.seconds,
    }  # fmt: skip
