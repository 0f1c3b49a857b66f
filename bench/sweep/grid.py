"""Grids: TOML files that say which cells to run. To add one, add a file to `bench/sweep/grids/`.

description = "…"
dataset = "auto"                    # a name, a folder, or auto

[matrix]                            # every combination is a cell
backbones = ["torchvision:resnet18"]
regimes = ["finetune", "frozen"]
devices = ["all"]                   # cpu, cuda[:i], mps, auto (the best), all
precision = ["fp32"]
execution = ["fast"]                # fast, plain (as the tutorial's own loop)
seeds = 3                           # 0, 1, 2; or a list

[train]                             # settings of all cells: fields of tl.TrainConfig
epochs = 5
protocol = "fixed"                  # fixed, tuned (of learning_rates = […]), kfold (folds = 5); one per grid
task = "classification"             # classification, multilabel, detection; one per grid

[paired]                            # how speeds are compared, beside the trainings; `paired = false` for not at all
pairs = 5                           # process pairs per comparison: its repetitions, at least 3
seconds = 6                         # time for the turns of one pair, after warm-up

[[exclude]]                         # leave out cells that match all given keys; * and ? as in file names
regime = "scratch"
backbone = "*vit*"

[[include]]                         # add cells; an axis that is not given takes the matrix's values
backbone = "timm:resnet26"
epochs = 10                         # fields of [train] are allowed too, for these cells only

[[claims]]                          # tested together with those in bench/analysis/claims.py; fields of Claim there
name = "a-third-of-the-memory"
statement = "Training only the head needs a third of the memory"
metric = "peak_memory_bytes"
regime = "frozen"                   # or kind = "head-only"; the default of `against` is "finetune"
low = 2.5                           # the claim holds if finetune ÷ frozen is at least this
as_share = true                     # show it as a share of finetune's too; `execution = "plain"` limits it to that one
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from bench.analysis.claims import CLAIMS, Claim
from bench.analysis.stats import MIN_SAMPLES
from tl.cache import decoded, read_bounded, user_path
from tl.config import TrainConfig
from tl.errors import ConfigError, nearest, not_one_of
from tl.machine import DeviceKey, pick
from tl.own_code import PARTS
from tl.regimes import REGIMES
from tl.specs import Spec
from tl.strict import Strict
from tl.text import shortened

AXES = {
    "backbone": "backbones",
    "regime": "regimes",
    "device": "devices",
    "precision": "precision",
    "execution": "execution",
    "seed": "seeds",
}
"""Axis of a cell → its key in `[matrix]`."""
ONE_PER_GRID = ("protocol", "task")
"""Settings that all cells of a grid share, so no entry of `[[include]]` has them."""
MOST_CELLS = 100_000
"""Largest number of cells of a grid, counting those that `exclude` leaves out."""
MOST_PAIRS = 1_000
"""Largest number of process pairs per comparison."""
_MOST_BYTES = 1 << 20
"""Largest file of a grid."""
SHARED_SETTINGS = tuple(name for name in TrainConfig.model_fields if name not in {*AXES, "weights", "code"})
"""Fields of `[train]`: the settings that all cells of a grid share."""


class Matrix(Strict):
    """The axes of a grid. Each combination of their values is a cell."""

    backbones: list[str] = Field(min_length=1)
    regimes: list[str] = Field(["finetune", "frozen"], min_length=1)
    devices: list[str] = Field(["all"], min_length=1)
    precision: list[str] = Field(["fp32"], min_length=1)
    execution: list[str] = Field(["fast"], min_length=1)
    seeds: int | list[int] = Field(1, description="the number of seeds, counted from 0, or a list of seeds")

    @field_validator("regimes")
    @classmethod
    def _all_regimes(cls, names: list[str]) -> list[str]:
        return _named_regimes(names)


def _named_regimes(names: Sequence[str]) -> list[str]:
    """The names of regimes, each once, with those of all regimes in the place of `all`."""
    return list(dict.fromkeys(name for given in names for name in (REGIMES if given == "all" else [given])))


class Paired(Strict):
    """How the speeds of a grid's cells are compared in turns."""

    pairs: int = Field(5, ge=MIN_SAMPLES, le=MOST_PAIRS, description="process pairs per comparison")
    seconds: float = Field(6.0, gt=0, le=3600, description="seconds for the turns of one pair, after its warm-up")


