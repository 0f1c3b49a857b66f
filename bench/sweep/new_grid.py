"""Writes a grid file to begin with: a comment for each key, and a JSON schema that editors check and complete it by."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from bench.analysis.claims import KINDS, Claim
from bench.analysis.metrics import METRICS
from bench.sweep.grid import AXES, ONE_PER_GRID, SHARED_SETTINGS, Matrix, Paired
from tl.cache import read_text, to_json, user_path, write_atomic
from tl.config import TABLES, TrainConfig
from tl.errors import UserError
from tl.own_code import PARTS
from tl.text import visible

_TITLE = "Grid of tl-bench"
SCHEMA = "grid.schema.json"
"""The file beside a grid that describes it for editors."""
_AXES: dict[str, list[str]] = {key: list(TABLES[axis]) for axis, key in AXES.items() if axis in TABLES}
"""Key of `[matrix]` → the names that its list may have, where that is a table."""
_AXES["regimes"].insert(0, "all")
_EXAMPLES: dict[str, Any] = {"epochs": 5, "fold": True}
"""Setting → the value that stands in the file, where it isn't the default."""
_HEAD = """\
#:schema ./{schema}
# A grid says which cells `python -m bench run --grid {name}` runs. Lines like `# pairs = 5` show defaults or examples;
# remove the "# " to use them.

description = "my grid"
dataset = "auto"  # a folder of images, a name of `python -m bench list datasets`, or auto: the ants and bees

[matrix]  # every combination of these is a cell
backbones = ["timm:tf_efficientnet_lite0", "torchvision:resnet18"]  # `python -m bench list backbones TEXT` finds more
regimes = ["finetune", "frozen"]  # `python -m bench list regimes` says what each trains
seeds = 1  # the number of seeds, or a list of them; with three or more, accuracies are compared over seeds too
# devices = ["all"]  # cpu, cuda, cuda:0, mps, auto (the best), all
# precision = ["fp32"]  # {precision}
# execution = ["fast"]  # {execution}

[paired]  # speeds are compared in pairs of processes that take turns; `paired = false` above [matrix] turns this off
# pairs = {pairs}  # process pairs of each comparison
# seconds = {seconds}  # seconds for the turns of one pair

[train]  # settings that all cells share
"""
_TAIL = """
# [[include]]  # adds cells; an axis that isn't given here takes its values from [matrix]
# backbone = "timm:resnet26"
# epochs = 10  # settings of [train] are possible too, for these cells alone

# [[exclude]]  # leaves out the cells that fit all of these; * and ? work as in file names
# regime = "scratch"
# backbone = "*vit*"

# [[claims]]  # a statement that is tested beside the suite's own; `python -m bench claims` has the verdict
# name = "a-third-of-the-memory"
# statement = "Training only the head needs a third of the memory"
# metric = "peak_memory_bytes"  # a column of `python -m bench export`
# regime = "frozen"  # compared with `against`, by default "finetune"
# low = 2.5  # the claim holds if finetune ÷ frozen is at least this; `high` is the largest allowed value
"""


def write_grid(name: str) -> tuple[Path, Path]:
    """Write a grid file and the schema beside it. Returns both paths.

    Raises `UserError` if the name doesn't end with .toml or has hidden characters, if there is such a file, or if it
    can't be written.
    """
    path = user_path("FILE=", name)
    if path.suffix != ".toml":
        raise UserError(f"FILE={name!r}: the name of a grid's file must end with .toml")
    if visible(path.name) != path.name:
        raise UserError(f"FILE={name!r}: has hidden characters, such as controls; leave them out")
    if path.exists():
        raise UserError(f"{path}: is there already; choose another name")
    schema_path = path.with_name(SCHEMA)
    if schema_path.exists() and not _is_ours(schema_path):
        raise UserError(f"{schema_path}: is there already, and isn't what this command writes; choose another folder")
    try:
        write_atomic(schema_path, to_json(schema()))
        write_atomic(path, text(path.name))
    except OSError as error:
        raise UserError(f"{path}: can't be written: {error.strerror or error}") from error
    return path, schema_path


def _is_ours(path: Path) -> bool:
    try:
        return bool(json.loads(read_text(path, 1 << 20)).get("title") == _TITLE)
    except (UserError, ValueError, AttributeError):
        return False


