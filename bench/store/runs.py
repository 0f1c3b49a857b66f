"""The folder of a run: reading it, adding records, finding runs. Imports neither torch nor pandas.

results/NAME/manifest.json            the plan: data, weights, cells and the commands that added them
results/NAME/cells/CELL_ID.json       one record per cell: done, failed, oom, timeout, skipped or diverged
results/NAME/pairs/PAIR_ID.json       one record per process pair of paired timing, with its raw turns
results/NAME/pick.json                what `bench pick` chose; only in a run of that command
results/NAME/logs/ID.log              output of a cell's or pair's processes; no file if they printed nothing
results/NAME/superseded/…             records that a later attempt replaced, or that have less than an earlier one
results/NAME/set-aside/…              damaged records, whose cells or pairs run again, and records of other images
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic_core import from_json
from pydantic_core import to_json as compact_json

from bench.console import deleted_working_folder, tell
from bench.store.consistency import contradiction, pair_contradiction
from bench.store.pairs import PairRecord
from bench.store.picks import PickRecord
from bench.store.records import SCHEMA_VERSION, SEALED_SINCE, Manifest, Record
from bench.store.upgrade import upgrade_manifest, upgrade_record
from tl.cache import read_bounded, to_json, write_atomic
from tl.errors import ConfigError, UserError
from tl.machine import without_garbage_collection
from tl.regimes import REGIMES
from tl.text import shortened

_RESERVE, _RESERVED_BYTES = ".reserve", 1 << 20
"""The file that reserves disk space, and its size without predictions."""


_PICK = "pick.json"
_MOST_BYTES = 1 << 30
"""Largest file that is read. With predictions of a million images, or of the boxes in 80,000, a record fits."""


Content = TypeVar("Content", Record, PairRecord)


class Damaged(UserError):
    """The content of a run's file is not what this suite wrote."""


class Foreign(Damaged):
    """A record is of other images than its run: it belongs to another run, and was put here by hand."""


