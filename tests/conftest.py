"""Eight virtual CPU devices for every test, and a cache of compiled programs that later runs reuse."""

import collections
import gc
import itertools
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# Most of a run is compilation, of small programs that run once or twice: less optimisation of machine code, and code
# generators that take a third less time; together less than half of it.
# KDJAX_TEST_OPTIMIZED=1 compiles as users do. XLA ends the process at a flag it does not know; these are jaxlib 0.10's.
os.environ["XLA_FLAGS"] += (
    " --xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1 --xla_cpu_emitter_verification_level=0"
    if version("jaxlib").startswith("0.10.") and os.environ.get("KDJAX_TEST_OPTIMIZED", "0") == "0"
    else ""
)
# Nothing at all is optimised where that is quicker, which is nearly everywhere; commands that tests start inherit it.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(os.environ.get("KDJAX_TEST_OPTIMIZED", "0") == "0"))
# For the commands too, which otherwise keep what they compile in the user's home, and what took long alone.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get(
    "KDJAX_TEST_CACHE", os.path.join(tempfile.gettempdir(), "kdjax-test-cache")
)
# XLA sizes its CPU thread pool by this. Eight devices on two threads wait for each other in a collective for ever.
os.environ["NPROC"] = "32"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# Nor may several programs with collectives be under way at once, which would need threads for each.
jax.config.update("jax_cpu_enable_async_dispatch", False)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_traceback_in_locations_limit", 0)


def share_contexts():
    """Lowers 200 programs in turn in one MLIR context, where JAX makes one for each: a third of a small program's time."""
    from jax._src.interpreters import mlir

    make, calls, shared = mlir.make_ir_context, itertools.count(), []

    def context():
        if next(calls) % 200 == 0:  # A context keeps the constants of its programs.
            shared[:] = [make()]
        return shared[0]

    mlir.make_ir_context = context


def leave_out_origins():
    """What a traced array lacks, Flax asks for often (`getattr(value, "sharding", None)`); JAX then searches all operations for
    where it came from, for the message of an error that nobody sees."""
    from jax._src.interpreters import partial_eval

    partial_eval.DynamicJaxprTracer._origin_msg = lambda self: ""


if version("jaxlib").startswith("0.10.") and os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1":
    share_contexts()
    leave_out_origins()


@pytest.fixture(scope="module", autouse=True)
def room_for_programs():
    """Gives compiled programs up once they hold much of the memory mappings that Linux allows a process (65,530)."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > 30_000:
        jax.clear_caches()


# Their programs run for longer than they compile, or add up so much in float32 that rounding shows (test_projectors).
LONG_PROGRAMS = (
    "tests/objectives/features/test_connected",
    "tests/objectives/features/test_projectors",
    "tests/models/zoo/test_originals",
)


@pytest.fixture(scope="module", autouse=True)
def machine_code(request):
    """Somewhat optimised after all, where programs run for long."""
    long = request.node.nodeid.startswith(LONG_PROGRAMS)
    wanted = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1" and not long
    jax.config.update("jax_disable_most_optimizations", wanted)


def pytest_collection_finish():
    """What was imported stays: the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


# Where the longest files are, which are begun with, so that no worker is left alone with one at the end.
LONGEST = (
    "tests/test_cli.py", "tests/test_", "tests/experiment", "tests/tasks", "tests/objectives", "tests/training", "tests/models",
)  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What shares fixtures and compiled programs stays on one worker: a file's tests, or those of one objective or method.

    Those of a subject (`tests/objectives/conformance.py`) do whatever their file.
    """
    for item in items:
        given = getattr(getattr(item, "callspec", None), "params", {})
        subject, name = given.get("subject"), given.get("name") if "objectives" in item.nodeid else None
        file = item.nodeid.split("::")[0]
        group = subject if isinstance(subject, str) else f"{file}-{name}" if isinstance(name, str) else file
        item.add_marker(pytest.mark.xdist_group(group))
    first = {place: rank for rank, place in enumerate(LONGEST)}
    items.sort(key=lambda item: min((first[p] for p in LONGEST if item.nodeid.startswith(p)), default=len(first)))


def pytest_terminal_summary(terminalreporter):
    """Where the time went: seconds of setup, call and teardown by folder, of all workers together."""
    seconds = collections.Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "duration") and hasattr(report, "nodeid"):
                folders = report.nodeid.split("::")[0].split("/")
                seconds["/".join(folders[:-1][:3]) if len(folders) > 2 else folders[-1]] += report.duration
    if sum(seconds.values()) > 60:
        terminalreporter.section("seconds by folder")
        for name, duration in seconds.most_common():
            terminalreporter.write_line(f"{duration:8.0f}  {name}")
