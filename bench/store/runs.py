"""A run's folder: reading it, adding records, finding runs. Imports neither torch nor pandas.

results/NAME/manifest.json            what was planned, with which data and weights, by which commands
results/NAME/cells/CELL_ID.json       one record a cell: done, failed, oom, timeout or skipped
results/NAME/logs/CELL_ID.log         what the cell's process wrote, where it wrote anything
results/NAME/superseded/…             records of attempts without a result that a later attempt replaced
results/NAME/set-aside/…              records that were found damaged; their cells run again
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic_core import from_json
from pydantic_core import to_json as compact_json

from bench.store.records import SCHEMA_VERSION, SEALED_SINCE, Manifest, Record
from bench.store.upgrade import upgrade_manifest, upgrade_record
from tl.cache import to_json, write_atomic
from tl.errors import ConfigError, UserError

_RESERVE, _RESERVED_BYTES, _BYTES_AN_IMAGE = ".reserve", 1 << 20, 200
"""An image's two predictions take about 140 bytes of a record."""


class Damaged(UserError):
    """A file of a run whose content is not what this suite wrote."""


class Run:
    """The folder of a run, for reading and for adding records."""

    def __init__(self, folder: Path, name: str | None = None) -> None:
        self.folder = folder
        self.name = name or folder.resolve().name
        """What tables call it; the folder's name unless another run has that too."""

    def manifest(self) -> Manifest:
        """Raises `UserError` when this folder is not a run, is damaged, or was written by a newer version."""
        path = self.folder / "manifest.json"
        if not path.is_file():
            raise UserError(f"{self.folder}: not a run: it has no manifest.json")
        return _parse(path, Manifest)

    def exists(self) -> bool:
        """Whether there is a manifest to read."""
        return (self.folder / "manifest.json").is_file()

    def records(self) -> dict[str, Record]:
        """All records by cell id, in the order in which they were planned.

        Raises `UserError` as `manifest`, and for a record that is damaged.
        """
        found = {}
        with _without_collector():
            for path, record in self._read():
                if isinstance(record, Damaged):
                    raise UserError(f"{record}; `bench run` sets it aside and runs its cell again") from record
                found[path.stem] = record
        planned = [cell_id for cell_id in self.manifest().cells if cell_id in found]
        return {cell_id: found[cell_id] for cell_id in dict.fromkeys([*planned, *found])}

    def survey(self) -> tuple[dict[str, Record], dict[Path, str]]:
        """All sound records by cell id, and the files of damaged ones with the reasons.

        Raises `UserError` for what the disk doesn't give: that says nothing of the record.
        """
        with _without_collector():
            read = dict(self._read())
        sound = {path.stem: record for path, record in read.items() if isinstance(record, Record)}
        return sound, {path: str(error) for path, error in read.items() if isinstance(error, Damaged)}

    def _read(self) -> Iterator[tuple[Path, Record | Damaged]]:
        for path in sorted((self.folder / "cells").glob("*.json")):
            try:
                record = _parse(path, Record)
                if path.stem != record.cell_id or not record.cell.was_called(record.cell_id):
                    raise Damaged(f"{path}: damaged: its content is that of cell {record.cell.id}")
            except Damaged as error:
                yield path, error
            else:
                yield path, record

    def write_manifest(self, manifest: Manifest) -> None:
        """Atomically. Raises `OSError`."""
        write_atomic(self.folder / "manifest.json", _sealed(manifest))

    def write_record(self, record: Record) -> None:
        """Atomically; an earlier record of the cell is kept in `superseded/`.

        Raises `UserError` when the disk is full or can't be written, and says whether the record is kept: there is
        room for one, see `reserved`.
        """
        path, text, kept = self._record(record.cell_id), _sealed(record), False
        earlier = path.exists()

        def put() -> None:
            nonlocal earlier
            if earlier:
                self._keep(path, "superseded")
                earlier = False
            write_atomic(path, text)

        try:
            put()
        except OSError as error:
            if (self.folder / _RESERVE).exists():
                with contextlib.suppress(OSError):
                    (self.folder / _RESERVE).unlink()
                    put()
                    kept = True
            left = "is kept, in the room that was held back for it" if kept else "is NOT kept"
            raise UserError(
                f"{self.folder}: can't be written: {error.strerror or error}; the cell that has just ended "
                f"({record.cell}) {left}; make room, and the same command goes on"
            ) from error

    @contextlib.contextmanager
    def reserved(self, images: int) -> Iterator[None]:
        """Hold back room for a record, which has predictions for so many images: a disk that fills up takes no
        finished cell. Raises `UserError`.

        Only for who holds the folder's lock: temporary files of writers that were killed go.
        """
        reserve = self.folder / _RESERVE
        try:
            for path in self.leftovers():
                path.unlink(missing_ok=True)
            write_atomic(reserve, os.urandom(_RESERVED_BYTES + images * _BYTES_AN_IMAGE))  # no file system packs that
        except OSError as error:
            raise UserError(f"{self.folder}: can't be written: {error.strerror or error}; no cell was begun") from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                reserve.unlink(missing_ok=True)

    def leftovers(self) -> list[Path]:
        """Files that commands leave behind only when they are killed."""
        places = (self.folder, self.folder / "cells")
        return [*(path for place in places for path in place.glob(".*.tmp")), *self.folder.glob(_RESERVE)]

    def retire(self, cell_id: str) -> None:
        """Move the record of a cell that is no longer planned to `superseded/`. Raises `OSError`."""
        path = self._record(cell_id)
        if path.exists():
            self._keep(path, "superseded")
            path.unlink()

    def set_aside(self, path: Path) -> Path:
        """Move a damaged record to `set-aside/`, and return its place there. Raises `OSError`."""
        kept = self._keep(path, "set-aside")
        path.unlink()
        return kept

    @property
    def logs(self) -> Path:
        """The folder of what cells' processes wrote."""
        return self.folder / "logs"

    def log(self, cell_id: str) -> Path:
        """Where what a cell's process writes is kept."""
        return self.logs / f"{cell_id}.log"

    def _record(self, cell_id: str) -> Path:
        return self.folder / "cells" / f"{cell_id}.json"

    def _keep(self, path: Path, where: str) -> Path:
        """A second name or a copy in a folder of the run: at no moment is the old record nowhere."""
        attic = self.folder / where
        attic.mkdir(exist_ok=True)
        number = 1 + len(list(attic.glob(f"{path.stem}-*.json")))
        while (kept := attic / f"{path.stem}-{number}.json").exists():
            number += 1
        try:
            os.link(path, kept)
        except OSError:  # a file system without hard links
            write_atomic(kept, path.read_bytes())
        return kept


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Records are many objects and no cycles: Python's collector, which looks at all of them again and again, would
    take a third of the time of whatever reads ten thousand."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


