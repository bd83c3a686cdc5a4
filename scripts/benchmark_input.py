"""How fast pictures are read, decoded, cropped and put into batches, beside Pillow alone.

    python scripts/benchmark_input.py

On JPEGs of ImageNet's usual size that are made for it. What is compared takes turns; a ratio is of the times within a turn.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from benchmarking.options import at_least
from PIL import Image, features
from PIL import __version__ as pillow

from kdjax.data import Crop, Pipeline, Reading, load
from kdjax.data.crops import crop_draws
from kdjax.data.encoded import readers


def make_pictures(folder: Path, count: int, size: tuple[int, int]) -> None:
    """JPEGs with edges and grain, of about as many bytes a pixel as photographs."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
        grain = rng.normal(0, 6, (size[1], size[0], 1))
        pixels = np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)
        path = folder / "train" / f"class{i % 2}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)


def bare(paths: list[str], boxes: list | None = None, side: int = 0) -> None:
    """Every picture decoded whole by the same threads, and thrown away; with boxes, at the reduced scale that kdjax decodes at,
    and resized to what a crop shows."""
    list(readers().map(lambda path, box: bare_one(path, box, side), paths, boxes or [None] * len(paths)))


def bare_one(path: str, box: tuple | None = None, side: int = 0) -> None:
    with Image.open(path) as image:
        if box is None:
            image.load()
            return
        factor, width = min(box[2] - box[0], box[3] - box[1]) / side, image.width
        if factor >= 2:
            image.draft(image.mode, tuple(int(length / factor) for length in image.size))
        box = [end * image.width / width for end in box]
        box = (*box[:2], min(box[2], image.width), min(box[3], image.height))
        image.resize((side, side), Image.Resampling.BILINEAR, box=box)


def cpu_milliseconds(paths: list[str], reading: Reading, boxes: list, draws: list, rounds: int) -> dict[str, float]:
    """CPU time of a picture in one thread, the mean of every picture's least: other programs hardly change it."""
    ways = {
        "decoding": lambda row: bare_one(paths[row]),
        "decoding and resizing": lambda row: bare_one(paths[row], boxes[row], reading.size),
        "kdjax": lambda row: reading.decode(paths[row], draws[row]),
    }
    least = {name: np.full(len(paths), np.inf) for name in ways}
    for _ in range(rounds):
        for row in range(len(paths)):
            for name, way in ways.items():
                start = time.thread_time()
                way(row)
                least[name][row] = min(least[name][row], time.thread_time() - start)
    return {name: 1000 * float(values.mean()) for name, values in least.items()}


def thrown_away(batches) -> None:
    """Takes batches as training does, which keeps none of them."""
    for _ in batches:
        pass


def steady(pipeline: Pipeline, batches: int) -> float:
    """Pictures a second, once the first batches are there."""
    made = pipeline.iterate(0)
    for _ in range(8):
        next(made)
    seconds = timed(thrown_away, itertools.islice(made, batches))
    made.close()
    return batches * pipeline.batch_size / seconds


def timed(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=at_least(2), default=512)
    parser.add_argument("--width", type=at_least(1), default=500)
    parser.add_argument("--height", type=at_least(1), default=375)
    parser.add_argument("--image-size", type=at_least(1), default=224)
    parser.add_argument("--batch-size", type=at_least(1), default=64)
    parser.add_argument("--rounds", type=at_least(2), default=7)
    parser.add_argument("--workers", type=at_least(0), default=0, help="compare so many processes with the threads")
    options = parser.parse_args()
    cores = readers()._max_workers
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_pictures(folder, options.pictures, (options.width, options.height))
        size = sum(path.stat().st_size for path in folder.rglob("*.jpg")) / options.pictures / 1000
        print(
            f"{options.pictures} JPEGs of {options.width} x {options.height} pixels, {size:.0f} kB each; {cores} threads, "
            f"Pillow {pillow}, libjpeg-turbo {features.version('libjpeg_turbo')}\n"
        )
        print("| training crop | images/s a core | ÷ decoding alone | ÷ decoding and resizing alone |")
        print("| --- | --- | --- | --- |")
        cpu = {}
        for kind in ("inception", "resize"):
            crop = Crop(train=kind)
            source = load(str(folder), split="train", reading=Reading(size=options.image_size, crop=crop))
            pipeline = Pipeline(source, np.arange(len(source)), batch_size=options.batch_size, data_seed=0)
            paths = source.records.files.get(range(len(source)))
            sizes = options.width, options.height, options.image_size
            draws = [crop_draws(0, 0, row) for row in range(len(paths))]
            boxes = [crop.box(*sizes, each) for each in draws]
            cpu[kind] = cpu_milliseconds(paths, source.records.reading, boxes, draws, options.rounds)
            speeds, ratios = [], []
            for turn in range(options.rounds + 1):  # the first warms up
                first, epoch = turn * pipeline.steps_per_epoch, pipeline.steps_per_epoch
                decoded, resized = timed(bare, paths), timed(bare, paths, boxes, options.image_size)
                whole = timed(thrown_away, pipeline.iterate(first, first + epoch))
                speeds.append(epoch * options.batch_size / whole / cores)
                share = epoch * options.batch_size / len(paths) / whole
                ratios.append((decoded * share, resized * share))
            said = []
            for ratio in zip(*ratios[1:], strict=True):
                low, middle, high = statistics.quantiles(ratio, n=4)
                said.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
            print(f"| {kind} | {statistics.median(speeds[1:]):.0f} | {said[0]} | {said[1]} |")
        print("\n| training crop | CPU ms: decoding alone | and resizing alone | kdjax | decoding ÷ kdjax |")
        print("| --- | --- | --- | --- | --- |")
        for kind, spent in cpu.items():
            print(
                f"| {kind} | {' | '.join(f'{ms:.2f}' for ms in spent.values())} | {spent['decoding'] / spent['kdjax']:.2f} |"
            )
        if options.workers:
            how = {"threads": 0, f"{options.workers} workers": options.workers}
            ways = {
                name: Pipeline(pipeline.source, pipeline.indices, batch_size=options.batch_size, data_seed=0, workers=n)
                for name, n in how.items()
            }
            speeds = {name: [] for name in ways}
            for _ in range(options.rounds):
                for name, way in ways.items():
                    speeds[name].append(steady(way, 4 * pipeline.steps_per_epoch))
            print("\n| by | images/s in all |\n| --- | --- |")
            for name, found in speeds.items():
                print(f"| {name} | {statistics.median(found):.0f} |")


if __name__ == "__main__":
    main()