class RunFolder:
    """The folder of a run. It reads and adds records."""

    def __init__(self, folder: Path, name: str | None = None) -> None:
        self.folder = folder
        self.name = name or folder.resolve().name
        """The name in tables: the folder's name, unless another run has the same."""

    def manifest(self) -> Manifest:
        """Read the manifest.

        Raises `UserError` if this folder is not a run, or if the manifest is damaged or from a newer version.
        """
        path = self.folder / "manifest.json"
        if not os.path.lexists(path):
            raise UserError(f"{self.folder}: not a run: it has no manifest.json")
        return _parse(path, Manifest)

    def exists(self) -> bool:
        """True if the folder has a manifest."""
        return (self.folder / "manifest.json").is_file()

    def records(self) -> dict[str, Record]:
        """Cell id → record, in the order in which the cells were planned.

        Records of other images than the run's are left out, with a line on standard error. Raises `UserError` as
        `manifest` does, and if a record is damaged.
        """
        manifest = self.manifest()
        return self._intact(manifest.cells, self._read(manifest), "its cell")

    def pairs(self) -> dict[str, PairRecord]:
        """Pair id → record of paired timing, in the order in which the pairs were planned. See `records`."""
        manifest = self.manifest()
        return self._intact(manifest.pairs, self._read_pairs(manifest), "its pair")

    def _intact(
        self, planned: Iterable[str], read: Iterable[tuple[Path, Content | Damaged]], what: str
    ) -> dict[str, Content]:
        found: dict[str, Content] = {}
        foreign: list[Foreign] = []
        with without_garbage_collection():
            for path, record in read:
                if isinstance(record, Foreign):
                    foreign.append(record)
                elif isinstance(record, Damaged):
                    raise UserError(f"{record}; `bench run` sets it aside and runs {what} again") from record
                else:
                    found[path.stem] = record
        if foreign:
            more = f" (and {len(foreign) - 1} more like it)" if len(foreign) > 1 else ""
            tell(f"WARNING: {foreign[0]}; it is left out{more}")
        in_order = dict.fromkeys([*planned, *found])
        return {each: found[each] for each in in_order if each in found}

    def survey(self) -> tuple[dict[str, Record], dict[Path, str]]:
        """Cell id → intact record, and path of a damaged or foreign record → what is wrong with it.

        Raises `UserError` as `manifest` does, and if a file can't be read: then it is unknown whether it is damaged.
        """
        return _surveyed(self._read(self.manifest()))

    def survey_pairs(self) -> tuple[dict[str, PairRecord], dict[Path, str]]:
        """`survey` for the records of paired timing."""
        return _surveyed(self._read_pairs(self.manifest()))

    def _read(self, manifest: Manifest) -> Iterator[tuple[Path, Record | Damaged]]:
        for path in sorted((self.folder / "cells").glob("*.json")):
            try:
                yield path, _read_record(path, manifest)
            except Damaged as error:
                yield path, error

    def _read_pairs(self, manifest: Manifest) -> Iterator[tuple[Path, PairRecord | Damaged]]:
        for path in sorted((self.folder / "pairs").glob("*.json")):
            try:
                yield path, _read_pair(path, manifest)
            except Damaged as error:
                yield path, error

    def write_manifest(self, manifest: Manifest) -> None:
        """Write the manifest atomically. Raises `OSError`."""
        write_atomic(self.folder / "manifest.json", _sealed(manifest))

    def write_record(self, record: Record) -> None:
        """Write a record atomically. An earlier record of the cell moves to `superseded/`.

        Raises `UserError` if the disk is full or can't be written. The message says whether the record was saved: space
        for one is reserved, see `reserved`.
        """
        self._write(self._record(record.cell_id), record, f"cell that has just ended ({record.cell})")

    def write_pair(self, record: PairRecord, *, beside: bool = False) -> None:
        """Write a record of paired timing; see `write_record`.

        `beside` is for a record that has less than the pair's earlier one, which stays: it goes to `superseded/`.
        """
        path = self._pair(record.pair_id)
        path = self._unused(path, "superseded") if beside else path
        self._write(path, record, f"pair that has just ended ({record.pair})")

    def pick(self) -> PickRecord | None:
        """Read what the latest `bench pick` in this folder chose; None if there was none, or with a warning if it is
        damaged. Raises `UserError` if it can't be read.
        """
        path = self.folder / _PICK
        try:
            return _parse(path, PickRecord) if path.exists() else None
        except Damaged as error:
            tell(f"WARNING: {error}; `bench pick` writes it again")
            return None

    def write_pick(self, record: PickRecord) -> None:
        """Write what a pick chose; see `write_record`."""
        self._write(self.folder / _PICK, record, "pick")

    def _write(self, path: Path, record: Record | PairRecord | PickRecord, what: str) -> None:
        text, kept = _sealed(record), False
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
            saved = "was saved in the space reserved for it" if kept else "was NOT saved"
            raise UserError(
                f"{self.folder}: can't be written: {error.strerror or error}; the {what} {saved}; free some space, "
                "then the same command continues"
            ) from error

    @contextlib.contextmanager
    def reserved(self, predictions: int) -> Iterator[None]:
        """Reserve disk space for one record with so many bytes of predictions, so that a full disk loses no cell.

        It also deletes temporary files of killed commands, so the caller must hold the folder's lock. Raises
        `UserError` if the folder can't be written.
        """
        reserve = self.folder / _RESERVE
        try:
            for path in self.leftovers():
                path.unlink(missing_ok=True)
            # Random bytes, since a file system may compress others.
            write_atomic(reserve, os.urandom(_RESERVED_BYTES + predictions))
        except OSError as error:
            raise UserError(f"{self.folder}: can't be written: {error.strerror or error}; no cell started") from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                reserve.unlink(missing_ok=True)

    def leftovers(self) -> list[Path]:
        """Files that a command leaves behind only if it is killed."""
        places = (self.folder, self.folder / "cells", self.folder / "pairs")
        return [*(path for place in places for path in place.glob(".*.tmp")), *self.folder.glob(_RESERVE)]

    def retire(self, work_id: str) -> None:
        """Move the record of a cell or pair that is no longer planned to `superseded/`. Raises `OSError`."""
        for path in (self._record(work_id), self._pair(work_id)):
            if path.exists():
                self._keep(path, "superseded")
                path.unlink()

    def set_aside(self, path: Path) -> Path:
        """Move a damaged record to `set-aside/`, and return its new path. Raises `OSError`."""
        kept = self._keep(path, "set-aside")
        path.unlink()
        return kept

    @property
    def logs(self) -> Path:
        """The folder of the cells' logs."""
        return self.folder / "logs"

    def log(self, work_id: str) -> Path:
        """The file for the output of the processes of a cell or pair."""
        return self.logs / f"{work_id}.log"

    def _record(self, cell_id: str) -> Path:
        return self.folder / "cells" / f"{cell_id}.json"

    def _pair(self, pair_id: str) -> Path:
        return self.folder / "pairs" / f"{pair_id}.json"

    def _unused(self, path: Path, where: str) -> Path:
        """The path for an earlier or damaged record in a folder of the run; nothing is there yet."""
        folder = self.folder / where
        number = 1 + len(list(folder.glob(f"{path.stem}-*.json")))
        while (unused := folder / f"{path.stem}-{number}.json").exists():
            number += 1
        return unused

    def _keep(self, path: Path, where: str) -> Path:
        """Link or copy a record into a folder of the run, so that it exists at every moment. Returns the new path."""
        kept = self._unused(path, where)
        kept.parent.mkdir(exist_ok=True)
        try:
            os.link(path, kept)
        except OSError:  # a file system without hard links
            write_atomic(kept, read_bounded(path, _MOST_BYTES))
        return kept


