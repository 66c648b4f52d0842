"""The private folder of one run, and the folders that killed runs left.

All runs of a user have their folders in one directory that only this user can read. A running sandbox holds a lock in
its folder, which the operating system releases when the process ends in any way; so the next start recognises what is
left over, and commands find the sandboxes that run.
"""

import getpass
import os
import secrets
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

_LOCK = "lock"
# A folder has this prefix until its lock is held.
_NEW = "new-"
_RUN = "run-"
_ABANDONED_SECONDS = 600.0
_ATTEMPTS = 10


class NotPrivate(Exception):
    """The place of the run folders belongs to somebody else; the text says what to do."""


class RunFolder:
    """A folder of a running sandbox, readable by this user only; removed by `close`."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create(cls) -> Self:
        """Remove what killed runs left, and make a folder. Raises NotPrivate where the place is not private."""
        remove_left_overs()
        for _ in range(_ATTEMPTS):
            try:
                return cls._create()
            except FileNotFoundError:
                # Another sandbox stopped in this moment and removed the directory, which was empty.
                continue
        raise NotPrivate(f"{_directory()} is removed again and again by somebody else")

    @classmethod
    def _create(cls) -> Self:
        directory = _private_directory()
        # Windows renames no folder in which a file is open; there, a start at the same moment could remove this one.
        can_rename = os.name != "nt"
        folder = Path(tempfile.mkdtemp(prefix=_NEW if can_rename else f"{_RUN}{os.getpid()}-", dir=directory))
        lock = FileLock(folder / _LOCK)
        lock.acquire(timeout=0)
        if can_rename:
            folder = folder.rename(directory / f"{_RUN}{os.getpid()}-{secrets.token_hex(4)}")
        return cls(folder, lock)

    def close(self) -> None:
        """Remove the folder, and the directory of all runs where it is the last one."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.release()
        # The lock's release may write again what it holds.
        shutil.rmtree(self.path, ignore_errors=True)
        try:
            self.path.parent.rmdir()
        except OSError:
            return  # other sandboxes run


def running() -> list[Path]:
    """Return the folders of the sandboxes of this user that run, the newest first."""
    directory = _directory()
    if not directory.is_dir() or not _is_private(directory):
        return []
    folders = [folder for folder in directory.glob(f"{_RUN}*") if not _is_left_over(folder)]
    return sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True)


def remove_left_overs() -> None:
    """Remove the folders of runs that were killed."""
    directory = _directory()
    if not directory.is_dir() or not _is_private(directory):
        return
    for folder in directory.glob(f"{_RUN}*"):
        if _is_left_over(folder):
            shutil.rmtree(folder, ignore_errors=True)
    for folder in directory.glob(f"{_NEW}*"):
        if time.time() - folder.stat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def is_running(folder: Path) -> bool:
    """Tell whether the sandbox of a folder runs."""
    return folder.is_dir() and not _is_left_over(folder)


def _directory() -> Path:
    user = getpass.getuser() if os.name == "nt" else str(os.getuid())
    return Path(tempfile.gettempdir()) / f"sandbox-{user}"


def _private_directory() -> Path:
    directory = _directory()
    directory.mkdir(mode=0o700, exist_ok=True)
    if not _is_private(directory):
        raise NotPrivate(
            f"{directory} is not a directory that only this user can use: remove it, or set TMPDIR to another place"
        )
    return directory


def _is_private(directory: Path) -> bool:
    status = directory.lstat()
    if os.name == "nt":
        # There, the temporary folder is the user's own.
        return stat.S_ISDIR(status.st_mode)
    return (
        stat.S_ISDIR(status.st_mode)
        and status.st_uid == os.getuid()
        and not stat.S_IMODE(status.st_mode) & 0o077
    )


def _is_left_over(folder: Path) -> bool:
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        # It runs, or it stops and is being removed.
        return False
    lock.release()
    return True
