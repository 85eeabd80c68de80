"""The files of a store: a folder of this machine, or of an object store.

Tables are written by their engines; what lies beside them, and the data files that workers write for the driver to
commit, goes through here. A file is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from topicscale import storage
from topicscale.errors import StoreError


@dataclass(frozen=True)
class File:
    """A file that was found."""

    name: str
    """Relative to the folder."""
    size: int
    changed: int
    """When, in nanoseconds, by the clock of whoever keeps it."""


class Folder:
    """A folder at a URI; it need not be there. Names are relative to it, with slashes.

    Every method raises StoreError where an object store does not answer, or does not allow it; FileNotFoundError and the
    other errors of a local disk are OSErrors, as ever.
    """

    def __init__(self, uri: str | Path) -> None:
        self.path = storage.local_path(str(uri))
        """Of a local folder."""
        place = storage.address(str(uri)) if self.path is None else None
        self.uri = str(self.path) if place is None else str(place)
        self.name = self.uri.rstrip("/").rsplit("/", 1)[-1]
        self._system = pafs.LocalFileSystem() if place is None else storage.file_system(place)
        self._root = self.uri if place is None else place.inside

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def read(self, name: str) -> bytes | None:
        """Return what a file holds, None where there is none."""
        with self._asked(name):
            try:
                with self._system.open_input_file(self._at(name)) as file:
                    return bytes(file.read())
            except (FileNotFoundError, NotADirectoryError):
                return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file; one that is there is replaced."""
        with self._asked(name):
            if self.path is None:
                with self._system.open_output_stream(self._at(name)) as file:
                    file.write(content)
                return
            target = self.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f"{target.name}.{os.getpid()}")
            temporary.write_bytes(content)
            temporary.replace(target)

    @contextlib.contextmanager
    def sink(self, name: str) -> Iterator[pa.NativeFile]:
        """Yield a stream into a new data file. Where that fails, what was written of it is removed."""
        with self._asked(name):
            if self.path is not None:
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                with self._system.open_output_stream(self._at(name)) as file:
                    yield file
            except OSError:
                with contextlib.suppress(OSError):
                    self._system.delete_file(self._at(name))
                raise

    def open(self, name: str = "") -> pa.NativeFile:
        """Return a file to read from any place of it."""
        with self._asked(name):
            return self._system.open_input_file(self._at(name))

    def exists(self, name: str) -> bool:
        """Return whether there is a file, or a folder; in an object store, one with something in it."""
        return self._info(name) is not None

    def find(self, name: str = "") -> File | None:
        """Return what is known of a file, None where there is none."""
        info = self._info(name)
        return File(name, info.size, info.mtime_ns or 0) if info is not None and info.type == pafs.FileType.File else None

    def _info(self, name: str) -> pafs.FileInfo | None:
        with self._asked(name):
            try:
                info = self._system.get_file_info(self._at(name))
            except NotADirectoryError:
                return None
        return None if info.type == pafs.FileType.NotFound else info

    def files(self, name: str = "", *, deep: bool = False) -> list[File]:
        """Return the files in a folder, sorted by name; ``deep``: also those in the folders in it."""
        with self._asked(name):
            found = self._system.get_file_info(pafs.FileSelector(self._at(name), recursive=deep, allow_not_found=True))
        return sorted(
            (File(info.path[len(self._root) + 1 :], info.size, info.mtime_ns or 0) for info in found if info.type == pafs.FileType.File),
            key=lambda file: file.name,
        )

    def listing(self) -> list[str]:
        """Return the names of files and folders in this one."""
        with self._asked(""):
            found = self._system.get_file_info(pafs.FileSelector(self._root, allow_not_found=True))
        return sorted(info.base_name for info in found)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._asked(name), contextlib.suppress(FileNotFoundError):
            self._system.delete_file(self._at(name))

    def clear(self, name: str) -> None:
        """Remove a folder and all in it, if it is there."""
        if self.path is not None:
            shutil.rmtree(self.path / name, ignore_errors=True)
            return
        with self._asked(name):
            self._system.delete_dir_contents(self._at(name), missing_dir_ok=True)

    @contextlib.contextmanager
    def _asked(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self.path is not None or isinstance(error, FileNotFoundError):
                raise
            raise StoreError(f"{self.uri}{f'/{name}' if name else ''} cannot be reached: {said(error)}") from error


def said(error: BaseException) -> str:
    """Return what an engine's error says, on one line."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).replace("↳", ":").split())[:600] or type(error).__name__
