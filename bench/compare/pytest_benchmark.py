"""Reads and checks files of pytest-benchmark with raw data.

https://pytest-benchmark.readthedocs.io/en/latest/usage.html#commandline-options (`--benchmark-json`)
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from tl.cache import read_text
from tl.errors import UserError
from tl.strict import Seconds
from tl.text import shortened

LARGEST = 256 << 20
"""Largest size of a file, in bytes: ten million raw times."""
LARGEST_COUNT = 2**63
"""Counters are smaller, so that every program that reads our JSON has them exactly."""


class _Part(BaseModel):
    """A part of a file, of which we read some fields. Text is no number, and neither is `true`."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Stats(_Part):
    """The times of one benchmark."""

    data: list[Seconds] = Field(min_length=1)
    """Raw times. A clock that is too coarse for what it times gives 0."""


class Benchmark(_Part):
    """One benchmark, run by one process."""

    fullname: str = Field(min_length=1)
    stats: Stats
    extra_info: dict[str, Any] = {}
    """Whole numbers are exact counters, texts are conditions of the times; other values are not compared."""

    @field_validator("extra_info")
    @classmethod
    def _counts(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, one in value.items():
            if type(one) is int and abs(one) >= LARGEST_COUNT:
                raise ValueError(f"{shortened(repr(name))} has {len(str(abs(one)))} digits: counters are below 2**63")
        return value


class Processor(_Part):
    """The processor according to py-cpuinfo, which may not know it."""

    brand_raw: str = Field("", validation_alias=AliasChoices("brand_raw", "brand"))
    """Its name. Before version 6, py-cpuinfo called this field `brand`."""
    count: int | None = None


class Machine(_Part):
    """The machine. pytest-benchmark has no field `packages`; a hook in a project's conftest can add it."""

    node: str = ""
    """The machine's name in its network."""
    cpu: Processor = Processor()
    python_implementation: str = ""
    """Such as CPython."""
    python_version: str = ""
    system: str = ""
    machine: str = ""
    """Architecture."""
    packages: dict[str, str] = {}

    @property
    def conditions(self) -> dict[str, str]:
        """Conditions that times depend on; an unknown one is empty."""
        count = "" if self.cpu.count is None else str(self.cpu.count)
        system = f"{self.system} {self.machine}".strip()
        own = {"cpu": self.cpu.brand_raw, "cores": count, "system": system, "python": self.python_version}
        if self.python_implementation:  # files whose machine_info a project writes itself have none
            own["python implementation"] = self.python_implementation
        return {**self.packages, **own}


class Commit(_Part):
    """The commit that was measured."""

    id: str = ""
    dirty: bool = False


class BenchmarkFile(_Part):
    """Everything that one process measured."""

    machine_info: Machine
    commit_info: Commit = Commit()
    benchmarks: list[Benchmark] = Field(min_length=1)
    written: datetime | None = Field(None, validation_alias="datetime")
    """When the process had measured everything; None if unknown."""

    @field_validator("written", mode="before")
    @classmethod
    def _as_utc(cls, value: object) -> datetime | None:
        if value is None or value == "":
            return None
        try:
            moment = datetime.fromisoformat(value)  # type: ignore[arg-type]  # another type is an error as well
            # Older versions wrote UTC without saying so.
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"{shortened(repr(value))} is not a date and time such as 2026-01-31T12:00:00+00:00"
            ) from error

    @model_validator(mode="after")
    def _each_once(self) -> BenchmarkFile:
        names = [one.fullname for one in self.benchmarks]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"contains {shortened(twice)} twice")
        return self

    @property
    def raw_times(self) -> frozenset[tuple[str, tuple[float, ...]]]:
        """Pairs of a benchmark and its raw times: what was measured, however the file is laid out."""
        return frozenset((one.fullname, tuple(one.stats.data)) for one in self.benchmarks)

    def __str__(self) -> str:
        packages = ", ".join(f"{name} {version}" for name, version in self.machine_info.packages.items())
        parts = [self.machine_info.cpu.brand_raw or "unknown processor"]
        parts += [f"Python {self.machine_info.python_version or 'unknown'}", *([packages] if packages else [])]
        return "; ".join(parts) + self._commit

    @property
    def _commit(self) -> str:
        if self.commit_info.id in ("", "unversioned"):  # the latter is pytest-benchmark's word for no repository
            return ""
        return f", commit {self.commit_info.id[:12]}" + (" with uncommitted changes" if self.commit_info.dirty else "")


def read(path: Path) -> BenchmarkFile:
    """Read a file. Raises `UserError` if it is not from pytest-benchmark, or has no raw data."""
    text = read_text(path, LARGEST)
    try:
        data = json.loads(text)
    except RecursionError as error:
        raise UserError(f"{path}: can't be read as JSON: it is nested too deeply") from error
    except ValueError as error:
        raise UserError(f"{path}: can't be read as JSON: {error}") from error
    if not isinstance(data, dict) or not {"benchmarks", "machine_info"} <= data.keys():
        raise UserError(f"{path}: must be a run's folder or a file of pytest-benchmark (--benchmark-json)")
    if data["benchmarks"] == []:
        raise UserError(f"{path}: has no benchmarks")
    try:
        return BenchmarkFile.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where, said = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        if "stats" in first["loc"]:
            said = _about_stats(first, said)
        raise UserError(f"{path}: {where + ': ' if where else ''}{said}") from error


def _about_stats(error: ErrorDetails, said: str) -> str:
    if error["type"] in ("missing", "too_short"):
        return "no raw data: write the file with --benchmark-json, or add --benchmark-save-data"
    return f"raw time {shortened(repr(error['input']))}: {said}"
