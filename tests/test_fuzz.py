"""Fuzz tests: no input causes a traceback, a hang or a silent pass."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench import cli
from bench.compare.gate import TABLE, read_rules
from bench.execution import executors
from bench.execution.process import PRELOAD
from bench.store.records import SCHEMA_VERSION, Record
from bench.store.runs import RunFolder
from bench.sweep.grid import Grid, expand, load_grid
from tests import light
from tests.runs import record, write_run
from tl.errors import UserError
from tl.regimes import REGIMES
from tl.specs import canonical
from tl.text import visible

FUZZ = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)
NAMES = (
    "auto",
    "all",
    "cpu",
    "cuda:9",
    "timm:quick0",
    "quick1",
    "frozen",
    "kfold",
    "synthetic-mini",
    "nowhere",
    "../x",
)
ODD = ("", "*", "nan", "-1", "0", "2", "1e400", "\x00", "é", "a b", "[x]", "<i>", "%s", "{0}", "'", "a\\", "=1+1")
ACTING = ("\x1b[2J", "\x9b1m", "a\nb", "\u202etxt", "\u200b", "\u2028", "\x7f", "|`[a](b)`</script>")
"""Texts that a terminal, a page or a reader takes for something else; see `tl.text`."""
PLACES = (".", "..", "results", "~nosuchuser/x", "grid.toml/x", "-x", ".x", "x" * 300, "é" * 150, "page.html/x.md")
"""Paths and names that can't be meant."""
NUMBERS = (999_999_999, 2**63, 10**400)
WORDS = st.sampled_from(NAMES + ODD + ACTING + PLACES)
TEXT = st.one_of(WORDS, st.text(st.characters(exclude_categories=["Cs"]), max_size=8))
SCALAR = st.one_of(TEXT, st.integers(-3, 2**40), st.sampled_from(NUMBERS), st.floats(), st.booleans())
VALUES = st.recursive(
    SCALAR,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=6,
)


def keys(*known: str) -> st.SearchStrategy[str]:
    return likely(st.sampled_from(known), TEXT)


def likely(good: st.SearchStrategy[Any], other: st.SearchStrategy[Any] = VALUES) -> st.SearchStrategy[Any]:
    """Draw mostly valid values, so that inputs get beyond the first check."""
    return st.integers(0, 6).flatmap(lambda chance: other if chance == 0 else good)


def some(*words: Any) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(words), min_size=1, max_size=3)


def table(good: dict[str, st.SearchStrategy[Any]], most: int) -> st.SearchStrategy[dict[str, Any]]:
    """Draw some of the keys with suitable values, and sometimes another key or value."""
    pair = likely(
        st.sampled_from(sorted(good)).flatmap(lambda key: st.tuples(st.just(key), likely(good[key]))),
        st.tuples(TEXT, VALUES),
    )
    return st.lists(pair, max_size=most).map(dict)


def toml(value: Any) -> str:
    """Format a value as inline TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=True).replace("\\u007f", "\\u007F")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return str(value)


def lines(table: dict[str, Any]) -> str:
    return "".join(f"{toml(key)} = {toml(value)}\n" for key, value in table.items())


MATRIX = st.tuples(
    st.fixed_dictionaries({"backbones": likely(some("quick0", "timm:quick1"))}),
    table(
        {
            "regimes": some(*REGIMES),
            "devices": some("cpu", "all", "auto", "cuda"),
            "precision": some("fp32", "bf16"),
            "seeds": st.one_of(st.integers(1, 3), st.lists(st.integers(0, 5), min_size=1, max_size=2)),
        },
        2,
    ),
).map(lambda both: both[0] | both[1])
SETTINGS = {
    "epochs": st.integers(1, 5),
    "batch_size": st.integers(1, 64),
    "learning_rate": st.floats(1e-4, 1.0),
    "protocol": st.sampled_from(["fixed", "tuned", "kfold"]),
    "folds": st.integers(2, 5),
    "optimizer": st.sampled_from(["sgd", "adamw"]),
    "views": st.integers(1, 3),
    "checkpointing": st.booleans(),
    "unfreeze_every": st.integers(1, 3),
    "freeze_bn": st.booleans(),
    "layer_decay": st.floats(0.1, 1.0),
    "ema": st.floats(0.0, 0.99),
    "early_stopping": st.integers(0, 3),
}
ENTRY = {"backbone": st.just("quick2"), "regime": st.sampled_from(list(REGIMES)), "seed": st.integers(0, 3)} | SETTINGS
CLAIM = {
    "name": st.just("mine"),
    "statement": st.just("It is so"),
    "metric": st.sampled_from(["peak_memory_bytes", "epoch_seconds"]),
    "regime": st.just("frozen"),
    "low": st.floats(0.1, 5),
}


DEEP = st.builds(
    lambda start, inner, times, end: start + inner * times + end,
    st.sampled_from(["a = ", "[matrix]\nseeds = ", "[train]\nepochs = ", "[", "[[", "a"]),
    st.sampled_from(
        ["[", "{a = ", "9", "-", ".a", '"'],
    ),
    st.sampled_from([100, 4_000, 10_000]),
    st.sampled_from(["", " = 1", "]"]),
)
"""Values nested deeply, numbers of thousands of digits, and the like."""


@st.composite
def grids(draw: st.DrawFn) -> str:
    """Draw the text of a grid, of nearly a grid, or of none."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.one_of(TEXT, DEEP))
    text = lines(draw(table({"dataset": st.just("synthetic"), "description": TEXT}, 2)))
    text += "[matrix]\n" + lines(draw(MATRIX))
    text += "[train]\n" + lines(draw(table(SETTINGS, 2))) if draw(st.booleans()) else ""
    for name in draw(st.lists(keys("include", "exclude", "claims"), max_size=2)):
        text += f"[[{toml(name)}]]\n" + lines(draw(table(CLAIM if name == "claims" else ENTRY, 5)))
    return text


