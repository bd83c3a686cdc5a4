"""Which data sets there are, where they lie, and whether what lies there is whole."""

import difflib
import importlib
import os
from pathlib import Path

from kdjax.data import fashion_mnist
from kdjax.data.errors import DataError
from kdjax.places import local

OWN = ("fashion_mnist/subset", "fashion_mnist/full", "digits")


# Examples of TFDS's sets by split, so that a dry run knows them before they are prepared.
COUNTS = {
    "cifar10": (50_000, 10_000), "cifar100": (50_000, 10_000), "mnist": (60_000, 10_000), "fashion_mnist": (60_000, 10_000),
    "svhn_cropped": (73_257, 26_032), "stl10": (5_000, 8_000), "imagenet2012": (1_281_167, 50_000),
    "food101": (75_750, 25_250), "oxford_iiit_pet": (3_680, 3_669),
}  # fmt: skip


# Sets that TFDS finds without TensorFlow only once their modules are imported.
UNLISTED = ("glue", "super_glue")


def resolve(name: str) -> str:
    """The full name: "fashion_mnist" is "fashion_mnist/full" where Debian's package is installed, else the subset."""
    if name == "fashion_mnist":
        return "fashion_mnist/full" if fashion_mnist.installed() else "fashion_mnist/subset"
    return name


def open_builder(name: str, data_dir: str | os.PathLike | None = None):
    """The TFDS builder of a data set, prepared or not.

    Args:
      name: a name that `resolve` returned: one of `OWN`, or a set of TFDS such as "cifar100" or "glue/sst2".
      data_dir: TFDS folder; by default `TFDS_DATA_DIR`, or `~/tensorflow_datasets`.

    Raises:
      DataError: no such set, or one that cannot be opened without TensorFlow.
    """
    tfds = _tfds()
    folder = data_folder(data_dir)
    if name in OWN:
        kind, options = _own(name)
        return kind(data_dir=folder, file_format="array_record", **options)
    try:
        if (family := name.partition("/")[0].partition(":")[0]) in UNLISTED:
            importlib.import_module(f"tensorflow_datasets.text.{family}")
        return tfds.builder(name, data_dir=folder)
    except ImportError as error:
        if (prepared := _prepared(name, folder)) is not None:
            return tfds.builder_from_directory(str(prepared))
        raise DataError(f"{name} is not prepared in {folder}; run `pip install 'kdjax[prepare]'` and `kdjax data prepare {name}`"
                        ", which needs TensorFlow once.") from error  # fmt: skip
    except Exception as error:  # TFDS raises many kinds
        known = tfds.list_builders(with_community_datasets=False)
        if name.partition("/")[0].partition(":")[0] not in known:
            raise DataError(f"No data set is called {name!r}{_nearest(name, known)}.") from error
        raise DataError(f"{name} cannot be opened: {str(error).splitlines()[0]}") from error


def _prepared(name: str, folder: str) -> Path | None:
    """Where a set lies whose builder cannot be made without TensorFlow (that of COCO says its types by it): the folder of its
    newest version."""
    family, _, version = name.partition(":")
    if "://" in folder:
        return None
    found = [path for path in Path(folder, family).glob(version or "*.*.*") if (path / "features.json").is_file()]
    return max(found, key=lambda path: [int(x) if x.isdigit() else 0 for x in path.name.split(".")], default=None)


def own_folder(name: str, data_dir: str | os.PathLike | None = None) -> Path:
    """Where a set of our own lies, prepared or not.

    Raises:
      DataError: the TFDS folder is not on this machine's file system.
    """
    folder = data_folder(data_dir)
    if "://" in folder:
        raise DataError(f"{name} is prepared in a local folder, not in {folder}; give another data_dir.")
    kind, options = _own(name)
    return Path(folder, kind.name, *options.values(), str(kind.VERSION))


def flaw(builder) -> str | None:
    """What is wrong with the folder of a prepared data set, or None if it is whole.

    Reads the record counts of every file, not the records: an absent, cut-off or half-copied file is found, a flipped
    bit is not (reading that record fails then).
    """
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    for file in ("dataset_info.json", "features.json"):
        if not (builder.data_path / file).exists():
            return f"{file} is missing"
    if not builder.info.splits:
        return "it has no splits"
    if builder.info.file_format.value != "array_record" or "://" in str(builder.data_path):
        return None  # no way, or too long a way, to count records
    for split in builder.info.splits.values():
        for path, length in zip(split.filepaths, split.shard_lengths, strict=True):
            try:
                found = len(ArrayRecordDataSource([str(path)]))
            except Exception:  # whatever the reader makes of a broken file
                return f"{Path(path).name} is missing or cut off"
            if found != length:
                return f"{Path(path).name} has {found} records instead of {length}"
    return None


def data_folder(data_dir: str | os.PathLike | None = None) -> str:
    """The folder asked for, or TFDS's own default, read now rather than when TFDS was imported."""
    folder = str(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    return folder if "://" in folder else str(local(folder, DataError, "The folder of data sets"))


def _own(name: str):
    """The builder class of a set of our own, and the options that choose this one."""
    _tfds()
    from kdjax.data import builders

    family, _, config = name.partition("/")
    return (builders.KdjaxDigits, {}) if family == "digits" else (builders.KdjaxFashionMnist, {"config": config})


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(
        name, ["fashion_mnist", *OWN, *(each for each in known if not each.startswith("kdjax_"))], n=1, cutoff=0.5
    )
    there = f"; did you mean {close[0]!r}" if close else f"; there are {', '.join(OWN)} and TFDS's, such as cifar100"
    return there + "; pictures and arrays of your own are given by their path"


def _tfds():
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise DataError("Data sets need TFDS and grain; run `pip install 'kdjax[train]'`.") from error
    return tensorflow_datasets
