"""Fashion-MNIST from local files: the subset that the package carries, and Debian's copy of the whole set."""

import gzip
from pathlib import Path

import numpy as np

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
PREFIX = {"train": "train", "test": "t10k"}  # how the official files name the splits

CLASS_NAMES = (
    "t-shirt_top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle_boot",
)  # fmt: skip


def embedded(split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The subset in the package.

    Args:
      split: "train" (12,000 images) or "test" (4,000).

    Returns:
      Images `[N, 28, 28]` uint8, labels `[N]` uint8, and `[N]` uint16 row numbers in the official split.
    """
    with np.load(Path(__file__).with_name("fashion_mnist.npz")) as archive:
        return tuple(archive[f"{split}_{part}"] for part in ("images", "labels", "rows"))


def official(split: str, folder: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A whole official split, "train" (60,000) or "test" (10,000): images `[N, 28, 28]` and labels `[N]`, both uint8.

    Raises:
      FileNotFoundError: `folder` (Debian's by default) lacks the files.
    """
    folder = DEBIAN if folder is None else folder
    prefix = PREFIX[split]
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
    return images, read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")


def installed() -> bool:
    """Whether Debian's package dataset-fashion-mnist is there, all four files of it."""
    endings = ("images-idx3-ubyte.gz", "labels-idx1-ubyte.gz")
    return all((DEBIAN / f"{prefix}-{ending}").is_file() for prefix in PREFIX.values() for ending in endings)


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of a gzipped IDX file: four bytes of magic (the last is the rank), big-endian sizes, data."""
    raw = gzip.decompress(path.read_bytes())
    sizes = np.frombuffer(raw, ">u4", count=raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(sizes)
