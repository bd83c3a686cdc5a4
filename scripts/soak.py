"""Breaks runs at random and goes on with them: what comes out must be, bit for bit, what an undisturbed run comes to.

    python scripts/soak.py --minutes 30        # writes the table of faults into scripts/README.md
    python scripts/soak.py --quick             # some seconds: a few faults, nothing written

Full and read-only disks need the right to mount (root); without it they are left out, and the table says so. The exit status is
1 if anything was lost, or came out otherwise without a word.
"""

import argparse
import collections
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from breaking.faults import FAULTS, Fault, Trial
from breaking.runs import Run, curves_of, end_of, experiment, gone_on_with, prepare

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- fault table: begin -->", "<!-- fault table: end -->"
GOOD = ("nothing lost", "said, nothing lost")
QUICK = ("killed while saving", "power cut", "flipped bit, JSON files")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the faults (default: 0)")
    parser.add_argument("--only", default="", help="faults with this in their names")
    parser.add_argument("--quick", action="store_true", help="a few faults, and no table")
    parser.add_argument("--folder", default="", help="where to; a temporary one if not given, deleted if all was well")
    options = parser.parse_args()
    faults = chosen(options)
    if not faults:
        parser.error(f"--only {options.only}: no fault that this user may do has this in its name; there are "
                     f"{', '.join(fault.name for fault in FAULTS)}")  # fmt: skip
    if not options.quick and not options.minutes > 0:
        parser.error(f"--minutes {options.minutes}: give more than 0")
    work = Path(options.folder or tempfile.mkdtemp(prefix="soak-"))
    work.mkdir(parents=True, exist_ok=True)
    compiled = Path(tempfile.gettempdir()) / "kdjax-soak-compiled"
    prepare(compiled)
    whole = work / "whole"
    first = Run(whole, resume=False)
    if first.wait() != 0:
        print(first.said())
        return 1
    seconds = 3.0
    if not options.quick:
        again = Run(work / "again", resume=False)  # compiled by now: how long one takes
        began = time.monotonic()
        if again.wait() != 0 or end_of(work / "again") != end_of(whole):
            print("Two undisturbed runs differ; nothing can be compared.")
            return 1
        seconds = time.monotonic() - began
    begun = work / "begun"  # the teacher has ended, the student not begun
    shutil.copytree(whole, begun, ignore=lambda folder, names: ["student"] if Path(folder) == whole else [])
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    curves: collections.Counter = collections.Counter()
    examples: dict[tuple[str, str], str] = {}
    deadline = time.monotonic() + 60 * options.minutes
    chance = random.Random(options.seed)
    number = 0
    while number < len(faults) if options.quick else time.monotonic() < deadline:
        fault = faults[number] if options.quick else chance.choices(faults, [f.share for f in faults])[0]
        number += 1
        outcome, notes, holes = tried(fault, work / f"run{number}", whole, begun, chance.randrange(2**32), seconds)
        counts[fault.name][outcome] += 1
        curves[fault.name] += holes
        print(f"{number:4d} {fault.name}: {outcome}", *notes[-1:] if outcome not in GOOD else (), flush=True)
        if outcome not in GOOD:
            examples.setdefault((fault.name, outcome), " | ".join(notes)[-600:])
    grown = None if options.quick else memory_growth(work / "memory")
    text = table(faults, counts, curves, number, grown)
    print(text)
    for (name, outcome), said in examples.items():
        print(f"{name}, {outcome}: {said}\n")
    if not options.quick and not options.only:
        write(text)
    bad = sum(n for found in counts.values() for outcome, n in found.items() if outcome not in GOOD)
    if not bad and not options.folder:
        shutil.rmtree(work, ignore_errors=True)
    return 1 if bad else 0


def chosen(options: argparse.Namespace) -> list[Fault]:
    """The faults to try: those that are asked for, and that this user may do."""
    faults = [f for f in FAULTS if options.only in f.name and (not options.quick or f.name in QUICK)]
    return [f for f in faults if not f.root or may_mount()]


def may_mount() -> bool:
    if os.name != "posix" or os.getuid():
        return False
    with tempfile.TemporaryDirectory() as folder:
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
        if made.returncode == 0:
            subprocess.run(["umount", folder], check=False)
        return made.returncode == 0


def tried(
    fault: Fault, folder: Path, whole: Path, begun: Path, seed: int, seconds: float
) -> tuple[str, list[str], bool]:
    """Does a fault to a run and goes on with it: `(outcome, notes, whether TensorBoard's curves have holes)`."""
    trial = Trial(folder, whole, random.Random(seed), seconds)
    if trial.random.random() < 0.8:  # else from the very beginning
        shutil.copytree(begun, folder)
    fault.do(trial)
    how, sentences = gone_on_with(folder, whole)
    notes = [*trial.notes, *sentences]
    if how != "ended":
        return how, notes, False
    if end_of(folder) != end_of(whole):
        return "other numbers, said" if sentences else "other numbers, no word", notes, False
    unsaid = any("UNSAID" in note for note in trial.notes)
    holes = curves_of(folder) != curves_of(whole)
    if unsaid:
        return "nothing lost, badly said", notes, holes
    spoken = sentences or any("kdjax: error" in note for note in trial.notes)
    for rest in folder.parent.glob(f"{folder.name}*"):
        shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
    return GOOD[1] if spoken else GOOD[0], notes, holes


def memory_growth(folder: Path) -> tuple[int, float, float]:
    """`(steps, MiB after a fifth of them, MiB at the end)` of a long run: resident memory that it cannot give back."""
    steps, path = 10_000, folder.with_name("memory.txt")

    def work() -> int:
        from kdjax.experiment.run import run
        from kdjax.training.progress import Silent

        class Weighed(Silent):
            def advance(self, step):
                if step in (steps // 5, steps):
                    import gc

                    gc.collect()
                    pages = int(Path("/proc/self/statm").read_text().split()[1])
                    with path.open("a") as file:
                        file.write(f"{pages * os.sysconf('SC_PAGE_SIZE') / 2**20}\n")

        run(experiment(steps, every=500), folder, progress=Weighed())
        return 0

    import breaking.runs

    breaking.runs.LONGEST = 1200.0
    long = Run(folder, work=work)
    status = long.wait(seconds=1200)
    found = [float(line) for line in path.read_text().split()] if path.exists() else []
    if status != 0 or len(found) != 2:
        print(f"The long run ended with {status}: {long.said()[-500:]}")
        return steps, float("nan"), float("nan")
    return steps, *found


def table(faults: list[Fault], counts: dict, curves: collections.Counter, number: int, grown: tuple | None) -> str:
    lines = ["| fault | how injected | times | outcome |", "| --- | --- | ---: | --- |"]
    for fault in FAULTS:
        found = counts.get(fault.name, {})
        if not found and (fault in faults or not fault.root):
            continue
        said = ", ".join(f"{what} {n}" for what, n in found.items()) or "not tried: needs the right to mount"
        if curves[fault.name]:
            said += f" (TensorBoard's curves with holes {curves[fault.name]})"
        lines.append(f"| {fault.name} | {fault.how} | {sum(found.values())} | {said} |")
    if grown:
        steps, before, after = grown
        lines.append(
            f"| many steps | {steps:,} steps; resident memory after a fifth of them and at the end | 1 | "
            f"{before:.0f} MiB, {after:.0f} MiB |"
        )
    when = time.strftime("%B %Y")
    return f"{number:,} runs were broken and gone on with ({when}, {os.cpu_count()} CPU cores).\n\n" + "\n".join(lines)


def write(text: str) -> None:
    """Puts the table between its marks in README.md."""
    page = README.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
