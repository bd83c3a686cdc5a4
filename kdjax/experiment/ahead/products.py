"""The convolutions and matrix products of a compiled program: their types and their FLOPs."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

from kdjax.experiment.ahead.hlo import Array, Instruction, Program
from kdjax.experiment.ahead.parts import part_of
from kdjax.models import precision

LIBRARIES = r"__(cudnn\$conv|cublas)"  # what a GPU's compiler calls for them


@dataclasses.dataclass(frozen=True)
class Product:
    """One of them.

    Attributes:
      kinds: element types of both operands and of the result.
      part: of the step, see `parts`.
      flops: of one run, on one device; None where a library does it, or if it was asked for and not compiled.
      times: how often it runs.
      place: where it comes from.
    """

    kinds: tuple[str, str, str]
    part: str
    flops: float | None
    times: int
    place: str

    def __str__(self) -> str:
        return f"{self.kinds[0]} × {self.kinds[1]} → {self.kinds[2]}"


def products(program: Program) -> tuple[Product, ...]:
    """All of a program's, once each."""
    found = []
    for name, instructions in program.computations.items():
        places = {i.name: i for i in instructions}
        for i in instructions:
            library = re.match(LIBRARIES, i.attribute(r'custom_call_target="([^"]*)"') or "")
            operands = [places[o].results[0] for o in i.operands[:2] if o in places and places[o].results]
            if (i.opcode in ("dot", "convolution") or library) and len(operands) == 2 and i.results:
                place = program.place(i)
                kinds = (operands[0].kind, operands[1].kind, i.results[0].kind)
                flops = None if library else product_flops(i, *operands)
                found.append(Product(kinds, part_of(place), flops, program.times(name), place))
    return tuple(found)


def asked(jaxpr: Any) -> Iterator[Product]:
    """Those a traced function asks for, before a compiler chooses types of its own: kinds are JAX's, FLOPs are not counted."""
    for product, place in precision.products(jaxpr):
        yield Product(precision.product_types(product), part_of(place), None, 1, f"{place}/{product.primitive.name}")


def product_flops(product: Instruction, left: Array, right: Array) -> float:
    """A multiplication and an addition each, as XLA counts them: nothing for padding, and for zeros between inputs."""
    size = 2.0 * math.prod(product.results[0].shape)
    if product.opcode == "dot":
        axes = re.findall(r"\d+", product.attribute(r"lhs_contracting_dims=\{([^}]*)\}") or "")
        return size * math.prod(left.shape[int(axis)] for axis in axes)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", product.rest)
    if labels is None:
        return 0.0
    flops = size * right.shape[labels[2].index("i")]
    for axis in sorted(set(labels[2]) - {"i", "o"}):
        extents = left.shape[labels[1].index(axis)], product.results[0].shape[labels[3].index(axis)]
        flops *= reached(product, int(axis), *extents) / extents[1]
    return flops


def reached(convolution: Instruction, axis: int, inputs: int, outputs: int) -> int:
    """How many pairs of an output and a place of the kernel along an axis read an input, rather than padding."""

    def of_axis(name: str, default: str) -> str:
        said = convolution.attribute(rf"window=\{{[^}}]*\b{name}=([\dx_\-]+)")
        return said.split("x")[axis] if said else default

    low = int(re.match(r"-?\d+", of_axis("pad", "0_0"))[0])
    size, stride, apart, between = (int(of_axis(name, "1")) for name in ("size", "stride", "rhs_dilate", "lhs_dilate"))
    places = (o * stride + k * apart - low for o in range(outputs) for k in range(size))
    return sum(place >= 0 and place % between == 0 and place // between < inputs for place in places)
