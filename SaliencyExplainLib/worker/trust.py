"""Hash and fingerprint of a model file or folder: what was trusted, and whether it changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

__all__ = ["fingerprint", "sha256_of"]

Fingerprint = tuple[tuple[str, int, int], ...]


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file; of a folder over the names and contents of all files in it, hex."""
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
    for file in sorted(home.rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            yield file


def _feed(digest: hashlib._Hash, file: Path) -> None:
    with file.open("rb") as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
