"""Files that are there whole or not at all, locks that a dead process frees, and what a full disk says."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from tagseg.types import EnvironmentFault

DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


@contextlib.contextmanager
def lock(file: Path, *, wait: bool, told: Callable[[str], None] = lambda who: None) -> Iterator[None]:
    """Hold an flock; the kernel frees it when a process dies. Without `wait` a held lock is an `EnvironmentFault`.

    While it waits, `told` hears several times a second who holds it, and may raise to give up.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a+") as handle:
        while not _try_lock(handle):
            handle.seek(0)
            who = handle.read().strip() or "another process"
            if not wait:
                raise EnvironmentFault(f"{file}: in use by {who}; wait for it to end or stop it")
            told(who)
            time.sleep(0.2)
        handle.truncate(0)
        handle.write(f"process {os.getpid()}")
        handle.flush()
        yield


def _try_lock(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole file or nothing: temporary file in the same folder, fsync, replace, fsync of the folder."""
    with atomic_file(path) as handle:
        handle.write(data)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under its name only when it is complete and on disk."""
    short = path.name.encode("utf-8", "surrogateescape")[:200].decode("utf-8", "ignore")  # names end at 255 bytes
    temporary = path.with_name(f"{short}.{os.getpid()}.tmp")
    with space_checked(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def out_of_space(error: OSError, path: Path) -> EnvironmentFault:
    """The error for a disk that takes no more, with what is free there."""
    place = next((p for p in (path, *path.parents) if p.exists()), Path("/"))
    free = shutil.disk_usage(place).free / 2**20
    return EnvironmentFault(
        f"cannot write {path}: {error.strerror} ({free:.0f} MB free at {place}); free some space, or give another "
        "place with --out and --cache. Finished work is kept: the same command goes on"
    )


def file_sha256(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextlib.contextmanager
def space_checked(path: Path) -> Iterator[None]:
    """A disk that takes no more at `path` is an `EnvironmentFault` that says what is free."""
    try:
        yield
    except OSError as error:
        named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
        ours = named.is_relative_to(path.parent) or path.is_relative_to(named)  # not a source that cannot be read
        if error.errno in DISK_FAULTS and ours:
            raise out_of_space(error, named) from error
        raise
