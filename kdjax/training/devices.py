"""What devices can do, and what a program asks of them."""

import dataclasses
from typing import Any

import jax

from kdjax.models.kernel_gradients import left_to_xla


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX counts devices, by its maker's data sheet; None where that depends on the model or is not published.

    Attributes:
      flops: dense bfloat16 FLOP/s.
      memory: bytes of its HBM.
      bandwidth: bytes a second between it and its HBM.
      links: bytes a second it can send to the devices beside it, over all links.
      clock: cycles a second at which the matrix units, always at work, give `flops`.
    """

    flops: float
    memory: float | None = None
    bandwidth: float | None = None
    links: float | None = None
    clock: float | None = None


GB = 1e9
GIB = 2.0**30
# By the beginning of `device_kind`. Sources: cloud.google.com/tpu/docs (one page a version; a TPU7x has two devices, each with
# half of the chip), `TpuInfo` of jax.experimental.pallas, and NVIDIA's data sheets without sparsity. Links of a TPU in one
# direction.
CHIPS = {
    "NVIDIA H200": Chip(989e12, 141 * GB, 4800 * GB, 450 * GB),
    "NVIDIA H100 PCIe": Chip(756e12, 80 * GB, 2000 * GB, 300 * GB),
    "NVIDIA H100": Chip(989e12, 80 * GB, 3350 * GB, 450 * GB),
    "NVIDIA A100": Chip(312e12),
    "NVIDIA L4": Chip(121e12, 24 * GB, 300 * GB),
    "Tesla V100": Chip(125e12),
    "Tesla T4": Chip(65e12, 16 * GB, 300 * GB),
    "TPU v2": Chip(22.5e12, 8 * GIB, 350 * GB),
    "TPU v3": Chip(61.5e12, 16 * GIB, 450 * GB),
    "TPU v4": Chip(275e12, 32 * GIB, 1228 * GB, 300 * GB, 1.05e9),
    "TPU v5 lite": Chip(197e12, 16 * GIB, 819 * GB, 200 * GB, 1.503e9),
    "TPU v5": Chip(459e12, 95 * GIB, 2765 * GB, 600 * GB, 1.75e9),
    "TPU v6 lite": Chip(918e12, 32 * GIB, 1640 * GB, 448 * GB, 1.75e9),
    "TPU7x": Chip(1153.5e12, 96 * GIB, 3690 * GB, 600 * GB, 2.2e9),
}


def chip_of(device_kind: str) -> Chip | None:
    """What is known of a device by its name, None if it is not in the table."""
    return next((chip for name, chip in CHIPS.items() if device_kind.startswith(name)), None)


def peak_of(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of a device by its name, None if it is not in the table."""
    chip = chip_of(device_kind)
    return chip and chip.flops


def flops(function: Any, *arguments: Any) -> float:
    """FLOPs of a jitted function as XLA counts them before optimisation; 0 where it cannot say. Gradients of kernels are counted
    as XLA's own convolutions: it would count the loops that a CPU takes them by as one pass."""
    if not hasattr(function, "lower"):
        return 0.0
    inner = getattr(function, "__wrapped__", None)
    try:
        lowered = function.lower(*arguments)  # at hand where it was compiled for these
        if getattr(inner, "has_products", False):
            with left_to_xla():
                lowered = jax.jit(lambda *given: inner(*given)).lower(*arguments)
        analysis = lowered.cost_analysis() or {}
    except NotImplementedError:  # a backend without a cost model
        return 0.0
    return float(analysis.get("flops", 0.0))