class Grid(Strict):
    """A matrix of cells and the settings that they share."""

    name: str
    description: str = ""
    dataset: str = Field("auto", min_length=1)
    matrix: Matrix
    train: dict[str, Any] = Field(default_factory=dict)
    include: list[dict[str, Any]] = Field(default_factory=list)
    exclude: list[dict[str, Any]] = Field(default_factory=list)
    claims: list[Claim] = Field(default_factory=list)
    paired: Paired | None = Field(default_factory=Paired, description="None for no paired timing")

    def with_pairs(self, pairs: int | None, *, paired: bool = True) -> Grid:
        """The grid with so many pairs, or without any. Without either argument it is the grid itself.

        Raises `ConfigError`.
        """
        if not paired:
            if pairs is not None:
                raise ConfigError(f"--pairs {pairs} and --no-paired: give one of them")
            return self.replace(paired=None)
        return self if pairs is None else self.replace(paired=(self.paired or Paired()).replace(pairs=pairs))

    @property
    def shared_settings(self) -> dict[str, Any]:
        """All training settings that are not axes, including defaults, as a manifest keeps them.

        Raises `ConfigError` if one is out of range.
        """
        settings: dict[str, Any] = {}
        for regime in REGIMES:  # each replaces the settings that it doesn't read by their defaults
            config = TrainConfig(backbone="any", regime=regime, **self.train)
            unusual = {
                name: getattr(config, name) != TrainConfig.model_fields[name].default for name in SHARED_SETTINGS
            }
            for name, value in config.model_dump(mode="json").items():
                if name in SHARED_SETTINGS and (unusual[name] or name not in settings):
                    settings[name] = value
        return {name: settings[name] for name in SHARED_SETTINGS}

    def override(self, axes: Mapping[str, Any], settings: Mapping[str, Any]) -> Grid:
        """The grid with some of its axes and settings replaced, also in its `include` entries.

        `axes` has the keys of `[matrix]`. An entry with another value of a replaced axis is dropped.
        """
        if "regimes" in axes:
            axes = {**axes, "regimes": _named_regimes(axes["regimes"])}
        kept = []
        for given in self.include:
            entry = dict(given)
            # `all` and `auto` name no specific device. With one of them on either side, the new devices apply.
            if {"all", "auto"} & {entry.get("device"), *axes.get("devices", ())} and "devices" in axes:
                entry.pop("device", None)
            named = {AXES[axis]: value for axis, value in entry.items() if axis in AXES}
            if all(_among(key, value, axes[key]) for key, value in named.items() if key in axes):
                kept.append({key: value for key, value in entry.items() if key not in settings})
        return self.replace(matrix=self.matrix.replace(**axes), train={**self.train, **settings}, include=kept)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A cell whose weights are not resolved yet."""

    config: TrainConfig
    device: str


def shipped_names() -> list[str]:
    """Names of the grids that come with the suite, sorted."""
    files = resources.files("bench.sweep").joinpath("grids").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def shipped() -> dict[str, str]:
    """Names of the grids that come with the suite → their descriptions."""
    return {name: load_grid(name).description for name in shipped_names()}


def load_grid(name: str) -> Grid:
    """Load a shipped grid by name, or a TOML file by path.

    Raises `ConfigError`, which names the file, the key and the nearest valid one.
    """
    if name.endswith(".toml") or "/" in name:
        try:
            # Through a pipe, too, as for `--grid <(a command that prints a grid)`.
            text = decoded(read_bounded(user_path("grid=", name), _MOST_BYTES, pipe=True))
        except OSError as error:
            raise ConfigError(f"grid={name!r}: can't be read: {error.strerror or error}") from error
        except ValueError as error:  # not UTF-8, or a name that can't be one
            raise ConfigError(f"grid={name!r}: can't be read: {error}") from error
    else:
        if name not in (names := shipped_names()):
            raise ConfigError(f"{not_one_of('grid', shortened(name), names)} (or the path of a .toml file)")
        text = resources.files("bench.sweep").joinpath("grids", f"{name}.toml").read_text(encoding="utf-8")
    try:
        return _parse(text, Path(name).name.removesuffix(".toml"))
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _parse(text: str, name: str) -> Grid:
    try:
        data = tomllib.loads(text)
    except ValueError as error:  # also a number with thousands of digits
        raise ConfigError(f"not valid TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError("not valid TOML: lists or tables are nested too deeply") from error
    try:
        grid = Grid(name=name, **_with_claims(_with_matrix(_with_paired(data))))
    except TypeError as error:
        raise ConfigError("name: unknown key; a grid is named after its file") from error
    check_settings("train", grid.train, SHARED_SETTINGS, others=grid.train)
    for number, entry in enumerate(grid.include, 1):
        for key in entry.keys() & ONE_PER_GRID:
            raise ConfigError(f"include[{number}].{key}: all cells of a grid have one {key}; set train.{key}")
        check_settings(f"include[{number}]", entry, [*AXES, *SHARED_SETTINGS], others=grid.train)
    for number, entry in enumerate(grid.exclude, 1):
        check_settings(f"exclude[{number}]", entry, AXES, patterns=True)
    return grid


_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "backbone": ((str,), "one name"),
    "device": ((str,), "one name"),
    "seed": ((int,), "one number"),
    "learning_rates": ((list,), "a list of numbers"),
    "compile": ((bool,), "true or false"),
    "checkpointing": ((bool,), "true or false"),
    "fold": ((bool,), "true or false"),
    "freeze_bn": ((bool,), "true or false"),
    "lookahead": ((int, str), 'a number of batches, or "auto"'),
}
"""Settings that are not a single word or number → their Python types, and those types in words for messages."""


def check_settings(
    where: str,
    given: Mapping[str, Any],
    valid: Collection[str],
    *,
    patterns: bool = False,
    others: Mapping[str, Any] | None = None,
) -> None:
    """Raise `ConfigError`, which names the place, for unknown keys and invalid values.

    `where` is empty for a call's own arguments. `others` are the other settings: some values are valid only with a
    certain protocol.
    """
    check_keys(where, given, valid)
    where = where and f"{where}."
    for key, value in given.items():
        if key in PARTS and callable(value):
            raise ConfigError(
                f"{where}{key}: is a function, and cells run in processes of their own: put it into a module and name "
                f"it, such as 'my_module:make_{key}'"
            )
        kinds, wanted = _KINDS.get(key, ((str, int, float), "one value"))
        if type(value) not in kinds:  # not isinstance, for which true is an int
            raise ConfigError(f"{where}{key}={shortened(repr(value))}: must be {wanted}")
        is_pattern = patterns and isinstance(value, str) and any(sign in value for sign in "*?[")
        if key not in ("backbone", "device") and not is_pattern:
            try:
                TrainConfig(backbone="any", **{**(others or {}), key: value})
            except ConfigError as error:
                raise ConfigError(f"{where}{error}") from error


def _among(key: str, value: Any, wanted: Any) -> bool:
    """True if an entry's value is among the new values of an axis; `key` is the axis in `[matrix]`.

    A backbone without a source, on either side, matches any source, and `cuda` matches `cuda:0`.
    """
    if isinstance(wanted, int):
        return bool(value in range(wanted))
    if key == "backbones":
        return any(Spec.parse(str(value)).matches(Spec.parse(one)) for one in wanted)
    if key == "devices":
        device, others = DeviceKey.parse(str(value)), map(DeviceKey.parse, wanted)
        return any(device.means(other) or other.means(device) for other in others)
    return any(str(value) == str(one) for one in wanted)


def _with_matrix(data: dict[str, Any]) -> dict[str, Any]:
    """`data` with its `[matrix]` parsed, so that an error message has the full path of the key."""
    given = data.get("matrix")
    if not isinstance(given, dict):
        return data
    try:
        return {**data, "matrix": Matrix(**given)}
    except ConfigError as error:
        raise ConfigError(f"matrix.{error}") from error


def _with_paired(data: dict[str, Any]) -> dict[str, Any]:
    """`data` with its `[paired]` parsed, so that an error message has the full path of the key."""
    given = data.get("paired", {})
    if given is False:
        return {**data, "paired": None}
    if not isinstance(given, dict):
        raise ConfigError(f"paired={shortened(repr(given))}: must be a table, [paired], or false")
    try:
        return {**data, "paired": Paired(**given)}
    except ConfigError as error:
        raise ConfigError(f"paired.{error}") from error


def _with_claims(data: dict[str, Any]) -> dict[str, Any]:
    """`data` with its `[[claims]]` parsed, so that an error message has the full path of the key."""
    given = data.get("claims")
    if not isinstance(given, list):
        return data
    claims: list[Claim] = []
    for number, entry in enumerate(given, 1):
        try:
            claims.append(Claim(**entry))
        except ConfigError as error:
            raise ConfigError(f"claims[{number}].{error}") from error
        except TypeError as error:
            raise ConfigError(f"claims[{number}]={entry!r}: must be a table, [[claims]]") from error
        taken = [*CLAIMS, *(claim.name for claim in claims[:-1])]
        if claims[-1].name in taken:
            raise ConfigError(
                f"claims[{number}].name={claims[-1].name!r}: another claim has that name; taken are {', '.join(taken)}"
            )
    return {**data, "claims": claims}


def check_keys(where: str, given: Mapping[str, Any], valid: Collection[str]) -> None:
    """Raise `ConfigError` for a key that is not valid, with the nearest one that is."""
    for key in given:
        if key not in valid:
            close = nearest(key, valid)
            known = f"nearest valid key: {close[0]!r}" if close else f"valid keys: {', '.join(valid)}"
            raise ConfigError(f"{where and f'{where}.'}{key}: unknown key; {known}")


def expand(
    grid: Grid, *, weights: str, spec: Callable[[str], str], devices: Callable[[], dict[str, str]]
) -> list[Planned]:
    """All cells of a grid without duplicates, ordered by seed, device, backbone, precision, execution and regime.

    A regime that trains nothing, or fits its head at once, has only a cell for the first seed (see `_reads_seed`).

    Args:
        grid: the grid.
        weights: the policy for all cells (`auto`, `pretrained`, `random`).
        spec: completes the name of a backbone, and raises for an unknown one.
        devices: returns this machine's devices, best first.

    Raises `ConfigError` for an invalid value, and for more than `MOST_CELLS` before any is made, and `DeviceError` for
    a device that this machine doesn't have.
    """
    matrix = grid.matrix
    axes: dict[str, Sequence[Any]] = {
        "seed": range(matrix.seeds) if isinstance(matrix.seeds, int) else matrix.seeds,
        "device": matrix.devices,
        "backbone": matrix.backbones,
        "precision": matrix.precision,
        "execution": matrix.execution,
        "regime": matrix.regimes,
    }
    if not axes["seed"]:
        raise ConfigError(f"seeds={matrix.seeds!r}: at least one is needed")
    have = devices()
    cells: dict[tuple[Any, ...], Planned] = {}
    shared, total = grid.shared_settings, 0

    def add(values: dict[str, Sequence[Any]], settings: dict[str, Any]) -> None:
        nonlocal total
        names = {
            **values,
            "backbone": [spec(b) for b in values["backbone"]],
            "device": _present(values["device"], have),
        }
        total += math.prod(each.stop if isinstance(each, range) else len(each) for each in names.values())
        if total > MOST_CELLS:
            count = f"{total:,}" if total < 10**15 else f"more than {10**15:,}"
            raise ConfigError(f"grid {grid.name!r}: its axes make {count} cells; at most {MOST_CELLS:,} are possible")
        for combination in product(*names.values()):
            cell = dict(zip(names, combination, strict=True))
            if any(_matches(cell, rule) for rule in grid.exclude):
                continue
            device = cell.pop("device")
            config = TrainConfig(weights=weights, **cell, **{**shared, **settings})
            if not _reads_seed(config):
                config = config.replace(seed=axes["seed"][0])  # so one cell is enough
            cells.setdefault((device, config), Planned(config=config, device=device))

    add(axes, {})
    for entry in grid.include:
        own = {axis: [entry[axis]] if axis in entry else values for axis, values in axes.items()}
        add(own, {key: value for key, value in entry.items() if key not in AXES})
    if not cells:
        raise ConfigError(f"grid {grid.name!r}: every cell is excluded")
    return list(cells.values())


def _reads_seed(config: TrainConfig) -> bool:
    """False if the seed changes nothing: nothing trains, or a head is fitted, to the same images with every seed."""
    regime = REGIMES[config.regime]
    return regime.by_steps or (regime.trains and config.protocol == "kfold")


def _present(wanted: Sequence[str], have: dict[str, str]) -> list[str]:
    named = [one for name in wanted for one in (have if name == "all" else [pick(name, have)])]
    return list(dict.fromkeys(named))


def _matches(cell: dict[str, Any], rule: dict[str, Any]) -> bool:
    """True if a cell matches a rule. A device of a cluster also matches without its kind of machine."""
    values = {axis: {str(cell[axis])} for axis in rule}
    if "device" in rule:
        values["device"].add(DeviceKey.parse(cell["device"]).name)
    return all(any(fnmatchcase(v, str(pattern)) for v in values[axis]) for axis, pattern in rule.items())
