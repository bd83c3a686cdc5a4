"""The step that `kdjax distill` would run on a slice of accelerators, compiled without them and read.

    python scripts/compile_ahead.py configs/cifar100/resnet32x4_resnet8x4.py --for v5e:16x16 --batch-size 16384
    python scripts/compile_ahead.py CONFIG --for v5p:8x8x8 --runner fsdp --method crd --phases.student.precision bfloat16

Options are those of `kdjax distill`; `--batch-size N` is short for `--data.batch-size N`, and `--json FILE` also writes figures
to a file. TPU v4, v5e, v5p, v6e and TPU7x need `pip install 'kdjax[compile]'`, an H100 JAX's CUDA plugin. It takes minutes, and
needs no accelerator. All figures are a compiler's estimate. The exit status is 1 where something is wrong with the step: its
state is not aliased, its teacher is differentiated, a product is in float32 under bfloat16, it waits for the host, or it does
not fit.
"""

import json
import re
import sys
from pathlib import Path

from kdjax.command_line import DistillOptions, for_described, parse, read_config
from kdjax.endings import fail, guarded
from kdjax.run_commands import described_devices, with_teacher


def main(argv: list[str] | None = None) -> int:
    """Compiles, prints, and returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if argv else 2
    status = for_described(argv, [sys.executable, __file__])
    return guarded(lambda: run(argv)) if status is None else status


def run(argv: list[str]) -> int:
    argv, place = without(argv, "--json")
    argv = [re.sub("^--batch-size(?==|$)", "--data.batch-size", word) for word in argv]
    config, options = read_config("distill", argv, DistillOptions)
    experiment, options = parse("distill", [*argv, "--dry-run"], config(options.method or None), options)
    if not options.for_:
        return fail("Say which slice to compile for, such as --for v5e:16x16.")
    from kdjax.experiment.ahead.compiling import compile_ahead
    from kdjax.experiment.ahead.showing import figures, in_full
    from kdjax.experiment.program import Builder

    builder = Builder(options.data_dir or None, described_devices(options))
    experiment = with_teacher(experiment, options.teacher, builder)
    builder.dataset(experiment.data, stand_in=True)
    ahead = compile_ahead(builder.program(experiment, experiment.student))
    print(in_full(ahead, f"{experiment.name}, {options.method or 'its own method'}, on {options.for_}"))
    if place:
        what = {"config": argv[0], "method": options.method, "for": options.for_, "runner": experiment.runner}
        Path(place).write_text(json.dumps(what | figures(ahead), indent=2) + "\n", encoding="utf-8")
    return 1 if ahead.faults else 0


def without(argv: list[str], option: str) -> tuple[list[str], str]:
    """The command line without an option and its word, and that word; "" if it is not there."""
    if option not in argv[:-1]:
        return argv, ""
    at = argv.index(option)
    return [*argv[:at], *argv[at + 2 :]], argv[at + 1]


if __name__ == "__main__":
    sys.exit(main())
