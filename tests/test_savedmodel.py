"""SavedModels of TensorFlow: the process that runs them, by a stand-in for TensorFlow, and TensorFlow where it is."""

from __future__ import annotations

import gc
import io
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tl
from tests.commands import here
from tl import savedmodel
from tl import savedmodel_process as process
from tl.datasets import Splits
from tl.errors import ConfigError, NotApplicable
from tl.regimes import REGIMES
from tl.savedmodel import PYTHON

STAND_IN = """
import json, os, pathlib
import numpy as np
__version__ = "0"
class Kind:
    def __init__(self, name):
        self.name = name
float32, uint8 = Kind("float32"), Kind("uint8")
constant = np.asarray
class Shape(list):
    rank = 4
    def as_list(self):
        return list(self)
class Spec:
    def __init__(self, shape, dtype):
        self.shape, self.dtype = Shape(shape), {"float32": float32, "uint8": uint8}[dtype]
class Value(np.ndarray):
    def numpy(self):
        return np.asarray(self)
class Function:
    variables = [np.zeros((3, 5)), np.zeros(5)]
    def __init__(self, said):
        self.said = said
        shape, dtype = said.get("shape", [None, 16, 16, 3]), said.get("dtype", "float32")
        self.structured_input_signature = ((), {name: Spec(shape, dtype) for name in said.get("inputs", ["x"])})
    def __call__(self, x):
        assert x.dtype == np.float32 and x.shape[1:] == (16, 16, 3), x.shape
        if self.said.get("ends"):
            os._exit(1)
        if self.said.get("raises"):
            raise ValueError("not\\ntoday")
        features = x.mean((1, 2)) @ np.arange(15, dtype=np.float32).reshape(3, 5)
        made = {"features": features, "map": x} | ({"logits": features} if self.said.get("logits") else {})
        return {name: value.view(Value) for name, value in made.items()}
class saved_model:
    @staticmethod
    def load(folder):
        said = json.loads((pathlib.Path(folder) / "saved_model.pb").read_text())
        loaded = type("Loaded", (), {})()
        loaded.signatures = {name: Function(said) for name in said.get("signatures", ["serving_default"])}
        return loaded
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the SavedModel `tiny`, for a stand-in of TensorFlow that is its own interpreter's."""
    (tmp_path / "path" / "tensorflow").mkdir(parents=True)
    (tmp_path / "path" / "tensorflow" / "__init__.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    monkeypatch.setenv(PYTHON, sys.executable)
    make(tmp_path / "tiny")
    return tmp_path


def make(folder: Path, **said: Any) -> Path:
    """Write what the stand-in loads."""
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_text(json.dumps(said))
    (folder / "variables" / "variables.index").write_text("x")
    return folder


@pytest.mark.parametrize("regime", REGIMES)
def test_regimes_that_extract_features_once(regime: str, models: Path, mini: Splits) -> None:
    """Can use a SavedModel. Others are skipped with the reason, and start no process."""
    config = tl.TrainConfig(backbone="savedmodel:tiny", regime=regime)
    if REGIMES[regime].features != "once":
        with pytest.raises(NotApplicable, match="only regimes that extract features once can use it"):
            tl.train_model(config, mini, device="cpu")
        return
    result = tl.train_model(config, mini, device="cpu")
    assert result.weights.source == "folder" and dict(result.config.code).keys() == {"backbone"}
    assert "without the process with TensorFlow" in result.memory_method
    if regime == "cached":
        assert result.total_params == 3 * 5 + 5 + 5 * 2 + 2


def test_features_are_those_of_the_process(models: Path) -> None:
    """It gets images with channels last and values in [0, 1], in batches of any size, and ends with its module."""
    made = tl.make_backbone("savedmodel:tiny")
    assert (made.width, made.preprocessing.size, made.preprocessing.resize) == (5, 16, 18)
    assert (made.preprocessing.mean, made.preprocessing.std) == ((0, 0, 0), (1, 1, 1))
    images = torch.rand(7, 3, 16, 16)
    wanted = images.mean((2, 3)) @ torch.arange(15.0).view(3, 5)
    for count in (7, 1):
        assert torch.allclose(made.module(images[:count].contiguous(memory_format=torch.channels_last)), wanted[:count])
    end: Any = vars(made.module)["_end"]
    running = end.peek()[2][0]
    assert running.poll() is None
    del made
    gc.collect()
    assert running.poll() is not None


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "several": ({"signatures": ["a", "b"]}, "has no signature 'serving_default'; it has a, b"),
    "pairs": ({"inputs": ["x", "y"]}, r"takes 2 inputs \(x, y\), not images alone"),
    "integers": ({"dtype": "uint8"}, r"takes \[None, 16, 16, 3\] uint8, not square images"),
    "tokens": ({"shape": [None, 16, 3]}, r"takes \[None, 16, 3\] float32, not square images"),
    "two": ({"logits": True}, r"gives features \[1, 5\], map .*, logits \[1, 5\] for 1 images, not one table"),
    "raises": ({"raises": True}, "ValueError: not today"),
    "ends": ({"ends": True}, "its process with TensorFlow has ended: out of memory?"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_model_is_one_line(name: str, models: Path) -> None:
    """That names it and says what is wrong."""
    said, why = WRONG[name]
    make(models / name, **said)
    with pytest.raises(ConfigError, match=f"backbone='savedmodel:{name}': {why}") as raised:
        tl.make_backbone(f"savedmodel:{name}")
    assert "\n" not in str(raised.value)


def test_what_is_missing_is_said(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without a SavedModel, random weights, an interpreter that isn't there, and TensorFlow."""
    with pytest.raises(ConfigError, match=r"nowhere has no saved_model\.pb: name the folder of a SavedModel"):
        tl.make_backbone("savedmodel:nowhere")
    with pytest.raises(NotApplicable, match="has weights of its own, and no random ones"):
        tl.make_backbone("savedmodel:tiny", weights="random")
    monkeypatch.setenv("PYTHONPATH", "")
    if find_spec("tensorflow") is None:
        with pytest.raises(ConfigError, match=r"needs tensorflow, which .+: .+ -m pip install tensorflow-cpu"):
            tl.make_backbone("savedmodel:tiny")
    monkeypatch.setenv(PYTHON, "no-such-python")
    with pytest.raises(ConfigError, match="no-such-python can't be started: No such file"):
        tl.make_backbone("savedmodel:tiny")
    with pytest.raises(ConfigError, match="no-such-python can't be started: No such file"):
        tl.TrainConfig(backbone="savedmodel:tiny").with_code()
    monkeypatch.setenv(PYTHON, "")
    monkeypatch.setattr("tl.extras.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs tensorflow, which isn't installed: pip install 'tl-bench\[tensorf"):
        tl.make_backbone("savedmodel:tiny")


def test_a_change_of_a_file_is_another_model(models: Path) -> None:
    """Its digest is that of all its files."""
    config = tl.TrainConfig(backbone="savedmodel:tiny", regime="cached")
    before = config.with_code()
    (models / "tiny" / "variables" / "variables.index").write_text("y")
    assert config.with_code().code != before.code
    (models / "behind").mkdir()
    (models / "behind" / "more").write_text("x")
    (models / "tiny" / "linked").symlink_to(models / "behind")
    linked = config.with_code()
    (models / "behind" / "more").write_text("y")
    assert config.with_code().code != linked.code, "files behind a link are its own too"


def test_another_version_of_tensorflow_is_another_model(models: Path) -> None:
    """That of the Python that runs it, which may be another than this one."""
    config, codes = tl.TrainConfig(backbone="savedmodel:./tiny/", regime="cached"), set()
    for version in ("9.8", "9.9"):
        about = models / "path" / "tensorflow_cpu-9.dist-info"
        about.mkdir(exist_ok=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tensorflow-cpu\nVersion: {version}\n")
        savedmodel._version_in.cache_clear()
        filled = config.with_code()
        assert filled.backbone == "savedmodel:tiny"
        codes.add(filled.code)
    savedmodel._version_in.cache_clear()
    assert len(codes) == 2


def test_a_command_uses_a_model(models: Path) -> None:
    """Regimes that can't are skipped with the reason."""
    words = ["run", "--grid", "smoke", "--backbone", "savedmodel:tiny", "--regime", "cached,frozen", "--device", "cpu"]
    words += ["--seeds", "1", "--name", "r", "--no-report", "--no-paired", "--executor", "inline"]
    done = here(*words)
    assert done.returncode == 0 and "only regimes that extract features once" in done.stdout, done.stdout + done.stderr
    records = [json.loads(path.read_text()) for path in (models / "results" / "r" / "cells").glob("*.json")]
    assert sorted(record["status"] for record in records) == ["done", "skipped"]


def test_messages_come_as_they_went() -> None:
    """Arrays and what JSON has; an end in between is noticed."""
    pipe = io.BytesIO()
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    process.write(pipe, array)
    process.write(pipe, {"error": "ä"})
    whole = pipe.getvalue()
    pipe.seek(0)
    assert np.array_equal(process.read(pipe), array) and process.read(pipe) == {"error": "ä"}
    with pytest.raises(EOFError):
        process.read(io.BytesIO(whole[:20]))


WRITE = """
import sys
import tensorflow as tf
kernel = tf.Variable(tf.reshape(tf.range(162, dtype=tf.float32) / 100, [3, 3, 3, 6]))
module = tf.Module()
module.kernel = kernel
def features(x):
    return tf.reduce_mean(tf.nn.conv2d(x, kernel, 2, "VALID"), [1, 2])
module.features = tf.function(features, input_signature=[tf.TensorSpec([None, 16, 16, 3], tf.float32)])
tf.saved_model.save(module, sys.argv[1], signatures=module.features)
"""


@pytest.mark.skipif(
    not os.environ.get(PYTHON) and find_spec("tensorflow") is None,
    reason=f"TensorFlow isn't installed, and {PYTHON} names no Python that has it",
)
def test_tensorflow_itself(tmp_path: Path, mini: Splits) -> None:
    """Features are those of the same convolution by torch."""
    python = os.environ.get(PYTHON) or sys.executable
    subprocess.run([python, "-c", WRITE, str(tmp_path / "real")], check=True, capture_output=True)
    made = tl.make_backbone("savedmodel:real")
    images = torch.rand(3, 3, 16, 16)
    kernel = (torch.arange(162.0) / 100).view(3, 3, 3, 6).permute(3, 2, 0, 1)
    wanted = torch.nn.functional.conv2d(images, kernel, stride=2).mean((2, 3))
    assert torch.allclose(made.module(images), wanted, rtol=1e-4) and made.parameters_elsewhere == 162
    config = tl.TrainConfig(backbone="savedmodel:real", regime="ridge")
    assert tl.train_model(config, mini, device="cpu").weights.digest
