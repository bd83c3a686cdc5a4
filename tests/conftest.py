"""Eight virtual CPU devices for every test, and a cache of compiled programs that later runs reuse."""

import os
import tempfile

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# XLA sizes its CPU thread pool by this. Eight devices on two threads wait for each other in a collective for ever.
os.environ["NPROC"] = "32"

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
# Nor may several programs with collectives be under way at once, which would need threads for each.
jax.config.update("jax_cpu_enable_async_dispatch", False)
jax.config.update(
    "jax_compilation_cache_dir",
    os.environ.get("KDJAX_TEST_CACHE", os.path.join(tempfile.gettempdir(), "kdjax-test-cache")),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
