"""What lasts on a disk: files replaced at once, folders synced, and a lock that a dead process cannot keep.

    replace_file(Path("out/run.json"), text.encode())      # a reader sees the old bytes or the new ones, never a part
    with replacing(Path("large.bin")) as file: file.write(...)
    with lock_file(Path("out/.lock"), "process 12"): ...   # raises Held, with the words of who has it

A run's weights, which come in pairs, are checkpoint.py's. A lock keeps other programs of this kind out, on one machine
and, where the file system shares its locks (NFS 4 does), on all; it keeps nobody from reading.
"""

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from sampan.errors import UserError
from sampan.messages import _


def replace_file(path: Path, data: bytes) -> None:
    """Raises OSError."""
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path` to write into; synced and renamed at the end, then the folder is synced.

    Nothing is left of it when that fails. Raises OSError.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.partial")  # two processes do not write into each other's
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """A new name lasts only when its folder is synced too. Windows has no such call. Raises OSError."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot
            raise
    finally:
        os.close(descriptor)


class Held(Exception):
    """Another process has the lock; the message is what that process said of itself."""


@contextlib.contextmanager
def lock_file(path: Path, words: str, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the lock at `path`; a file beside it says `words` meanwhile, for others to show.

    Where another process has the lock, raises Held, or calls `waiting` with that process's words and waits for it. The
    system lets go of a lock when its process ends, however it ends; the file stays, since one that is removed could be
    locked twice. Raises OSError where the lock cannot be written.
    """
    from filelock import FileLock, Timeout

    lock, note = FileLock(path), path.with_name(f"{path.name}.holder")
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        holder = _("another process")
        with contextlib.suppress(OSError):
            holder = note.read_text(encoding="utf-8") or holder
        if waiting is None:
            raise Held(holder) from None
        waiting(holder)
        held = lock.acquire()
    with held:
        try:
            with contextlib.suppress(OSError):  # a full disk
                note.write_text(words, encoding="utf-8")
            yield
        finally:
            with contextlib.suppress(OSError):
                note.unlink()


def write_json(path: Path, value: dict) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    replace_file(path, text.encode())


JSON_BYTES = 1 << 24  # the largest JSON file that is read: an index of 100,000 tensors has half of it


def read_json(path: Path) -> dict:
    try:
        if path.stat().st_size > JSON_BYTES:
            raise UserError(
                _("{path}: larger than any such file ({size:,} bytes)", path=path, size=path.stat().st_size)
            )
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(_("{path} is missing", path=path)) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(_("{path}: not readable as JSON ({error})", path=path, error=error)) from None
    if not isinstance(value, dict):
        raise UserError(_("{path}: expected a JSON object", path=path))
    return value
