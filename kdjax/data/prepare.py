"""Puts a data set into the TFDS folder, once: our own ones from local files, TFDS's ones with TensorFlow's help."""

import contextlib
import errno
import importlib.util
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from kdjax.data.catalogue import OWN, flaw, open_builder, own_folder, resolve
from kdjax.data.errors import DataError
from kdjax.data.npz import why


def prepare(name: str, data_dir: str | os.PathLike | None = None, log: Callable[[str], None] = print) -> None:
    """Prepares a data set so that `load` can read it; does nothing where it is prepared already.

    Sets of our own need neither network nor TensorFlow. TFDS's own builders download, and write through TensorFlow,
    which is needed here and never again.

    Args:
      name: as for `load`.
      data_dir: TFDS folder; by default `TFDS_DATA_DIR`, or `~/tensorflow_datasets`.
      log: gets a line or two about what was done.

    Raises:
      DataError: no such set, TensorFlow is needed and missing, or the folder holds something unreadable.
    """
    name = resolve(name)
    if name in OWN:
        builder = build(name, data_dir)
    else:
        builder = open_builder(name, data_dir)
        if not builder.data_path.exists():
            _with_tensorflow(name, builder, log)
            builder = open_builder(name, data_dir)
        fault = unreadable(name, builder)
        if fault:
            raise DataError(fault)
    counts = ", ".join(f"{split.num_examples:,} {split.name}" for split in builder.info.splits.values())
    log(f"{name}: {counts} in {builder.data_path}")


def build(name: str, data_dir: str | os.PathLike | None = None):
    """The builder of a set of our own, prepared now unless it was.

    Safe when processes do it at once: one builds and the others wait. TFDS writes into a temporary folder and renames
    it when done; a folder that is not whole all the same (a copy broken off, a full disk) is built anew.
    """
    folder = own_folder(name, data_dir)
    builder = _whole(name, data_dir, folder)
    if builder is None:
        with _alone(folder.parent):
            builder = _whole(name, data_dir, folder)  # now that the others are done
            if builder is None:
                for rubbish in (folder, *folder.parent.glob("incomplete.*")):  # of processes killed while they built
                    shutil.rmtree(rubbish, ignore_errors=True)
                builder = open_builder(name, data_dir)
                _quietly(builder)
    return builder


def unreadable(name: str, builder) -> str | None:
    """Why a prepared set cannot be read without TensorFlow, in a sentence with the mend, or None if it can."""
    fault = flaw(builder)
    if fault:
        return f"{builder.data_path} is broken ({fault}); delete it and run `kdjax data prepare {name}`."
    if not any(form.value == "array_record" for form in builder.info.available_file_formats()):
        return (
            f"{builder.data_path} was prepared as {builder.info.file_format.value}, which only TensorFlow reads; "
            f"delete it, or give another data_dir, and run `kdjax data prepare {name}`."
        )
    return None


def _whole(name: str, data_dir, folder: Path):
    """The builder of a set of our own that is prepared and whole, else None."""
    if not folder.exists():
        return None
    try:
        builder = open_builder(name, data_dir)
        return None if flaw(builder) else builder
    except Exception:  # a garbled dataset_info.json, say
        return None


def _with_tensorflow(name: str, builder, log) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise DataError(f"Preparing {name} needs TensorFlow, this once; run `pip install 'kdjax[prepare]'`.")
    log(f"{name}: downloading and preparing into {builder.data_path}")
    with _alone(builder.data_path.parent), _impatient():
        try:
            builder.download_and_prepare(file_format="array_record")  # does nothing where another has just done it
        except Exception as error:  # TFDS and its builders raise many kinds
            raise DataError(_fault(name, builder, error)) from error


def _fault(name: str, builder, error: Exception) -> str:
    """What kept a set from being prepared, in a sentence."""
    if _no_network(error):
        return (
            f"{name} cannot be downloaded: there is no network, or its server does not answer; prepare it on another machine "
            f"and copy the folder {builder.data_path} here."
        )
    by_hand = " ".join((getattr(builder, "MANUAL_DOWNLOAD_INSTRUCTIONS", None) or "").split())
    if by_hand and isinstance(error, AssertionError):
        folder = Path(str(builder._data_dir_root), "downloads", "manual")
        return f"The files of {name} are not downloaded by TFDS; put them into {folder}, and run this again: {by_hand}"
    return f"{name} cannot be prepared in {builder.data_path} ({type(error).__name__}: {why(error)})."


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """One repetition of a download that fails instead of ten, and no warning of each."""
    from tensorflow_datasets.core.download import downloader

    logger, before = logging.getLogger("urllib3.connectionpool"), downloader.MAX_RETRIES
    level = logger.level
    logger.setLevel(logging.ERROR)
    downloader.MAX_RETRIES = 1
    try:
        yield
    finally:
        downloader.MAX_RETRIES = before
        logger.setLevel(level)


def _no_network(error: BaseException | None) -> bool:
    """Whether an error came of a server that could not be reached."""
    while error is not None:
        if type(error).__name__ in ("ConnectionError", "ConnectTimeout", "ProxyError", "SSLError", "gaierror"):
            return True
        error = error.__cause__ or error.__context__
    return False


def _quietly(builder) -> None:
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    try:
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        builder.download_and_prepare(download_config=config, file_format="array_record")
    finally:
        tfds.enable_progress_bar()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the folder's lock; the system lets go of it when the process ends, however it ends."""
    if "://" in str(folder):  # no locks there; TFDS renames when it is done
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        _lock(lock)
        yield


def _lock(file) -> None:
    """Waits until this process alone has the file. Where there are no locks it goes on: TFDS renames when it is done."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
    except ImportError:  # Windows locks bytes, and gives up after ten seconds
        with contextlib.suppress(ImportError):
            import msvcrt

            while True:
                try:
                    return msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                except OSError as error:
                    if error.errno != errno.EDEADLK:
                        raise
