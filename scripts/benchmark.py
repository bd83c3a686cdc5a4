"""What a distillation step costs beside what it must cost: ratios measured within one run, and whether outcomes agree.

    python scripts/benchmark.py --json benchmark.json            # everything, sizes by the device
    python scripts/benchmark.py --rows step fused --rounds 20    # some of it

The teacher is resnet32x4, the student resnet8x4, with random weights and images. Programs are compiled and warmed up; then
they take turns in rounds, and ratios are of the times within a round. Every fast way is also compared with the slow one in
what it computes. A row that cannot be measured says why. The table is Markdown. The exit status is 1 if a row failed or an
outcome was wrong; a missed target is a result. Needs jax, flax, optax and chex; use an otherwise idle machine.
"""

import argparse
import functools
import sys
import time

import jax
from benchmarking import feeding, fused, several, steps, timing
from benchmarking.pair import Pair, add_options, setting_of

from kdjax.models.zoo.catalogue import NETWORKS

ROWS = {
    "step": steps.teaching,
    "frozen": steps.frozen,
    "precision": steps.precision,
    "scan": feeding.in_one_dispatch,
    "resident": feeding.resident,
    "stall": feeding.stall,
    "replicas": several.replicas,
    "scaling": several.scaling,
    "throughput": steps.large_batch,
    "fused": None,  # needs no pair
}


def main(arguments: list[str] | None = None) -> int:
    accelerator = jax.default_backend() != "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW", help=", ".join(ROWS)
    )
    add_options(parser, list(NETWORKS), rounds=10)
    options = parser.parse_args(arguments)
    setting = setting_of(options)
    pair = Pair(setting)
    makers = {name: functools.partial(ROWS[name], pair) for name in options.rows if ROWS[name]}
    if "fused" in options.rows:
        heads = fused.LARGE if accelerator else fused.SMALL
        for divergence in fused.DENSE:
            makers[f"fused {divergence}"] = functools.partial(fused.fused, divergence, heads, options.rounds)
    found = timing.facts(teacher=setting.teacher, student=setting.student, classes=setting.classes, size=setting.size,
                         batch_size=setting.batch_size, precision=setting.precision, rounds=setting.rounds,
                         width=setting.width)  # fmt: skip
    print(f"{timing.in_words(found)}; {setting.teacher} teaches {setting.student}, {setting.classes} classes, "
          f"{setting.size} × {setting.size} pixels, batch {setting.batch_size}, {setting.precision}, at most "
          f"{setting.rounds} rounds\n", flush=True)  # fmt: skip
    began = time.perf_counter()
    rows = timing.run_rows(makers, functools.partial(print, flush=True))
    found["seconds"] = round(time.perf_counter() - began, 1)
    print(f"\n{found['seconds']:.0f} seconds in all")
    timing.write(options.json, found, rows)
    return timing.status(rows)


if __name__ == "__main__":
    sys.exit(main())
