"""Hash and fingerprint of a model file or folder: what was trusted, and whether it changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import ModelError

__all__ = ["fingerprint", "sha256_of"]

Fingerprint = tuple[tuple[str, int, int], ...]
#: A home folder or a whole disk is not read only to say that it holds no model.
_MOST_FILES = 10_000


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file; of a folder over the names and contents of all files in it, hex.

    Caches of compiled code (``__pycache__``) are left out: a trusted bundle is loaded without them.

    Raises
    ------
    ModelError
        If a folder holds very many files, or a link to a folder outside it, whose content the hash
        would not cover.
    """
    home = Path(path)
    digest = hashlib.sha256()
    for file in _files(home):
        if file != home:
            inner = hashlib.sha256()
            _feed(inner, file)
            digest.update(f"{file.relative_to(home).as_posix()}\0{inner.hexdigest()}\n".encode())
        else:
            _feed(digest, file)
    return digest.hexdigest()


def fingerprint(path: str | Path) -> Fingerprint:
    """Names, sizes and times of the files of a model: changes whenever the model is written."""
    home = Path(path)
    facts = [(file, file.stat()) for file in _files(home)]
    return tuple((str(file), one.st_size, one.st_mtime_ns) for file, one in facts)


def _files(home: Path) -> Iterator[Path]:
    if home.is_file():
        yield home
        return
    found: list[Path] = []
    for folder, folders, names in os.walk(home):
        _refuse_links(home, [Path(folder) / name for name in folders])
        found += [Path(folder) / name for name in names]
        if len(found) > _MOST_FILES:
            raise ModelError(
                f"{str(home)!r} holds more than {_MOST_FILES:,} files, so it is no folder of a "
                "model. Give the model's own folder."
            )
    for file in sorted(found):
        if file.is_file() and "__pycache__" not in file.parts:
            yield file


def _refuse_links(home: Path, folders: list[Path]) -> None:
    for one in folders:
        if one.is_symlink() and not one.resolve().is_relative_to(home.resolve()):
            raise ModelError(
                f"{home.name!r} holds the link {one.relative_to(home).as_posix()!r} to a folder "
                "outside it, which cannot be trusted with it. Put the folder itself there."
            )


def _feed(digest: hashlib._Hash, file: Path) -> None:
    with file.open("rb") as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
