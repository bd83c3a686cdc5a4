"""Makes the Fashion-MNIST subset that the package carries: python scripts/make_fashion_mnist.py

Needs Debian's package (apt-get install dataset-fashion-mnist). Run again, it writes the same bytes; it prints the
SHA-256 of the file and of each array in it. The file's hash may change with another liblzma, the arrays' hashes never.

The rule: of each class the first 1,200 images of the official training split and the first 400 of the official test
split, in their official order. Nothing is drawn at random, and no test image ever lands in the training part.
"""

import argparse
import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np

from kdjax.data import fashion_mnist

TARGET = Path(__file__).resolve().parents[1] / "kdjax" / "data" / "fashion_mnist" / "fashion_mnist.npz"
PER_CLASS = {"train": 1200, "test": 400}


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Rows of the first `count` examples of every class, ascending."""
    rows = np.concatenate([np.flatnonzero(labels == each)[:count] for each in range(10)])
    if len(rows) != 10 * count:
        raise SystemExit(f"A class has fewer than {count} images; are these the official Fashion-MNIST files?")
    return np.sort(rows)


def subset(folder: Path) -> dict[str, np.ndarray]:
    """Images `[N, 28, 28]`, labels `[N]` and official row numbers `[N]` of both splits."""
    arrays = {}
    for split, count in PER_CLASS.items():
        images, labels = fashion_mnist.official(split, folder)
        rows = first_of_each_class(labels, count)
        arrays[f"{split}_images"] = images[rows]
        arrays[f"{split}_labels"] = labels[rows]
        arrays[f"{split}_rows"] = rows.astype("<u2")
    return arrays


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An .npz that `numpy.load` reads, its members LZMA-compressed and dated alike so that the bytes never change."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_LZMA
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, member.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=fashion_mnist.DEBIAN, help="folder of the *-ubyte.gz files")
    parser.add_argument("--target", type=Path, default=TARGET, help="file to write")
    args = parser.parse_args()
    if not args.source.is_dir():
        raise SystemExit(f"{args.source} is not there; run apt-get install dataset-fashion-mnist.")
    arrays = subset(args.source)
    write(args.target, arrays)
    print(f"{args.target.stat().st_size:,} bytes")
    print(f"{hashlib.sha256(args.target.read_bytes()).hexdigest()}  {args.target.name}")
    for name, array in arrays.items():
        print(f"{hashlib.sha256(array.tobytes()).hexdigest()}  {name} {array.dtype} {list(array.shape)}")


if __name__ == "__main__":
    main()