def _surveyed(read: Iterable[tuple[Path, Content | Damaged]]) -> tuple[dict[str, Content], dict[Path, str]]:
    intact: dict[str, Content] = {}
    damaged: dict[Path, str] = {}
    with without_garbage_collection():
        for path, record in read:
            if isinstance(record, Damaged):
                damaged[path] = str(record)
            else:
                intact[path.stem] = record
    return intact, damaged


Format = TypeVar("Format", Manifest, Record, PairRecord, PickRecord)


_SEAL = re.compile(rb'\{\n "digest": "([0-9a-f]{64})",\n')
_CURRENT = b'{\n "schema_version": %d,\n' % SCHEMA_VERSION


def _sealed(content: Manifest | Record | PairRecord | PickRecord) -> bytes:
    # A traceback may contain surrogates, which can't be encoded.
    return seal(to_json(content.model_dump(mode="json")).encode(errors="replace"))


def seal(text: bytes) -> bytes:
    """The content of a file: the JSON `text` with its own SHA-256 as the first key.

    The digest detects damage and careless edits. It does not protect against forgery.
    """
    return b'{\n "digest": "%s",\n' % hashlib.sha256(text).hexdigest().encode() + text.removeprefix(b"{\n")


_UPGRADES: dict[Any, Callable[[dict[str, Any]], bool]] = {Manifest: upgrade_manifest, Record: upgrade_record}


def _as_it_is(data: dict[str, Any]) -> bool:
    """Upgrade nothing: the format has not changed since its first version."""
    return False


def _parse(path: Path, kind: type[Format]) -> Format:
    try:
        text = read_bounded(path, _MOST_BYTES)
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror or error}") from error
    text = text.replace(b"\r\n", b"\n")  # git may have converted the line ends on checkout
    found = _SEAL.match(text)
    text = b"{\n" + text[found.end() :] if found else text
    intact = found is not None and hashlib.sha256(text).hexdigest().encode() == found[1]
    if not (intact and text.startswith(_CURRENT)):  # nearly all records skip this, and so are parsed only once
        data = _checked(path, text, sealed=found is not None, intact=intact)
        if _UPGRADES.get(kind, _as_it_is)(data):
            text = compact_json(data)
    try:
        return kind.from_json(text)
    except ConfigError as error:
        if unknown := _unknown_regime(text):
            raise UserError(
                f"{path}: unknown regime {unknown!r}; give the file that adds it with --plugin, or install its package"
            ) from error
        raise Damaged(f"{path}: damaged: {error}") from error


def _read_record(path: Path, manifest: Manifest) -> Record:
    """Read a record of the run with this manifest. Raises `Damaged`, or `UserError` if it can't be read."""
    record = _parse(path, Record)
    if path.stem != record.cell_id or not record.cell.was_called(record.cell_id):
        raise Damaged(f"{path}: damaged: its content is that of cell {record.cell.id}")
    theirs, ours = record.cell.dataset_digest, manifest.dataset.digest
    if theirs != ours:
        raise Foreign(f"{path}: is of another run: its images are {theirs[:8]!r}, and this run's are {ours[:8]!r}")
    if found := contradiction(record, manifest):
        raise Damaged(f"{path}: damaged: {found}")
    return record


def _read_pair(path: Path, manifest: Manifest) -> PairRecord:
    """Read a record of paired timing; see `_read_record`."""
    record = _parse(path, PairRecord)
    if path.stem != record.pair_id or record.pair.id != record.pair_id:
        raise Damaged(f"{path}: damaged: its content is that of pair {record.pair.id}")
    for cell in record.pair.cells:
        if cell.dataset_digest != (ours := manifest.dataset.digest):
            theirs = cell.dataset_digest
            raise Foreign(f"{path}: is of another run: its images are {theirs[:8]!r}, and this run's are {ours[:8]!r}")
    if found := pair_contradiction(record, manifest):
        raise Damaged(f"{path}: damaged: {found}")
    return record


