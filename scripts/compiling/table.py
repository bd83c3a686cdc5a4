"""python scripts/compiling/table.py FILE.json ...

A table in Markdown of what `scripts/compile_ahead.py --json FILE.json` wrote, a row a file.
"""

import json
import sys
from pathlib import Path

from kdjax.experiment.accounting import readable

HEAD = (
    "| method | slice | runner | batch | memory a device | temporaries | collectives a step | cycles, ms | interconnect, ms |",
    "| --- | --- | --- | ---: | ---: | ---: | --- | ---: | ---: |",
)


def row(found: dict) -> str:
    """Of one file's figures."""
    sent = ", ".join(
        f"{made['count']:.0f} {kind}: {readable(made['bytes'])}" for kind, made in found["collectives"].items()
    )
    times = [found["times"].get(name, 0.0) * 1e3 for name in ("estimated cycles", "interconnect")]
    cells = [
        found["method"], found["for"], found["runner"], f"{found['batch_size']:,}", readable(found["needed"]),
        readable(found["memory"]["temporaries"]), sent or "none", *(f"{time:.3g}" for time in times),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print("\n".join([*HEAD, *(row(json.loads(Path(place).read_text())) for place in sys.argv[1:])]))