@FUZZ
@given(text=grids())
def test_grid_files(text: str, tmp_path: Path) -> None:
    """A file gives a grid of valid configs, or a one-line error."""
    path = tmp_path / "grid.toml"
    path.write_bytes(text.encode())
    names = {"timm": [spec.partition(":")[2] for spec in light.SPECS], "torchvision": ["resnet18"]}
    try:
        grid = load_grid(str(path))
        cells = expand(
            grid,
            weights="random",
            spec=lambda name: canonical(name, names),
            devices=lambda: {"cpu": "x", "cuda:0": "y"},
        )
    except UserError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert isinstance(grid, Grid) and cells and all(cell.config.regime in REGIMES for cell in cells)


@st.composite
def damages(draw: st.DrawFn) -> Any:
    """Draw a way to damage the bytes of a file."""
    kind = draw(st.sampled_from(["cut", "flip", "insert", "replace", "value", "empty"]))
    return kind, draw(st.floats(0, 1)), draw(st.binary(min_size=1, max_size=6)), draw(VALUES)


def damaged(text: bytes, damage: tuple[str, float, bytes, Any]) -> bytes:
    kind, where, some, value = damage
    place = int(where * (len(text) - 1))
    if kind == "cut":
        return text[:place]
    if kind == "flip":
        return text[:place] + bytes([text[place] ^ some[0]]) + text[place + 1 :]
    if kind == "insert":
        return text[:place] + some + text[place:]
    if kind == "replace":
        return some
    return _with_value(text, where, [] if kind == "empty" else value)


def _with_value(text: bytes, where: float, value: Any) -> bytes:
    """Replace one value of JSON, at any depth."""
    data, places = json.loads(text), []

    def walk(node: Any) -> None:
        for key in list(node if isinstance(node, dict) else range(len(node))):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(data)
    node, key = places[int(where * (len(places) - 1))]
    node[key] = value
    return json.dumps(data).encode()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    records = [record("timm:quick0", regime, seed=seed) for regime in ("finetune", "frozen") for seed in range(3)]
    return write_run(tmp_path_factory.mktemp("runs") / "small", records)


@FUZZ
@given(damage=damages(), sealed=st.booleans())
def test_records(damage: Any, sealed: bool, small: RunFolder, tmp_path: Path) -> None:
    """A record is read as it was written, or reported as damaged. A changed one never counts as a result.

    Records of older versions have no digest, so a changed value isn't noticed, but an impossible record is.
    """
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(small.folder, folder)
    run, before = RunFolder(folder), small.records()
    path = sorted((folder / "cells").iterdir())[0]
    text = path.read_bytes()
    if not sealed:
        text = re.sub(rb' "digest": "[0-9a-f]{64}",\n', b"", text, count=1)
        text = text.replace(b'"schema_version": %d' % SCHEMA_VERSION, b'"schema_version": 4')
    changed = damaged(text, damage)
    path.write_bytes(changed)
    sound, broken = run.survey()
    assert {*sound, *(each.stem for each in broken)} == set(before)
    assert all("\n" not in reason for reason in broken.values())
    assert {key: sound[key] for key in sound if key != path.stem} == {k: v for k, v in before.items() if k != path.stem}
    if sealed and changed.replace(b"\r\n", b"\n") != text:
        assert path in broken
    if path.stem in sound:
        assert isinstance(sound[path.stem], Record) and sound[path.stem].cell == before[path.stem].cell
    else:
        with pytest.raises(UserError):
            run.records()