def _unknown_regime(text: bytes) -> str:
    """The first regime in a file that isn't registered; empty if all are. The file itself is intact."""
    try:
        data = from_json(text)
    except ValueError:
        return ""
    pair = data.get("pair")
    paired = pair.get("cells") if isinstance(pair, dict) else None
    cells = [data.get("cell"), *(data["cells"].values() if isinstance(data.get("cells"), dict) else ())]
    cells += paired if isinstance(paired, list) else []
    configs = [cell.get("config") for cell in cells if isinstance(cell, dict)]
    regimes = [config.get("regime") for config in configs if isinstance(config, dict)]
    return next((name for name in regimes if isinstance(name, str) and name not in REGIMES), "")


def _checked(path: Path, text: bytes, *, sealed: bool, intact: bool) -> dict[str, Any]:
    """Parse the content of a file, and check its version and its digest. Raises `Damaged`."""
    try:
        data = from_json(text)
    except ValueError as error:
        raise Damaged(f"{path}: can't be read as JSON: {error}") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if type(version) is not int or version < 1:
        raise Damaged(f"{path}: has no schema_version: not written by this suite")
    if version > SCHEMA_VERSION:
        raise Damaged(f"{path}: schema {version} is newer than this suite knows ({SCHEMA_VERSION}); update the suite")
    if sealed and not intact:
        raise Damaged(f"{path}: damaged: it was changed after it was written (its digest doesn't match)")
    if not sealed and version >= SEALED_SINCE:
        raise Damaged(f"{path}: damaged: it doesn't begin with its digest")
    content: dict[str, Any] = data
    return content


def find_run(name: str | Path, results: Path = Path("results")) -> RunFolder:
    """Find a run by its folder, or by its name below `results`. Raises `UserError`, which lists the existing runs."""
    for folder in (Path(name), results / name):
        if os.path.lexists(folder / "manifest.json"):  # one that can't be read says so itself
            return RunFolder(folder)
    try:
        known = f"{results}/ has {', '.join(run.folder.name for run in all_runs(results))}"
    except UserError as error:
        known = str(error)
    raise UserError(f"{shortened(name)}: no such run; {known}")


def folder_of_run(path: Path) -> Path | None:
    """The folder of a run that a path is in, or is; None if there is none."""
    target = Path(os.path.realpath(path))
    around = (target, *target.parents)
    found = (folder for folder in around if (folder / "manifest.json").is_file() and (folder / "cells").is_dir())
    return next(found, None)


def check_target(output: Path | None, inputs: Iterable[Path]) -> None:
    """Raise `UserError` if writing `output`, the value of `--output`, would touch a run or an input of the command.

    `inputs` are files, and folders of runs. Nothing is written into a run's folder but what `bench run` records.
    """
    if output is None:
        return
    target = Path(os.path.realpath(output))
    around, run = (target, *target.parents), folder_of_run(output)
    given = [path for path in inputs if Path(os.path.realpath(path)) in around]
    if run or any(path.is_dir() for path in given):
        folder = run or given[0]
        raise UserError(f"--output {output} is in the folder of the run {folder.name}, which holds its results alone")
    if given:
        raise UserError(f"--output {output} is a file that this command reads; name another one")


def all_runs(results: Path = Path("results")) -> list[RunFolder]:
    """Every run below `results`, sorted by name; there is at least one. Raises `UserError` if there is none."""
    is_folder = results.is_dir()
    found = [RunFolder(path.parent) for path in sorted(results.glob("*/manifest.json"))] if is_folder else []
    if not found:
        gone = "" if results.is_absolute() else deleted_working_folder()
        why = (
            f" ({gone})"
            if gone
            else ""
            if is_folder
            else " (it is not a folder)"
            if results.exists()
            else " (there is no such folder)"
        )
        raise UserError(f"{shortened(results)}/ has no runs yet{why}; `python -m bench run` makes one")
    return found


def each_once(paths: Iterable[Path]) -> None:
    """Raise `UserError` if two paths mean the same run or file: its cells would count twice."""
    found: set[Path] = set()
    for path in paths:
        if path.resolve() in found:
            raise UserError(f"{path}: named twice; name each run or file once")
        found.add(path.resolve())


def find_runs(names: Iterable[str | Path], results: Path = Path("results")) -> list[RunFolder]:
    """Find several runs; see `find_run`. Runs whose folders have the same name get their paths as names.

    Raises `UserError` also if a run is named twice.
    """
    runs = [find_run(name, results) for name in names]
    each_once(run.folder for run in runs)
    called = [run.name for run in runs]
    return [RunFolder(run.folder, str(run.folder)) if called.count(run.name) > 1 else run for run in runs]
