"""Devices that are not here, as their compiler describes them."""

import importlib.util
import math
import os
import re
from typing import Any

from kdjax.experiment.spec import ExperimentError

TPUS = ("v4", "v5e", "v5p", "v6e", "tpu7x")
EXAMPLES = "v5e:16x16, v5p:4x4x4, v6e:2x2, v4:2x2x1, tpu7x:2x2x1 or h100:8"
# XLA's description of an H100 SXM (openxla/xla, xla/backends/gpu/target_config/specs), of which the compiler needs these.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
runtime_version { major: 12 minor: 9 patch: 0 }
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def described(name: str) -> list[Any]:
    """The devices of a slice, for a mesh; programs can be compiled for them and not run.

    Args:
      name: `CHIP:EXTENTS`, such as "v5e:16x16"; of GPUs their number, "h100:8".

    Raises:
      ExperimentError: the name is not one, the compiler is not installed, or it knows no such slice.
    """
    chip, extents = parsed(name)
    from jax.experimental import topologies

    try:
        if chip == "h100":
            wanted = {"target_config": H100, "topology": f"1x1x{extents[0]}"}
            return topologies.get_topology_desc(platform="cuda", topology_name=chip, **wanted).devices
        wanted = {"chip_config_name": "megacore"} if chip == "v4" else {}  # both cores of a chip as one device
        if math.prod(extents) == 1:
            wanted["chips_per_host_bounds"] = (1, 1, 1)
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **wanted).devices
    except Exception as error:  # of many types, by the plugin
        reason = re.sub(r"\s+", " ", str(error))
        raise ExperimentError(
            f"The compiler describes no slice {name!r}: {reason[:300]}; ask for {EXAMPLES}."
        ) from error


def parsed(name: str) -> tuple[str, tuple[int, ...]]:
    """A slice's chip and its extents, where the compiler for it is installed.

    Raises:
      ExperimentError: see `described`.
    """
    given = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    chip, extents = (given[1], tuple(int(n) for n in given[2].split("x"))) if given else ("", ())
    if chip not in (*TPUS, "h100") or 0 in extents or (chip == "h100") != (len(extents) == 1):
        raise ExperimentError(f"--for={name!r} is no slice of devices; say one such as {EXAMPLES}.")
    if chip == "h100" and not any(importlib.util.find_spec(p) for p in ("jax_cuda12_plugin", "jax_cuda13_plugin")):
        raise ExperimentError(
            "Compiling for an H100 needs JAX's CUDA plugin; run pip install --no-deps jax-cuda12-plugin jax-cuda12-pjrt of "
            "jax's own version, and pip install nvidia-cuda-nvcc-cu12 nvidia-cuda-runtime-cu12."
        )
    if chip != "h100" and not importlib.util.find_spec("libtpu"):
        raise ExperimentError(f"Compiling for {chip} needs libtpu; run pip install 'kdjax[compile]'.")
    if os.environ.get("JAX_PLATFORMS") != "cpu":
        raise ExperimentError("Compiling for devices that are not here needs JAX_PLATFORMS=cpu before jax is imported.")
    return chip, extents
