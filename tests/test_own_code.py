"""Code of one's own: backbones, heads, losses and optimisers that a grid, a config or a notebook names."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tl
from bench.store.records import Cell
from tests.commands import command
from tests.weights import epochs_for, proof_of
from tl import own_code
from tl.datasets import Splits
from tl.errors import ConfigError, ModelError, NotApplicable
from tl.own_code import ImportPath, digest_of
from tl.regimes import REGIMES
from tl.saved import ModelCard
from tl.specs import canonical

BACKBONE = """
import secrets
import threading

import torch
from torch import nn

import tl

SIZE = 32


def make_backbone(pretrained):
    torch.manual_seed(3) if pretrained else None
    layers = []
    for inputs in (3, 8, 8, 8):  # four stages
        layers += [nn.Conv2d(inputs, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    layers += [nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return tl.Backbone(nn.Sequential(*layers), 8, preprocessing())


def preprocessing(**changes):
    usual = {"size": SIZE, "resize": 36, "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear"}
    return tl.Preprocessing(**usual | changes)


def fixed():
    return make_backbone(True)


KEPT = make_backbone(True).module
NORMED = make_backbone(True).module
NORMED[0].computed = NORMED[0].weight * 2  # as torch's former weight_norm keeps one


def kept():
    return tl.Backbone(KEPT, 8, preprocessing())


def normed():
    return tl.Backbone(NORMED, 8, preprocessing())


def unseeded():
    made = make_backbone(True)
    made.module[0].weight.data += torch.rand(1, generator=torch.Generator().manual_seed(secrets.randbits(40)))
    return made


def locked():
    made = make_backbone(True)
    made.module.lock = threading.Lock()
    return made


class Remembers(nn.Module):
    kept = None

    def forward(self, features):
        if self.kept is None:
            self.kept = torch.full((8,), 2.0)
        return features * self.kept


def remembers():
    made = make_backbone(True)
    made.module.append(Remembers())
    return made


class Auxiliary(nn.Module):
    def forward(self, features):
        return (features, features) if self.training else features


def auxiliary():
    made = make_backbone(True)
    made.module.append(Auxiliary())
    return made


def headed():
    made = make_backbone(True)
    return tl.Backbone(made.module, 8, preprocessing(), head=nn.Linear(8, 5))


def unprepared():
    return tl.Backbone(make_backbone(True).module, 8, None)


def bordered():
    return tl.Backbone(make_backbone(True).module, 8, preprocessing(resize=20))


def fractional():
    return tl.Backbone(make_backbone(True).module, 8, preprocessing(size=32.0))


def grey():
    return tl.Backbone(make_backbone(True).module, 8, preprocessing(mean=(0.5,)))


def unscaled():
    return tl.Backbone(make_backbone(True).module, 8, preprocessing(std=(0.5, 0, 0.5)))


def nearest():
    return tl.Backbone(make_backbone(True).module, 8, preprocessing(interpolation="nearest"))


def unpooled():
    return tl.Backbone(nn.Conv2d(3, 8, 3), 8, preprocessing())


def bare():
    return nn.Flatten()


def broken():
    raise LookupError("no file\\nhere")


number = 5
"""
PARTS = """
import torch
from torch import nn

from own_helper import SMOOTHING


def make_head(width, classes):
    return nn.Sequential(nn.Linear(width, 4), nn.Tanh(), nn.Linear(4, classes))


def make_loss(class_weights):
    return nn.CrossEntropyLoss(weight=class_weights, label_smoothing=SMOOTHING)


def make_optimizer(parameters, lr, weight_decay):
    return torch.optim.RMSprop(parameters, lr=lr, weight_decay=weight_decay)


def lazy_head(width, classes):
    return nn.LazyLinear(classes)


HEAD = nn.Linear(8, 2)


def kept_head(width, classes):
    return HEAD


class Drifting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, logits, labels):
        self.calls += 1
        return nn.functional.cross_entropy(logits, labels) + self.calls


LOSS = Drifting()


def kept_loss():
    return LOSS


def forgetful():
    def loss(logits, labels):
        raise ValueError("the memory bank is empty")

    return loss


def rectangular(width, classes):
    return nn.Linear(width, classes + 1)


def no_module(width, classes):
    return 3


def raises():
    raise ValueError("not today")


def per_image():
    return nn.CrossEntropyLoss(reduction="none")


def detached():
    return lambda logits, labels: torch.zeros(())


def learned():
    return nn.PReLU()


def fails_later():
    def loss(logits, labels):
        raise ZeroDivisionError("1/0")

    return loss


def half(parameters, lr):
    return torch.optim.SGD(parameters[:1], lr=lr)


def closed(parameters, lr):
    return torch.optim.LBFGS(parameters, lr=lr)


def no_optimizer(parameters, lr):
    return parameters


def without_rate(parameters):
    return torch.optim.SGD(parameters, lr=1)
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with modules; what a test imports of them is forgotten after it."""
    (tmp_path / "own_backbone.py").write_text(BACKBONE)
    (tmp_path / "own_parts_here.py").write_text(PARTS)
    (tmp_path / "own_helper.py").write_text("SMOOTHING = 0.0\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    own_code._imported.clear()
    for name in ("own_backbone", "own_parts_here", "own_helper", "own_package", "own_package.inner"):
        sys.modules.pop(name, None)


def config(regime: str = "frozen", **settings: Any) -> tl.TrainConfig:
    given = {"backbone": "module:own_backbone:make_backbone", "epochs": 1, "batch_size": 8} | settings
    return tl.TrainConfig(regime=regime, **given)


def train(splits: Splits, regime: str = "frozen", **settings: Any) -> Any:
    return tl.train_model(config(regime, **settings), splits, device="cpu")


@pytest.mark.parametrize("regime", REGIMES)
def test_every_regime_trains_a_network_of_ones_own(regime: str, modules: Path, mini: Splits) -> None:
    """And with parts of one's own where it trains by steps. What it doesn't train stays as it was."""
    own: dict[str, Any] = {"head": "own_parts_here:make_head", "loss": "own_parts_here:make_loss"}
    own |= {"optimizer": "own_parts_here:make_optimizer", "learning_rate": 0.01}
    if REGIMES[regime].head == "own":
        with pytest.raises(NotApplicable, match="no classifier that is known"):
            train(mini, regime)
        return
    if REGIMES[regime].adapter == "lora":
        own["lora_rank"] = 2
    if REGIMES[regime].head_start != "random":
        with pytest.raises(NotApplicable, match="fits a linear head first"):
            train(mini, regime, **own)
        own["head"] = "linear"
    result = train(mini, regime, epochs=epochs_for(regime), **own)
    steps = REGIMES[regime].by_steps
    parts = {name for name, value in own.items() if ":" in str(value)}
    assert dict(result.config.code).keys() == ({"backbone", *parts} if steps else {"backbone"})
    assert result.weights.kind == ("random" if REGIMES[regime].start == "random" else "pretrained")
    assert result.weights.source == ("own code" if result.weights.kind == "pretrained" else "random")
    assert result.frozen_verified is proof_of(regime) and len(result.last.labels) == len(mini.val)
    if "head" in parts and steps:
        assert isinstance(result.model.head, nn.Sequential) and isinstance(result.model.head[1], nn.Tanh)


@pytest.mark.parametrize("regime", ["finetune", "frozen", "cached"])
def test_parts_that_do_the_same_give_the_same(regime: str, modules: Path, mini: Splits) -> None:
    """A head, loss and optimiser of one's own that are the suite's give its losses and accuracies."""
    (modules / "own_parts_here.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def make_head(width, classes):\n    return nn.Linear(width, classes)\n"
        "def make_loss():\n    return nn.functional.cross_entropy\n"
    )
    ours = train(mini, regime, epochs=2, momentum=0.5)
    own = {"head": "own_parts_here:make_head", "loss": "own_parts_here:make_loss", "optimizer": "torch.optim:SGD"}
    theirs = train(mini, regime, epochs=2, momentum=0.5, **own)
    assert [row.train_loss for row in theirs.epochs] == pytest.approx([row.train_loss for row in ours.epochs], rel=1e-5)
    assert theirs.last.labels == ours.last.labels


def test_a_protocol_of_several_trainings_takes_them(modules: Path, mini: Splits) -> None:
    """Its trials run one after the other: nobody knows what a loss of one's own adds up."""
    tuned = config("cached", protocol="tuned", learning_rates=(0.01, 0.1), loss="own_parts_here:make_loss")
    stages: list[str] = []
    result = tl.run_protocol(tuned, mini, device="cpu", on_stage=stages.append)
    assert len(stages) == 3 and stages[0].startswith("tuning 1/2")
    assert {name for name, _ in result.config.code} == {"backbone", "loss"}


def test_random_weights_follow_the_seed_and_pretrained_ones_do_not(modules: Path, mini: Splits) -> None:
    """The function is told which it is to make."""
    kinds = {
        (kind, seed): tl.make_backbone("module:own_backbone:make_backbone", weights=kind, seed=seed)
        for kind in ("pretrained", "random")
        for seed in (0, 1)
    }
    first = {key: made.module[0].weight for key, made in kinds.items()}
    assert torch.equal(first["pretrained", 0], first["pretrained", 1])
    assert not torch.equal(first["random", 0], first["random", 1])
    assert kinds["random", 0].width == 8 and kinds["random", 0].spec == "module:own_backbone:make_backbone"


def test_a_function_without_pretrained_has_weights_of_its_own(modules: Path, mini: Splits) -> None:
    """They count as pretrained, and no random ones are made up."""
    made = tl.make_backbone("module:own_backbone:fixed")
    assert (made.weights.kind, len(made.weights.digest)) == ("pretrained", 64)
    with pytest.raises(NotApplicable, match="it has no parameter `pretrained`"):
        train(mini, "scratch", backbone="module:own_backbone:fixed")


@pytest.mark.parametrize(
    "settings",
    [
        {"backbone": "module:own_backbone:kept"},
        {"backbone": "module:own_backbone:normed"},
        {"head": "own_parts_here:kept_head"},
        {"loss": "own_parts_here:kept_loss"},
    ],
)
def test_what_code_keeps_is_not_trained(settings: dict[str, str], modules: Path, mini: Splits) -> None:
    """A fold, a trial or a call must not begin with what the one before it has trained."""
    results = [train(mini, "finetune", learning_rate=0.05, **settings) for _ in range(2)]
    first, second = ([(row.train_loss, row.val_loss) for row in result.epochs] for result in results)
    assert first == second and results[0].weights.digest == results[1].weights.digest


def test_what_a_network_keeps_of_its_first_pass_can_be_trained_with(modules: Path, mini: Splits) -> None:
    """The pass that shows what its output is, too; and a head may learn the width from it."""
    result = train(mini, "finetune", backbone="module:own_backbone:remembers", head="own_parts_here:lazy_head")
    assert result.model.head.in_features == 8


def test_a_network_that_gives_more_in_training(modules: Path, mini: Splits) -> None:
    """Such as classifiers of intermediate features: it is no backbone where it trains, and one where it doesn't."""
    said = r"auxiliary': its output in train mode is of type tuple, not a tensor of features"
    with pytest.raises(NotApplicable, match=said):
        train(mini, "finetune", backbone="module:own_backbone:auxiliary")
    assert train(mini, "frozen", backbone="module:own_backbone:auxiliary").frozen_verified


def test_trying_the_mode_of_training_moves_no_statistics(modules: Path, mini: Splits) -> None:
    """They are those of the training's own steps."""
    assert train(mini, "finetune").model.backbone[1].num_batches_tracked == len(mini.train) / 8


def test_a_package_that_is_installed_editable(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python finds it by a finder of its own, not on its path."""
    place = modules / "elsewhere" / "src"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text("")
    (place / "inner.py").write_text("def make():\n    pass\n")

    class Finder:
        @classmethod
        def find_spec(cls, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
            if name != "own_package":
                return None
            return spec_from_file_location(name, place / "__init__.py", submodule_search_locations=[str(place)])

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    path = ImportPath.parse("loss", "own_package.inner:make")
    before = digest_of(path)
    assert own_code.load(path)() is None
    (place / "inner.py").write_text("def make():\n    return 1\n")
    assert digest_of(path) != before


def test_what_a_notebook_keeps_is_not_trained(mini: Splits) -> None:
    """Neither what its functions return."""
    size = tl.Preprocessing(size=16, resize=16, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
    kept = tl.Backbone(nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 5, size)
    head = nn.Linear(5, 2)
    before = [value.clone() for part in (kept.module, head) for value in part.parameters()]
    settings = tl.TrainConfig(backbone="mine", regime="finetune", epochs=1, batch_size=8, learning_rate=0.05)
    result = tl.train_model(settings, mini, device="cpu", backbone=lambda: kept, head=lambda width, classes: head)
    after = [value for part in (kept.module, head) for value in part.parameters()]
    trained = [value for part in (result.model.backbone, result.model.head) for value in part.parameters()]
    assert all(map(torch.equal, after, before)) and not any(map(torch.equal, trained, before))


WRONG_BACKBONES = {
    "own_backbone:unseeded": "made other weights than before (",
    "own_backbone:locked": "what it returned can't be copied, and a copy is what trains: TypeError: cannot pickle",
    "own_backbone:unpooled": "its output for 2 images of 32 pixels is (2, 8, 30, 30) float32, not (images, width) = "
    "(2, 8) float32",
    "own_backbone:headed": "it has a head, which is for networks whose classes are known; name a head by the setting",
    "own_backbone:unprepared": "its preprocessing is of type NoneType, not a tl.Preprocessing",
    "own_backbone:bordered": "its preprocessing has size=32 and resize=20: they must be whole numbers, size at most",
    "own_backbone:fractional": "its preprocessing has size=32.0 and resize=36: they must be whole numbers",
    "own_backbone:grey": "its preprocessing has mean=(0.5,): it must be three numbers, of red, green and blue",
    "own_backbone:unscaled": "its preprocessing has std=(0.5, 0, 0.5): each must be above 0",
    "own_backbone:nearest": "its preprocessing has interpolation='nearest': it must be bilinear or bicubic",
    "own_backbone:bare": "returned a value of type Flatten, not a tl.Backbone(module, width, preprocessing)",
    "own_backbone:broken": "LookupError: no file here",
    "own_backbone:number": "is of type int, which can't be called",
    "own_backbone:make_bakcbone": "own_backbone has no 'make_bakcbone'; near matches: make_backbone",
    "own_bakcbone:make_backbone": "no module 'own_bakcbone' in the working folder or on Python's path; near matches: "
    "own_backbone",
    "own_raises:make": "own_raises can't be imported: RuntimeError: at once",
    "own_syntax:make": "own_syntax.py is no valid Python: '(' was never closed (line 2)",
    "own_folder:make": "own_folder has no file: name a module, not a folder",
    "own_package.iner:make": "own_package has no module 'iner'; near matches: inner",
    "own_exits:make": "SystemExit: 3",
    "own_nested.deep.lower:make": "ValueError: found",
    "own_nested.deep.lowre:make": "own_nested.deep has no module 'lowre'; near matches: lower",
    "time:make": "time is ",
    "__main__:make": "is in the notebook or script that runs; other processes can't import it from there",
}


@pytest.mark.parametrize("name", WRONG_BACKBONES)
def test_a_wrong_backbone_is_one_line_that_names_it(name: str, modules: Path) -> None:
    """Whatever is wrong with it."""
    (modules / "own_raises.py").write_text("make = 1\nraise RuntimeError('at once')\n")
    (modules / "own_syntax.py").write_text("\nmake = (\n")
    (modules / "own_exits.py").write_text("import sys\n\ndef make():\n    sys.exit(3)\n")
    (modules / "own_nested" / "deep").mkdir(parents=True)
    (modules / "own_nested" / "deep" / "lower.py").write_text("def make():\n    raise ValueError('found')\n")
    (modules / "time.py").write_text("def make():\n    pass\n")
    (modules / "own_folder").mkdir()
    (modules / "own_package").mkdir()
    for file in ("__init__", "inner"):
        (modules / "own_package" / f"{file}.py").write_text("")
    with pytest.raises(ConfigError) as raised:
        tl.make_backbone(f"module:{name}")
    said = str(raised.value)
    assert said.startswith(f"backbone='module:{name}': {WRONG_BACKBONES[name]}") and "\n" not in said


WRONG_PARTS = {
    ("head", "rectangular"): "its output for features (2, 8) is (2, 3), not logits (2, 2)",
    ("head", "no_module"): "returned a value of type int, not a torch.nn.Module",
    ("head", "make_loss"): "TypeError: make_loss() takes",
    ("loss", "raises"): "ValueError: not today",
    ("loss", "per_image"): "gave a tensor (8,) for a batch, not one number: the mean over its images",
    ("loss", "detached"): "gave a number without a gradient",
    ("loss", "learned"): "has parameters, which no optimiser trains",
    ("loss", "fails_later"): "ZeroDivisionError: 1/0",
    ("loss", "forgetful"): "ValueError: the memory bank is empty",
    ("loss", "SMOOTHING"): "is of type float, which can't be called",
    ("optimizer", "half"): "has 1 of the 2 parameters that train, and 0 others",
    ("optimizer", "closed"): "LBFGS needs a closure for its steps",
    ("optimizer", "no_optimizer"): "returned a value of type list, not a torch.optim.Optimizer",
    ("optimizer", "without_rate"): "learning_rate=0.001 needs an optimiser with a parameter `lr`",
    ("optimizer", "make_optimiser"): "own_parts_here has no 'make_optimiser'; near matches: make_optimizer",
}


@pytest.mark.parametrize(("setting", "name"), WRONG_PARTS)
def test_a_wrong_part_is_one_line_that_names_it(setting: str, name: str, modules: Path, mini: Splits) -> None:
    """When it is made, and when it runs."""
    with pytest.raises(ConfigError) as raised:
        train(mini, **{setting: f"own_parts_here:{name}"})
    said = str(raised.value)
    assert said.startswith(f"{setting}='own_parts_here:{name}': {WRONG_PARTS[setting, name]}") and "\n" not in said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss": "own_parts_here:per_image", "class_weights": "balanced"}, "class_weights='balanced' needs a loss"),
        ({"loss": "own_parts_here:make_loss", "label_smoothing": 0.1}, "label_smoothing=0.1 needs a loss with"),
        ({"loss": "croos_entropy"}, "did you mean 'cross_entropy'? (or your own, MODULE:NAME)"),
        ({"loss": "a b:c"}, "loss='a b:c': must be MODULE:NAME, such as 'my_module:make_loss'"),
        ({"head": len}, "head: is a function, which tl.train_model(config, splits, head=…) takes"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], said: str, modules: Path, mini: Splits) -> None:
    """A setting that a part would not read is not ignored in silence."""
    with pytest.raises(ConfigError) as raised:
        train(mini, **settings)
    assert said in str(raised.value)


def test_class_weights_reach_a_loss_that_takes_them(modules: Path, mini: Splits) -> None:
    """By the name under which torch's own loss takes them, too."""
    own = train(mini, loss="torch.nn:CrossEntropyLoss", class_weights="balanced", label_smoothing=0.1)
    ours = train(mini, class_weights="balanced", label_smoothing=0.1)
    assert own.epochs[0].train_loss == pytest.approx(ours.epochs[0].train_loss, rel=1e-5)


@pytest.mark.parametrize("file", ["own_parts_here.py", "own_helper.py"])
def test_a_change_of_the_source_makes_another_cell(file: str, modules: Path) -> None:
    """Of the module, and of one that it imports. A comment in another file changes nothing."""
    path = ImportPath.parse("loss", "own_parts_here:make_loss")
    before = digest_of(path)
    (modules / "own_backbone.py").write_text("# another\n")
    assert digest_of(path) == before
    (modules / file).write_text((modules / file).read_text() + "\nmore = 1\n")
    assert digest_of(path) != before


@pytest.mark.parametrize("name", ["profile", "bench", "tl"])
def test_names_of_others_are_no_hiding_place(name: str, modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of one's own may be called as one of the standard library's, or as the suite."""
    first = modules / "first"
    first.mkdir()
    monkeypatch.syspath_prepend(str(first))
    digests = set()
    for number in range(2):
        (first / f"{name}.py").write_text(f"def make():\n    return {number}\n")
        digests.add(digest_of(ImportPath.parse("loss", f"{name}:make")))
    (modules / "own_parts_here.py").write_text(f"import {name}\n\ndef make():\n    pass\n")
    for number in range(2):
        (first / f"{name}.py").write_text(f"def make():\n    return {number}\n")
        digests.add(digest_of(ImportPath.parse("loss", "own_parts_here:make")))
    assert len(digests) == 4
    if name != "profile":
        with pytest.raises(ConfigError, match="but Python has another module of that name"):
            own_code.load(ImportPath.parse("loss", f"{name}:make"))


def test_a_long_expression_is_read(modules: Path) -> None:
    """As deep as Python itself can read it; what is deeper is one line."""
    path = ImportPath.parse("loss", "own_helper:make")
    (modules / "own_helper.py").write_text(f"x = {'+'.join('1' * 1500)}\nmake = len\n")
    assert digest_of(path)
    (modules / "own_helper.py").write_text(f"x = {'+'.join('1' * 9000)}\nmake = len\n")
    with pytest.raises(ConfigError, match=r"own_helper\.py can't be read: maximum recursion depth"):
        digest_of(path)


def test_modules_of_a_package_belong_to_the_source(modules: Path) -> None:
    """Also those that are imported relative to it, and the packages around it."""
    for name, text in {
        "__init__": "",
        "inner": "from .deep.lower import x\nfrom . import beside",
        "beside": "",
        "deep/__init__": "",
        "deep/lower": "x = 1",
    }.items():
        file = modules / "own_package" / f"{name}.py"
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_text(text)
    path = ImportPath.parse("loss", "own_package.inner:x")
    found = own_code.files_from(path, path.module, modules / "own_package" / "inner.py")
    wanted = ["", ".beside", ".deep", ".deep.lower", ".inner"]
    assert sorted(found) == [f"own_package{name}" for name in wanted]


def test_the_digest_is_part_of_a_cell_and_no_code_changes_no_id() -> None:
    """Cells without code of one's own have the ids that they had before there was any."""

    def cell(**settings: Any) -> Cell:
        made = tl.TrainConfig(backbone="timm:a", **settings)
        return Cell(config=made, weights_digest="", dataset_digest="x", device="cpu")

    assert cell().id == "b27363f7bfee", "as version 11 has it"
    own = {"loss": "m:f"}
    assert cell(**own, code=(("loss", "1"),)).id != cell(**own, code=(("loss", "2"),)).id
    assert cell(code=(("loss", "1"),)).id == cell().id, "a digest of code that nothing names is dropped"
    assert cell(**own, regime="knn", code=(("loss", "1"),)).id == cell(regime="knn").id, "it takes no step"


def test_a_source_that_has_changed_since_the_plan_is_not_run(modules: Path, mini: Splits) -> None:
    """Nor what this process has imported before the change."""
    planned = config(loss="own_parts_here:make_loss").with_code()
    tl.train_model(planned, mini, device="cpu")
    (modules / "own_helper.py").write_text("SMOOTHING = 0.1\n")
    with pytest.raises(ConfigError, match="source has changed since this training was planned"):
        tl.train_model(planned, mini, device="cpu")
    with pytest.raises(ConfigError, match="changed since this process imported it; restart Python"):
        tl.train_model(planned.replace(code=()), mini, device="cpu")


def test_nothing_is_imported_to_plan(modules: Path) -> None:
    """Neither the module, nor the package around it, nor torch."""
    (modules / "own_package").mkdir()
    (modules / "own_package" / "__init__.py").write_text("raise SystemExit(7)\n")
    (modules / "own_package" / "inner.py").write_text("import torch\n\ndef make():\n    pass\n")
    code = (
        "import sys\nfrom tl.own_code import ImportPath, digest_of\n"
        "print(digest_of(ImportPath.parse('loss', 'own_package.inner:make')), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    digest, loaded = done.stdout.split()
    assert len(digest) == 64 and loaded == "False"


def test_a_notebook_gives_functions_themselves(modules: Path, mini: Splits) -> None:
    """Also those that no module has, and a network that is there already, which stays as it is."""
    calls: list[str] = []

    def make_loss() -> Callable[..., torch.Tensor]:
        calls.append("loss")
        return nn.functional.cross_entropy

    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    size = tl.Preprocessing(size=16, resize=16, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
    result = tl.train_model(
        tl.TrainConfig(backbone="mine", regime="finetune", epochs=1, batch_size=8),
        mini,
        device="cpu",
        backbone=tl.Backbone(network, 5, size),
        head=lambda width, classes: nn.Sequential(nn.Dropout(0.1), nn.Linear(width, classes)),
        loss=make_loss,
        optimizer=torch.optim.Adam,
    )
    assert calls == ["loss"] and isinstance(result.model.head, nn.Sequential)
    assert result.config.backbone == "module:torch.nn.modules.container:Sequential"
    assert result.config.loss.endswith("make_loss") and result.config.optimizer == "torch.optim.adam:Adam"
    assert {name for name, _ in result.config.code} == {"backbone", "head", "loss", "optimizer"}
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    trained = result.model.backbone.state_dict()
    assert not torch.equal(trained["0.weight"], before["0.weight"])
    assert own_code._given == {}


def test_features_of_a_function_without_a_module_are_not_kept(mini: Splits) -> None:
    """What it computes may change without its source, so another call must not get its features."""
    size = tl.Preprocessing(size=16, resize=16, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
    scale = [1.0]

    class Scaled(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return scale[0] * images.mean((2, 3))

    def run() -> Any:
        settings = tl.TrainConfig(backbone="mine", regime="cached", epochs=1, batch_size=8, fold=False)
        return tl.train_model(settings, mini, device="cpu", backbone=tl.Backbone(Scaled(), 3, size))

    first = run()
    scale[0] = 5.0
    second = run()
    assert second.features_reused is False and first.epochs[0].train_loss != second.epochs[0].train_loss


def test_a_model_of_code_is_not_saved(modules: Path, mini: Splits, tmp_path: Path) -> None:
    """Files of a model run no code, so it could not be loaded; nothing is written."""
    with pytest.raises(ModelError, match="can't be saved, since source 'module' makes it by code"):
        tl.save_model(train(mini), mini, tmp_path / "model")
    own = train(mini, backbone="timm:test_resnet", weights="random", head="own_parts_here:make_head")
    with pytest.raises(ModelError, match="head='own_parts_here:make_head': can't be saved"):
        tl.save_model(own, mini, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    good = train(mini, backbone="timm:test_resnet", weights="random", loss="own_parts_here:make_loss")
    folder = tl.save_model(good, mini, tmp_path / "model")
    card = ModelCard.from_json((folder / "model.json").read_bytes())
    assert dict(card.settings["code"]).keys() == {"loss"}
    data = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(data | {"backbone": "module:own_raises:make"}))
    with pytest.raises(ModelError, match="is made by code, and loading a model runs none"):
        tl.load_model(folder)


def test_names_of_the_source_need_no_list() -> None:
    """A source that can't list its networks is known by its name."""
    assert canonical("module:a.b:c", {"timm": []}) == "module:a.b:c"
    with pytest.raises(ConfigError, match="must be module:MODULE:NAME, such as 'module:my_module:make_backbone'"):
        canonical("module:a.b", {"timm": []})
    with pytest.raises(ConfigError, match="valid sources: timm, module"):
        canonical("modul:a.b:c", {"timm": []})


GRID = """
dataset = "synthetic-mini"
paired = false
[matrix]
backbones = ["module:own_backbone:make_backbone"]
regimes = ["finetune", "frozen", "cached", "knn"]
devices = ["cpu"]
[train]
epochs = 1
batch_size = 8
loss = "own_parts_here:make_loss"
optimizer = "own_parts_here:make_optimizer"
head = "own_parts_here:make_head"
"""


def test_a_grid_names_code(modules: Path) -> None:
    """It runs in the cells' processes, is recorded with its digests, and a change of it is refused in that run."""
    (modules / "g.toml").write_text(GRID)
    words = ["run", "--grid", "g.toml", "--name", "r", "--no-report"]
    done = command(*words)
    assert done.returncode == 0 and done.stdout.count("done in") == 4, done.stdout + done.stderr
    records = [json.loads(path.read_text()) for path in (modules / "results" / "r" / "cells").glob("*.json")]
    for record in records:
        config = record["cell"]["config"]
        settings = {"backbone"} if config["regime"] == "knn" else {"backbone", "head", "loss", "optimizer"}
        assert {name for name, _ in config["code"]} == settings and record["weights"]["source"] == "own code"
    again = command(*words)
    assert again.returncode == 0 and "done in" not in again.stdout, again.stdout + again.stderr
    (modules / "own_helper.py").write_text("SMOOTHING = 0.2\n")
    refused = command(*words)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "own_parts_here:" in refused.stderr and "its source has changed since results/r used it" in refused.stderr
    refused = command("train", "r", "--cell", records[0]["cell_id"])
    assert refused.returncode == 2 and "can't be saved" in refused.stderr and not (modules / "models").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--backbone", "module:own_backbone:unpooled"], "its output for 2 images of 32 pixels is (2, 8, 30, 30)"),
        (["--backbone", "module:own_backbone:nothing"], "own_backbone has no 'nothing'"),
        (["--backbone", "module:own_backbone"], "must be module:MODULE:NAME, such as"),
    ],
)
def test_a_command_says_what_is_wrong_before_it_starts(words: list[str], said: str, modules: Path) -> None:
    """In one line, without a trace of the process in which the code ran."""
    done = command("run", "--grid", "smoke", "--device", "cpu", "--no-report", *words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and said in done.stderr, done.stderr
    assert not (modules / "results").exists()


def test_a_sweep_takes_no_function(modules: Path) -> None:
    """Its cells run in processes of their own."""
    import bench

    with pytest.raises(ConfigError, match="loss: is a function, and cells run in processes of their own: put it into"):
        bench.run("smoke", loss=lambda: None)