@FUZZ
@given(damage=damages(), sealed=st.booleans())
def test_manifests(damage: Any, sealed: bool, small: RunFolder, tmp_path: Path) -> None:
    """A manifest is read as it was written, or gives a one-line error."""
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    text = (small.folder / "manifest.json").read_bytes()
    if not sealed:
        text = re.sub(rb'\A{\n "digest": "[0-9a-f]{64}",\n', b"{\n", text)
        text = text.replace(b'"schema_version": %d' % SCHEMA_VERSION, b'"schema_version": 4')
    changed = damaged(text, damage)
    (folder / "manifest.json").write_bytes(changed)
    try:
        manifest = RunFolder(folder).manifest()
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert not sealed or changed.replace(b"\r\n", b"\n") == text
        assert sealed is False or manifest == small.manifest()


KINDS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "link to nothing": lambda path: path.symlink_to("nowhere"),
    "link in a circle": lambda path: path.symlink_to(path.name),
    "link to a pipe": lambda path: (os.mkfifo(path.with_suffix(".fifo")), path.symlink_to(f"{path.stem}.fifo")),
    "socket": lambda path: _bind(path),
}


def _bind(path: Path) -> None:
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@FUZZ
@given(
    kind=st.sampled_from(sorted(KINDS)),
    part=st.sampled_from(["manifest.json", "cell", "cells", ".holder", ".lock", "logs"]),
    words=st.sampled_from(
        [
            *(["show", "small"], ["export", "small", "--raw"], ["claims", "small"], ["compare", "small", "other"]),
            *(["report", "--index"], ["run", "--grid", "grid.toml", "--name", "small", "--dry-run"]),
        ]
    ),
)
def test_kinds_of_files(kind: str, part: str, words: list[str], at_work: Path) -> None:
    """A part of a run that is no regular file is neither read nor waited for, and the command ends as documented."""
    folder = at_work / "results" / "small"
    kept = at_work / "kept"
    shutil.copytree(folder, kept)
    path = sorted((folder / "cells").iterdir())[0] if part == "cell" else folder / part
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    KINDS[kind](path)
    try:
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            patch.setattr(sys, "argv", ["bench", *words])
            with pytest.raises(SystemExit) as ended:
                cli.main()
        said = err.getvalue()
        assert ended.value.code in (0, 2) and "Traceback" not in said, (kind, part, words, said)
        assert ended.value.code == 0 or (said.startswith("error: ") and said.count("\n") == 1), (
            kind,
            part,
            words,
            said,
        )
    finally:
        shutil.rmtree(folder)
        kept.rename(folder)


RULE = {
    "metric": st.sampled_from(["epoch_seconds", "peak_memory_bytes", "val_accuracy_best"]),
    "factor": st.floats(1.01, 3),
    "cells": st.sampled_from(["*", "*frozen*"]),
    "points": st.floats(0.1, 20),
    "at_most": st.floats(0, 1e9),
    "at_least": st.floats(0, 1e9),
}
OPTION = likely(
    st.builds(
        lambda metric, rest: f"{metric}: " + ", ".join(f"{key}={value}" for key, value in rest.items()),
        keys("epoch_seconds", "peak_memory_bytes"),
        table({key: value for key, value in RULE.items() if key != "metric"}, 3),
    ),
    TEXT,
)


@FUZZ
@given(tables=likely(st.lists(table(RULE, 3), max_size=2)), option=OPTION)
def test_gate_thresholds(tables: Any, option: str, tmp_path: Path) -> None:
    """Options and files give rules, or a one-line error."""
    path = tmp_path / "rules.toml"
    if isinstance(tables, list) and all(isinstance(each, dict) for each in tables):
        path.write_bytes("".join(f"[[{TABLE}.rule]]\n{lines(each)}" for each in tables).encode())
    else:
        path.write_bytes(f"[tool.bench]\ngate = {toml(tables)}\n".encode())
    for file, given_options in ((path, []), (None, [option])):
        try:
            rules = read_rules(file, given_options, folder=tmp_path / "none")
        except UserError as error:
            assert str(error) and "\n" not in str(error)
        else:
            assert len(rules) == (len(tables) if file else 1), "none is dropped"


