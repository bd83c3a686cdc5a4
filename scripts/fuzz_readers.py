"""Gives mutated files to everything in kdjax that reads files: each is read, or refused in a sentence.

    python scripts/fuzz_readers.py --inputs 100000

Half of the inputs have bytes changed, the other half entries (of JSON files with a checksum that fits again, so that it does not
answer for the checks behind it). An outcome is "read" where a sound value came back, "said" where the reader refused in one
sentence of its own kind; "traceback", "hang", "memory" and "nonsense" are faults, and the exit status is then 1. Nothing is
random but by --seed.
"""

import argparse
import collections
import hashlib
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarking.options import at_least
from breaking.mutations import bytes_changed, data_changed
from breaking.readers import KEPT, Reader, readers, torch_changed

from kdjax.json_files import CHECKSUM, checksum

SECONDS, MEMORY = 10, 2 * 2**30  # of one input; beyond what the process has
FAULTS = ("traceback", "hang", "memory", "nonsense")


class TooLong(BaseException):
    pass


def one(reader: Reader, path: Path, raw: bytes, sound: Any, chance: random.Random) -> tuple[str, str]:
    """One input: `(outcome, what was said)`."""
    changed_bytes = True
    if reader.name.startswith("PyTorch"):
        KEPT["changed"] = torch_changed(chance)
    else:
        text = path.suffix in (".json", ".jsonl")
        changed_bytes = not text or chance.random() < 0.5
        path.write_bytes(bytes_changed(raw, chance) if changed_bytes else entries_changed(raw, path.suffix, chance))
    signal.alarm(SECONDS)
    try:
        value = reader.read(path)
        wrong = reader.sound(value, sound, changed_bytes)
        return ("nonsense", wrong) if wrong else ("read", "")
    except TooLong:
        return "hang", ""
    except MemoryError:
        return "memory", traceback.format_exc()[-600:]
    except Exception as error:
        said = str(error)
        if type(error).__name__ in reader.errors and said and "\n" not in said and len(said) < 2000:
            return "said", said
        return "traceback", traceback.format_exc()[-900:]
    finally:
        signal.alarm(0)


def entries_changed(raw: bytes, suffix: str, chance: random.Random) -> bytes:
    """A JSON file, or JSON lines, with entries changed; a checksum fits again, or is taken out."""
    if suffix == ".jsonl":
        lines = raw.splitlines()
        at = chance.randrange(len(lines))
        lines[at] = json.dumps(data_changed(json.loads(lines[at]), chance)).encode()
        return b"\n".join(lines) + b"\n"
    data = data_changed(json.loads(raw), chance)
    if isinstance(data, dict):
        data.pop(CHECKSUM, None)
        if chance.random() < 0.5:
            data[CHECKSUM] = checksum(data)
    return json.dumps(data).encode()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--inputs", type=at_least(1), default=100_000, help="how many, over all readers (default: 100000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the mutations (default: 0)")
    parser.add_argument("--only", default="", help="readers with this in their names")
    parser.add_argument("--keep", default="", help="folder for inputs that are faults")
    options = parser.parse_args()
    chosen = [reader for reader in readers() if options.only in reader.name]
    if not chosen:
        parser.error(f"--only {options.only}: no reader has this in its name; there are "
                     f"{', '.join(reader.name for reader in readers())}")  # fmt: skip
    signal.signal(signal.SIGALRM, _too_long)
    counts: dict[str, collections.Counter] = {}
    shown: set[tuple[str, str]] = set()
    began = time.monotonic()
    total = sum(reader.share for reader in chosen)
    limited = False
    for reader in chosen:
        with tempfile.TemporaryDirectory() as folder:
            path = reader.make(Path(folder))
            raw = path.read_bytes()
            if reader.name.startswith("PyTorch"):
                KEPT["changed"] = KEPT["torch"]
            sound = reader.read(path)
            if not limited:  # now that libraries are loaded
                now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, resource.RLIM_INFINITY))
                limited = True
            found = counts[reader.name] = collections.Counter()
            for number in range(-(-options.inputs * reader.share // total)):
                name = hashlib.sha256(f"{options.seed} {reader.name} {number}".encode()).digest()
                outcome, said = one(reader, path, raw, sound, random.Random(name))
                found[outcome] += 1
                if outcome in FAULTS and (reader.name, said[-200:]) not in shown and len(shown) < 40:
                    shown.add((reader.name, said[-200:]))
                    print(f"{reader.name}, input {number}: {outcome}: {said}\n", flush=True)
                    if options.keep:
                        Path(options.keep).mkdir(parents=True, exist_ok=True)
                        shutil.copy(path, Path(options.keep) / f"{number}-{path.name}")
    columns = ("read", "said", *FAULTS)
    print("| reader | inputs | " + " | ".join(columns) + " |\n| --- " + "| ---: " * (1 + len(columns)) + "|")
    for name, found in counts.items():
        print(f"| {name} | {sum(found.values()):,} | " + " | ".join(f"{found[column]:,}" for column in columns) + " |")
    count = sum(sum(found.values()) for found in counts.values())
    print(f"\n{count:,} inputs, seed {options.seed}, {time.monotonic() - began:.0f} s.")
    return int(any(found[fault] for found in counts.values() for fault in FAULTS))


def _too_long(number, frame):
    raise TooLong


if __name__ == "__main__":
    sys.exit(main())
