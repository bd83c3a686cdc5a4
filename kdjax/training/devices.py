"""What devices can do, and what a program asks of them."""

from typing import Any

# Dense bfloat16 FLOP/s of one device as JAX counts devices, by the beginning of its name: the makers' data sheets.
PEAKS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "Tesla V100": 125e12,
    "Tesla T4": 65e12,
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def peak_of(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of a device by its name, None if it is not in the table."""
    return next((peak for name, peak in PEAKS.items() if device_kind.startswith(name)), None)


def flops(function: Any, *arguments: Any) -> float:
    """FLOPs of a jitted function as XLA counts them before optimisation; 0 where it cannot say."""
    if not hasattr(function, "lower"):
        return 0.0
    try:
        analysis = function.lower(*arguments).cost_analysis() or {}
    except NotImplementedError:  # a backend without a cost model
        return 0.0
    return float(analysis.get("flops", 0.0))
