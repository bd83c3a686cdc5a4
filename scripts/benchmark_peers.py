"""The same distillation in other frameworks: how many times as many images a second kdjax trains.

    python scripts/benchmark_peers.py --json peers.json

The pair, its weights, the batches, the loss, the optimizer and the precision are the same: PyTorch as a plain loop (on a GPU
also compiled, channels last), the same loop with torchdistill's loss, and Keras' Distiller on its JAX backend. All are handed
numpy arrays from the host and take turns in one run. Before that parameters and operations are counted on both sides, the
first losses compared, and each must lower its loss on one batch. A peer that is not installed is said to be not installed.
The exit status is 1 if one failed or differs. `--operations` times what a step is made of instead. Use an otherwise idle machine.
"""

import argparse
import functools
import importlib
import importlib.util
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
from benchmarking import timing
from benchmarking.comparison import Peer, kdjax_peer, same
from benchmarking.options import at_least
from benchmarking.pair import Pair, add_options, setting_of

from kdjax.models.zoo.cifar import CIFAR

# What each needs besides jax.
NEEDS = {"torch": ("torch",), "torch_tuned": ("torch",), "torchdistill": ("torch", "torchdistill"), "keras": ("keras",)}


def make(kind: str, pair: Pair) -> Peer:
    """A peer by its name. Raises whatever its framework raises."""
    if kind == "keras":
        return importlib.import_module("benchmarking.keras_peer").keras_peer(pair)
    torch_peer = importlib.import_module("benchmarking.torch_peer")
    if kind == "torchdistill":
        return torch_peer.torch_peer(pair, "PyTorch loop, torchdistill's loss", loss=torch_peer.torchdistill_loss())
    if kind == "torch_tuned":
        return torch_peer.torch_peer(pair, "PyTorch loop, compiled, channels last", tuned=True)
    return torch_peer.torch_peer(pair, "PyTorch loop, eager")


def row_of(
    kind: str, pair: Pair, ours: Peer, batches: list, build: Callable[[str, Pair], Peer] = make
) -> list[timing.Row]:
    """A peer beside kdjax, in turns."""
    missing = [package for package in NEEDS.get(kind, ()) if importlib.util.find_spec(package) is None]
    if missing:
        return [timing.Row(f"kdjax ÷ {kind}", note=f"{' and '.join(missing)} not installed")]
    if kind == "torch_tuned" and not importlib.import_module("torch").cuda.is_available():
        return [timing.Row(f"kdjax ÷ {kind}", note="measured on a GPU")]
    peer = build(kind, pair)
    # bfloat16 is not rounded at the same places in every framework.
    tolerance = 5e-2 if pair.setting.precision == "bfloat16" else 1e-4 if jax.default_backend() == "cpu" else 5e-3
    right, said = same(peer, ours, *batches[0], tolerance)
    seconds = timing.turns([ours.subject(batches), peer.subject(batches)], pair.setting.rounds)
    rate = lambda name: f"{pair.setting.batch_size / np.median(seconds[name]):,.0f}"
    return [
        timing.of_samples(f"kdjax ÷ {peer.name}, images a second", seconds[peer.name] / seconds["kdjax"], check=said,
                          correct=right, note=f"{peer.note}; {rate('kdjax')} and {rate(peer.name)} images/s")
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    accelerator = jax.default_backend() != "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", default=list(NEEDS), choices=list(NEEDS))
    parser.add_argument(
        "--operations", action="store_true", help="every convolution and normalisation by itself, in PyTorch too"
    )
    parser.add_argument("--steps", type=at_least(1), default=100 if accelerator else 4, help="of a turn")
    networks = [
        name for name in CIFAR if name.startswith("resnet") and not name.endswith("_cifar")
    ]  # each a CifarResNet
    add_options(parser, networks, rounds=5)
    options = parser.parse_args(arguments)
    setting = setting_of(options)
    pair = Pair(setting, augment=False)
    ours = kdjax_peer(pair)
    batches = [(batch.inputs, batch.labels) for batch in map(pair.host_batch, range(options.steps))]
    found = timing.facts(teacher=setting.teacher, student=setting.student, classes=setting.classes, size=setting.size,
                         batch_size=setting.batch_size, precision=setting.precision, rounds=setting.rounds,
                         width=setting.width, steps=options.steps)  # fmt: skip
    print(f"{timing.in_words(found)}; {setting.teacher} teaches {setting.student}, {setting.classes} classes, "
          f"{setting.size} × {setting.size} pixels, batch {setting.batch_size}, {setting.precision}, {options.steps} steps a "
          f"turn, at most {setting.rounds} rounds\n", flush=True)  # fmt: skip
    if options.operations:
        importlib.import_module("benchmarking.operations").rows_of(
            pair, setting.rounds, functools.partial(print, flush=True)
        )
        return 0
    began = time.perf_counter()
    makers = {f"kdjax ÷ {kind}": functools.partial(row_of, kind, pair, ours, batches) for kind in options.peers}
    rows = timing.run_rows(makers, functools.partial(print, flush=True))
    found["seconds"] = round(time.perf_counter() - began, 1)
    print(f"\n{found['seconds']:.0f} seconds in all")
    timing.write(options.json, found, rows)
    return timing.status(rows)


if __name__ == "__main__":
    sys.exit(main())
