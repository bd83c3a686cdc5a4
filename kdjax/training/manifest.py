"""What a checkpoint's files are, by their SHA-256: written with its commit, compared when it is read."""

import asyncio
import hashlib
import json
import os
import time
from pathlib import Path

from orbax.checkpoint import path as orbax_path

from kdjax.json_files import sync_folder

MANIFEST = "manifest.json"
CHUNK = 2**20  # bytes that are read at once


class Sealed(orbax_path.atomicity.AtomicRenameTemporaryPath):
    """Orbax's folder that is renamed into place when it is complete, with a manifest in it, and on the disk before."""

    async def finalize(self):
        store, self._checkpoint_metadata_store = self._checkpoint_metadata_store, None
        place, final = Path(self.get()), Path(self.get_final())
        if store:  # what orbax would write last of all
            await asyncio.to_thread(store.wait_until_finished)
            await asyncio.to_thread(
                store.update, file_path=self.get() / "_CHECKPOINT_METADATA", commit_timestamp_nsecs=time.time_ns()
            )
            await asyncio.to_thread(store.wait_until_finished)
        committed = place / orbax_path.atomicity.COMMIT_SUCCESS_FILE
        committed.write_text(f"Checkpoint commit was successful to {self.get_final()}", encoding="utf-8")
        await asyncio.to_thread(seal, place)
        await super().finalize()
        sync_folder(final.parent)


def seal(folder: Path) -> None:
    """Writes the manifest of a folder, once all its files are on the disk."""
    files = {name: digest(folder / name, sync=True) for name in files_of(folder)}
    path = folder / MANIFEST
    path.write_text(json.dumps({"files": files, "seal": seal_of(files)}, indent=1) + "\n", encoding="utf-8")
    digest(path, sync=True)
    for place in [*(p for p in folder.rglob("*") if p.is_dir()), folder]:
        sync_folder(place)


def damage(folder: Path) -> str:
    """What is not as the manifest of a folder says, or "" if all is; files that it does not name may be there.

    Raises:
      FileNotFoundError: there is no manifest.
      OSError: a file cannot be read.
    """
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files, sound = found["files"], found["seal"] == seal_of(found["files"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"its {MANIFEST} cannot be read"
    if not sound:
        return f"its {MANIFEST} is not as it was written"
    for name, wanted in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if digest(path) != wanted:
            return f"{name} is not as it was written"
    return ""


def files_of(folder: Path) -> list[str]:
    """The files below a folder, but for its manifest."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [name for name in names if name != MANIFEST]


def seal_of(files: dict[str, str]) -> str:
    """SHA-256 of the manifest itself."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def digest(path: Path, *, sync: bool = False) -> str:
    """SHA-256 of a file, which is brought to the disk if `sync`."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            found.update(chunk)
        if sync:
            os.fsync(file.fileno())
    return found.hexdigest()