RUNS = st.sampled_from(["small", "other", "results/small"])
FILES = st.sampled_from(["page.html", "page.md", "page.json"])
METRICS = st.sampled_from(["epoch_seconds", "peak_memory_bytes", "val_accuracy_best"])
FLAG = st.just("")
NUMBER = st.integers(1, 3).map(str)
COMMANDS: dict[str, dict[str, st.SearchStrategy[str]]] = {
    "run": {
        "--grid": st.just("grid.toml"),
        "--backbone": st.sampled_from(["quick0", "timm:quick1"]),
        "--regime": st.sampled_from(list(REGIMES)),
        "--device": st.sampled_from(["cpu", "auto", "all"]),
        "--seeds": st.one_of(NUMBER, st.sampled_from(NUMBERS).map(str)),
        "--epochs": NUMBER,
        "--batch-size": NUMBER,
        "--protocol": st.sampled_from(["fixed", "tuned", "kfold"]),
        "--data": st.just("synthetic-mini"),
        "--weights": st.sampled_from(["auto", "random"]),
        "--weights-dir": st.just("results"),
        "--name": st.sampled_from(["small", "new"]),
        "--out": st.just("results"),
        "--reports": st.just("reports"),
        "--until-decided": FLAG,
        "--within": NUMBER,
        "--max-pairs": st.just("5"),
        "--budget": st.sampled_from(["10m", "1.5h"]),
        "--timeout": NUMBER,
        "--memory-limit": st.just("1GiB"),
        "--executor": st.sampled_from(["process", "inline"]),
        "--ray-address": st.just("auto"),
        **dict.fromkeys(["--fresh", "--wait", "--live", "--no-report", "--skip-larger-after-oom"], FLAG),
    },
    "export": {"--format": st.sampled_from(["csv", "json", "latex"]), "--output": FILES, "--raw": FLAG},
    "claims": {"--format": st.sampled_from(["text", "md", "json"])},
    "compare": {
        "--by": st.sampled_from(["run", "regime", "seed"]),
        "--base": st.sampled_from(["frozen", "0"]),
        "--metric": METRICS,
        "--format": st.sampled_from(["text", "md", "html", "json"]),
        "--output": FILES,
    },
    "gate": {"--rule": OPTION, "--metric": METRICS, "--format": st.just("json"), "--output": FILES},
    "list": {"grids": FLAG, "regimes": FLAG, "datasets": FLAG},
    "show": {"--help": FLAG, "--format": st.sampled_from(["text", "md"])},
}
SIDES = {"compare": 2, "gate": 2, "export": 1, "claims": 1, "show": 1}


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """Draw command lines, mostly with one mistake or none."""
    argument = likely(RUNS, TEXT.filter(lambda text: "\x00" not in text))
    name = draw(st.sampled_from(list(COMMANDS)))
    words = [name, *(draw(argument) for _ in range(SIDES.get(name, 0)))]
    words += ["--grid", "grid.toml", "--dry-run"] if name == "run" else []
    for option in draw(st.lists(st.sampled_from(list(COMMANDS[name])), max_size=3, unique=True)):
        value = draw(likely(COMMANDS[name][option], TEXT.filter(lambda text: "\x00" not in text and text != "ray")))
        words += [option, value] if value else [option]
    return words


@pytest.fixture
def at_work(small: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a run and a grid whose cells run without torch."""
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(executors.EXECUTORS, "process", lambda address: light.LightExecutor(PRELOAD))
    for name in ("small", "other"):
        shutil.copytree(small.folder, tmp_path / "results" / name)
    grid = 'dataset = "synthetic-mini"\npaired = false\n[matrix]\nbackbones = ["quick0"]\n'
    (tmp_path / "grid.toml").write_text(grid)
    yield tmp_path


@settings(FUZZ, max_examples=80)
@given(words=command_lines())
def test_command_lines(words: list[str], at_work: Path) -> None:
    """The exit status is a documented one. Status 2 has a one-line error, and a gate passes only if it says so."""
    out, err = io.StringIO(), io.StringIO()
    before = {path: path.read_bytes() for path in (at_work / "results").rglob("*.json")}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["bench", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    said = err.getvalue()
    assert ended.value.code in (0, 1, 2, 3, 4) and "Traceback" not in said, (words, said)
    if ended.value.code == 2:
        assert said.startswith("error: ") and said.count("\n") == 1, (words, said)
    for text in (out.getvalue(), said):
        assert visible(text, keep="\n") == text, (words, "nothing acts on the terminal")
    if words[0] == "gate" and ended.value.code == 0:
        assert "Gate passed" in out.getvalue()
    assert {path: path.read_bytes() for path in before} == before, "results are unchanged"
