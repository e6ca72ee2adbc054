"""Files that are never half written."""

import contextlib
import json
import os
import shutil
from pathlib import Path


def write_atomically(path, write):
    """Call write(temporary path) and rename the result, a file or a folder, to path: nobody ever sees half of it.

    Raises OSError naming the path where the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.tmp{os.getpid()}{path.suffix}")
    replaced = path.with_name(f".{path.stem}.old{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        sync(temporary)
        if path.is_dir():
            path.rename(replaced)
        os.replace(temporary, path)
        sync(path.parent, deep=False)
    except BaseException as error:
        if replaced.exists() and not path.exists():
            replaced.rename(path)
        if isinstance(error, OSError) and error.errno and not error.filename:  # of a full disk, which does not say
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        for leftover in (temporary, replaced):
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)


def write_text(path, text):
    """Write a text file, UTF-8, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path, content):
    """Write JSON, indented, atomically; numpy's numbers are written as floats."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, default=float) + "\n")


def sync(path, deep=True):
    """Have the system write a file, or a folder and what is in it, to the disk."""
    inside = [entry for entry in path.rglob("*") if entry.is_file()] if deep and path.is_dir() else []
    for entry in [*inside, path]:
        with contextlib.suppress(OSError):  # some file systems cannot sync a folder
            descriptor = os.open(entry, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
