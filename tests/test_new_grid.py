"""`bench new-grid`: the file that it writes is a grid, every line of it may be used, and its schema fits all grids."""

from __future__ import annotations

import json
import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from bench.sweep.grid import AXES, SHARED_SETTINGS, Matrix, expand, load_grid, shipped
from bench.sweep.new_grid import SCHEMA, schema, text, write_grid
from tests.commands import here as command
from tl.config import TrainConfig
from tl.errors import UserError

VALIDATOR = Draft202012Validator(schema())


def in_use(given: str) -> str:
    """A grid's text with the lines in use that it has as comments."""
    return re.sub(r"(?m)^# (\[|\w+ = )", r"\1", given)


def test_the_file_is_a_grid_and_so_is_every_line_of_it(tmp_path: Path) -> None:
    """It has every key, with its default where it isn't an example."""
    path, beside = write_grid(str(tmp_path / "my.toml"))
    grid = load_grid(str(path))
    assert grid.matrix.regimes == ["finetune", "frozen"] and grid.train == {"epochs": 5}
    assert json.loads(beside.read_text()) == schema() and beside.name == SCHEMA
    assert path.read_text().startswith(f"#:schema ./{SCHEMA}\n") and max(map(len, path.read_text().splitlines())) <= 120
    everything = in_use(path.read_text())
    path.write_text(everything)
    whole = load_grid(str(path))
    assert whole.train.keys() == set(SHARED_SETTINGS) and len(whole.include) == len(whole.exclude) == 1
    assert len(whole.claims) == 1 and whole.paired == grid.paired
    assert tomllib.loads(everything)["matrix"].keys() == Matrix.model_fields.keys() == set(AXES.values())
    for name, value in whole.train.items():
        default = TrainConfig.model_fields[name].default
        assert name in {"epochs", "fold"} or value == (list(default) if isinstance(default, tuple) else default)


def test_the_schema_fits_all_grids() -> None:
    """Those that come with the suite, and the new one with all of its lines."""
    Draft202012Validator.check_schema(schema())
    folder = resources.files("bench.sweep").joinpath("grids")
    texts = [folder.joinpath(f"{name}.toml").read_text(encoding="utf-8") for name in shipped()]
    for each in (*texts, text("my.toml"), in_use(text("my.toml"))):
        assert not [*VALIDATOR.iter_errors(tomllib.loads(each))]


MATRIX = {"backbones": ["a"]}
CLAIM = {"name": "x", "statement": "y", "metric": "epoch_seconds", "regime": "frozen", "low": 2.0}
WRONG: dict[str, dict[str, Any]] = {
    "a key": {"matrix": MATRIX, "trian": {}},
    "a setting": {"matrix": MATRIX, "train": {"epoch": 3}},
    "a name": {"matrix": MATRIX | {"regimes": ["frozn"]}},
    "a protocol": {"matrix": MATRIX, "train": {"protocol": "kfolds"}},
    "an optimiser": {"matrix": MATRIX, "train": {"optimizer": "adam"}},
    "a number": {"matrix": MATRIX, "train": {"epochs": 0}},
    "a task of one cell": {"matrix": MATRIX, "include": [{"task": "detection"}]},
    "pairs": {"matrix": MATRIX, "paired": True},
    "no matrix": {"train": {}},
    "a name of one cell": {"matrix": MATRIX, "include": [{"regime": "frozn"}]},
    "all of one cell": {"matrix": MATRIX, "include": [{"regime": "all"}]},
    "a name that is left out": {"matrix": MATRIX, "exclude": [{"regime": "frozn"}]},
    "a seed": {"matrix": MATRIX, "include": [{"seed": -1}]},
    "a number for a name": {"matrix": MATRIX, "include": [{"backbone": 18}]},
    "a metric": {"matrix": MATRIX, "claims": [CLAIM | {"metric": "memory"}]},
    "a regime of a claim": {"matrix": MATRIX, "claims": [CLAIM | {"regime": "frozn"}]},
    "a kind of a claim": {"matrix": MATRIX, "claims": [{**CLAIM, "kind": "head"}]},
    "the other side of a claim": {"matrix": MATRIX, "claims": [CLAIM | {"against": "fine-tuning"}]},
    "own code without a name": {"matrix": MATRIX, "train": {"optimizer": ":"}},
}


@pytest.mark.parametrize("name", WRONG)
def test_the_schema_finds_mistakes(name: str, tmp_path: Path) -> None:
    """As an editor marks them, and as a run refuses them."""
    assert [*VALIDATOR.iter_errors(WRONG[name])]
    path = tmp_path / "g.toml"
    path.write_text(toml(WRONG[name]), encoding="utf-8")
    with pytest.raises(UserError):
        expand(load_grid(str(path)), weights="auto", spec=str, devices=lambda: {"cpu": "CPU"})


def toml(content: dict[str, Any]) -> str:
    """A grid's content as a file has it: JSON's numbers, texts and lists are TOML's, too."""
    lines = [f"{key} = {_inline(value)}" for key, value in content.items()]
    return "\n".join(lines)


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {_inline(one)}' for key, one in value.items())}}}"
    return f"[{', '.join(map(_inline, value))}]" if isinstance(value, list) else json.dumps(value)


def test_patterns_are_no_mistake(tmp_path: Path) -> None:
    """Where names may be patterns."""
    content = {
        "matrix": MATRIX,
        "exclude": [{"regime": "last-*", "backbone": "*vit*"}],
        "claims": [CLAIM | {"regime": "*-only"}],
    }
    assert not [*VALIDATOR.iter_errors(content)]
    (tmp_path / "g.toml").write_text(toml(content), encoding="utf-8")
    assert load_grid(str(tmp_path / "g.toml")).claims[0].regime == "*-only"


def test_code_of_ones_own_is_no_mistake() -> None:
    train = {"optimizer": "my_module:make_optimizer", "lookahead": "auto", "fold": False}
    assert not [*VALIDATOR.iter_errors({"matrix": MATRIX, "train": train})]


def test_nothing_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is there stays; a name that is no grid's is refused; the command says what comes next."""
    monkeypatch.chdir(tmp_path)
    done = command("new-grid", "my.toml")
    assert done.returncode == 0 and "next: python -m bench run --grid my.toml --dry-run" in done.stdout
    quoted = command("new-grid", "my own.toml")
    assert "next: python -m bench run --grid 'my own.toml' --dry-run" in quoted.stdout, "it can be pasted"
    (tmp_path / "my own.toml").unlink()
    before = (tmp_path / "my.toml").read_text()
    again = command("new-grid", "my.toml")
    assert again.returncode == 2 and again.stderr == "error: my.toml: is there already; choose another name\n"
    assert (tmp_path / "my.toml").read_text() == before
    for name, said in (
        ("my", "must end with .toml"),
        ("a\nb.toml", "hidden characters"),
        ("my.toml/a.toml", "can't be written: Not a directory"),
    ):
        with pytest.raises(UserError, match=said):
            write_grid(name)
    (tmp_path / SCHEMA).write_text("{}")
    other = command("new-grid", "other.toml")
    assert other.returncode == 2 and "isn't what this command writes" in other.stderr
    assert (tmp_path / SCHEMA).read_text() == "{}"
    assert sorted(path.name for path in tmp_path.iterdir()) == [SCHEMA, "my.toml"]