Format = TypeVar("Format", Manifest, Record)


_SEAL = re.compile(rb'\{\n "digest": "([0-9a-f]{64})",\n')
_CURRENT = b'{\n "schema_version": %d,\n' % SCHEMA_VERSION


def _sealed(content: Manifest | Record) -> bytes:
    # A traceback may have what is no text.
    return seal(to_json(content.model_dump(mode="json")).encode(errors="replace"))


def seal(text: bytes) -> bytes:
    """What stands in a file: JSON whose first key is the SHA-256 of `text`, the same without that line.

    It guards against damage and against a hand that slips, not against one that means to forge.
    """
    return b'{\n "digest": "%s",\n' % hashlib.sha256(text).hexdigest().encode() + text.removeprefix(b"{\n")


def _parse(path: Path, kind: type[Format]) -> Format:
    try:
        text = path.read_bytes().replace(b"\r\n", b"\n")  # as some checkouts rewrite line ends
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror or error}") from error
    found = _SEAL.match(text)
    text = b"{\n" + text[found.end() :] if found else text
    intact = found is not None and hashlib.sha256(text).hexdigest().encode() == found[1]
    if not (intact and text.startswith(_CURRENT)):  # of many records, nearly all: they are parsed once
        data = _checked(path, text, sealed=found is not None, intact=intact)
        if (upgrade_manifest if kind is Manifest else upgrade_record)(data):
            text = compact_json(data)
    try:
        return kind.from_json(text)
    except ConfigError as error:
        raise Damaged(f"{path}: damaged: {error}") from error


def _checked(path: Path, text: bytes, *, sealed: bool, intact: bool) -> dict[str, Any]:
    """The content of a file whose version is known and whose digest is its own. Raises `Damaged`."""
    try:
        data = from_json(text)
    except ValueError as error:
        raise Damaged(f"{path}: can't be read as JSON: {error}") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if type(version) is not int:
        raise Damaged(f"{path}: has no schema_version: not written by this suite")
    if version > SCHEMA_VERSION:
        raise Damaged(f"{path}: schema {version} is newer than this suite knows ({SCHEMA_VERSION}); update the suite")
    if sealed and not intact:
        raise Damaged(f"{path}: damaged: it was changed after it was written (its digest is another)")
    if not sealed and version >= SEALED_SINCE:
        raise Damaged(f"{path}: damaged: it doesn't begin with its digest")
    content: dict[str, Any] = data
    return content


def find_run(name: str | Path, results: Path = Path("results")) -> Run:
    """A run by folder, or by name under `results`. Raises `UserError` naming the runs that there are."""
    for folder in (Path(name), results / name):
        if (folder / "manifest.json").is_file():
            return Run(folder)
    there = sorted(path.parent.name for path in results.glob("*/manifest.json"))
    none = f"{results}/ has no runs yet; `python -m bench run` makes one"
    known = f"{results}/ has {', '.join(there)}" if there else none
    raise UserError(f"{name}: no such run; {known}")


def all_runs(results: Path = Path("results")) -> list[Run]:
    """Every run under `results`, by name."""
    return [Run(path.parent) for path in sorted(results.glob("*/manifest.json"))]


def each_once(places: Iterable[Path]) -> None:
    """Raises `UserError` for a run or file that is named twice, however it is spelt: it would count twice."""
    found: set[Path] = set()
    for place in places:
        if place.resolve() in found:
            raise UserError(f"{place}: named twice")
        found.add(place.resolve())


def find_runs(names: Iterable[str | Path], results: Path = Path("results")) -> list[Run]:
    """Several runs; see `find_run`. Runs whose folders have the same name are called by their paths.

    Raises `UserError` also for a run that is named twice: its cells would count twice.
    """
    runs = [find_run(name, results) for name in names]
    each_once(run.folder for run in runs)
    called = [run.name for run in runs]
    return [Run(run.folder, str(run.folder)) if called.count(run.name) > 1 else run for run in runs]
