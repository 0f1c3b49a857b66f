"""Reads and checks files of pytest-benchmark with raw data.

https://pytest-benchmark.readthedocs.io/en/latest/usage.html#commandline-options (`--benchmark-json`)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from tl.errors import UserError

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Stats(BaseModel):
    """The times of one benchmark."""

    data: list[Seconds] = Field(min_length=1)
    """Raw times, in seconds."""


class Benchmark(BaseModel):
    """One benchmark, run by one process."""

    fullname: str = Field(min_length=1)
    stats: Stats
    extra_info: dict[str, Any] = {}
    """Whole numbers are exact counters, texts are conditions of the times; other values are not compared."""


class Processor(BaseModel):
    """The processor according to py-cpuinfo, which may not know it."""

    brand_raw: str = ""
    count: int | None = None


class Machine(BaseModel):
    """The machine. pytest-benchmark has no field `packages`; a hook in a project's conftest can add it."""

    cpu: Processor = Processor()
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
        return {**self.packages, **own}


class Commit(BaseModel):
    """The commit that was measured."""

    id: str = ""
    dirty: bool = False


class BenchmarkFile(BaseModel):
    """Everything that one process measured."""

    machine_info: Machine
    commit_info: Commit = Commit()
    benchmarks: list[Benchmark] = Field(min_length=1)

    @model_validator(mode="after")
    def _each_once(self) -> BenchmarkFile:
        names = [one.fullname for one in self.benchmarks]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"contains {twice} twice")
        return self

    def __str__(self) -> str:
        packages = ", ".join(f"{name} {version}" for name, version in self.machine_info.packages.items())
        parts = [self.machine_info.cpu.brand_raw or "unknown processor"]
        parts += [f"Python {self.machine_info.python_version or 'unknown'}", *([packages] if packages else [])]
        return "; ".join(parts) + self._commit

    @property
    def _commit(self) -> str:
        if not self.commit_info.id:
            return ""
        return f", commit {self.commit_info.id[:12]}" + (" with uncommitted changes" if self.commit_info.dirty else "")


def read(path: Path) -> BenchmarkFile:
    """Read a file. Raises `UserError` if it is not from pytest-benchmark, or has no raw data."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
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
            said = f"no raw data of times above 0 ({said}): write the file with --benchmark-json, or --save-data"
        raise UserError(f"{path}: {where + ': ' if where else ''}{said}") from error