def text(name: str) -> str:
    """The content of a grid file of that name."""
    paired = {key: field.default for key, field in Paired.model_fields.items()}
    axes = {key: ", ".join(_AXES[key]) for key in ("precision", "execution")}
    head = _HEAD.format(schema=SCHEMA, name=name, **paired, **axes)
    return f"{head}{''.join(map(_setting, SHARED_SETTINGS))}{_TAIL}"


def _setting(name: str) -> str:
    """The lines of a setting: what it is, and its value, which is a comment too unless it differs from the default."""
    field = TrainConfig.model_fields[name]
    shown = _EXAMPLES.get(name, field.default)
    words = f"{name}: {_values(name) or field.description or _bounds(name)}"
    lines = textwrap.wrap(words, 117, initial_indent="# ", subsequent_indent="#   ")
    mark = "" if name == "epochs" else "# "
    return "\n".join([*lines, f"{mark}{name} = {_toml(shown)}", ""])


def _values(name: str) -> str:
    """The values of a setting that has a table of them; empty for others."""
    return ", ".join(TABLES.get(name, ())) + (", or your own: MODULE:NAME" if name in PARTS else "")


def _bounds(name: str) -> str:
    """The bounds of a number, in words."""
    words = {
        "minimum": "at least {}",
        "exclusiveMinimum": "above {}",
        "maximum": "at most {}",
        "exclusiveMaximum": "below {}",
    }
    found = TrainConfig.model_json_schema()["properties"][name]
    return " and ".join(each.format(found[key]) for key, each in words.items() if key in found)


def _toml(value: Any) -> str:
    """A value as TOML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def schema() -> dict[str, Any]:
    """The JSON schema (2020-12) of a grid file: its keys, their types, and the names that they may have."""
    of_train = TrainConfig.model_json_schema()["properties"]
    settings = {name: _property(name, of_train[name]) for name in SHARED_SETTINGS}
    matrix = Matrix.model_json_schema()
    for key, names in _AXES.items():
        matrix["properties"][key]["items"] = {"type": "string", "enum": names}
    one_of_axis = {axis: _one_of(axis) for axis in AXES}
    patterns = {axis: _or_pattern(one) if axis in TABLES else one for axis, one in one_of_axis.items()}
    own = {name: value for name, value in settings.items() if name not in ONE_PER_GRID}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": _TITLE,
        **_closed(
            {
                "description": {"type": "string", "description": "what the grid is for, in a line"},
                "dataset": {
                    "type": "string",
                    "minLength": 1,
                    "description": "a folder of images, a data set's name, or auto (the ants and bees)",
                },
                "matrix": matrix,
                "train": _closed(settings),
                "paired": {"anyOf": [Paired.model_json_schema(), {"const": False}]},
                "include": {"type": "array", "items": _closed({**one_of_axis, **own})},
                "exclude": {"type": "array", "items": _closed(patterns)},
                "claims": {"type": "array", "items": _claim()},
            }
        ),
        "required": ["matrix"],
    }


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _one_of(axis: str) -> dict[str, Any]:
    """The schema of one value of an axis."""
    if axis == "seed":
        return {"type": "integer", "minimum": 0}
    return {"enum": list(TABLES[axis])} if axis in TABLES else {"type": "string"}


def _or_pattern(names: dict[str, Any]) -> dict[str, Any]:
    """The schema of a name, or of a pattern of names, where `names` is that of a name."""
    return {"anyOf": [names, {"type": "string", "pattern": r"[*?\[]"}]}


def _claim() -> dict[str, Any]:
    """The schema of a claim, with the names that its fields may have."""
    found = Claim.model_json_schema()
    regime = _one_of("regime")
    names = {
        "metric": {"enum": list(METRICS)},
        "regime": _or_pattern(regime),
        "against": regime,
        "kind": {"enum": list(KINDS)},
        "execution": _one_of("execution"),
    }
    for name, wanted in names.items():
        found["properties"][name] |= {"anyOf": wanted["anyOf"]} if "anyOf" in wanted else wanted
    return found


def _property(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """The schema of a setting, with its names where it has a table of them."""
    if name not in TABLES:
        return found
    names = {"enum": list(TABLES[name])}
    return {**found, **({"anyOf": [names, {"pattern": ".:."}]} if name in PARTS else names)}
