"""Grids: the cells that they expand to, and the messages for mistakes in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.sweep.grid import expand, load_grid, shipped
from bench.sweep.plan import run_name
from bench.sweep.settings import settings_of
from tl.backbones import known_names
from tl.config import TrainConfig
from tl.errors import ConfigError, DeviceError
from tl.regimes import REGIMES
from tl.specs import canonical
from tl.weights import BUNDLED

HAVE = {"cuda:0": "GPU 0", "cuda:1": "GPU 1", "cpu": "CPU"}


def cells(text: str, tmp_path: Path, have: dict[str, str] = HAVE):
    path = tmp_path / "own.toml"
    path.write_text(text)
    return expand(load_grid(str(path)), weights="auto", spec=lambda s: s, devices=lambda: have)


def mistake(text: str, tmp_path: Path) -> str:
    with pytest.raises((ConfigError, DeviceError)) as error:
        cells(text, tmp_path)
    message = str(error.value)
    assert "\n" not in message
    return message


MATRIX = '[matrix]\nbackbones = ["a", "b"]\nregimes = ["finetune", "frozen"]\ndevices = ["cpu"]\nseeds = 2\n'


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_grid_expands(name: str) -> None:
    """Its backbones exist, its regimes and settings are valid, and it has a description."""
    grid = load_grid(name)
    assert grid.description
    planned = expand(grid, weights="auto", spec=lambda s: canonical(s, known_names()), devices=lambda: {"cpu": ""})
    assert {cell.config.backbone for cell in planned} == set(grid.matrix.backbones), "with their sources"


def test_the_grid_of_regimes_has_them_all() -> None:
    """With one backbone whose weights come with the installation, so that accuracies count without a network."""
    grid = load_grid("regimes")
    assert grid.matrix.regimes == list(REGIMES)
    assert len(grid.matrix.backbones) == 1 and set(grid.matrix.backbones) <= set(BUNDLED)


def test_the_tutorial_grid_is_the_tutorials_protocol() -> None:
    """It has ResNet-18, batch size 4, 25 epochs, SGD 1e-3, momentum 0.9 and StepLR(7, 0.1)."""
    grid = load_grid("tutorial")
    assert grid.matrix.backbones == ["torchvision:resnet18"]
    settings = grid.shared_settings
    assert (settings["epochs"], settings["batch_size"]) == (25, 4)
    assert (settings["optimizer"], settings["learning_rate"], settings["momentum"]) == ("sgd", 1e-3, 0.9)
    assert (settings["schedule"], settings["step_size"], settings["gamma"]) == ("step", 7, 0.1)


def test_a_matrix_is_every_combination_by_seed_then_backbone(tmp_path: Path) -> None:
    """Seeds are the outer loop, and the regimes of a backbone are next to each other."""
    found = [(c.config.seed, c.config.backbone, c.config.regime) for c in cells(MATRIX, tmp_path)]
    assert found == [(s, b, r) for s in (0, 1) for b in "ab" for r in ("finetune", "frozen")]


@pytest.mark.parametrize(("seeds", "first"), [("3", 0), ("[4, 2]", 4)])
def test_a_regime_that_trains_nothing_has_one_cell_for_all_seeds(tmp_path: Path, seeds: str, first: int) -> None:
    """Five equal results are not a sample of five, so one cell is enough."""
    text = f'[matrix]\nbackbones = ["a", "b"]\nregimes = ["frozen", "zeroshot"]\ndevices = ["cpu"]\nseeds = {seeds}\n'
    found = [(c.config.backbone, c.config.seed) for c in cells(text, tmp_path) if c.config.regime == "zeroshot"]
    assert found == [("a", first), ("b", first)]
    assert len({c.config.seed for c in cells(text, tmp_path)}) > 1, "other regimes have them all"


def test_devices_all_auto_and_by_name(tmp_path: Path) -> None:
    """`all` is every device, `auto` the best, `cuda` the first GPU. Duplicates are dropped."""
    for given, expected in {
        '"all"': ["cuda:0", "cuda:1", "cpu"],
        '"auto"': ["cuda:0"],
        '"cuda", "cuda:0", "cpu"': ["cuda:0", "cpu"],
    }.items():
        text = f'[matrix]\nbackbones = ["a"]\nregimes = ["frozen"]\ndevices = [{given}]\n'
        assert [c.device for c in cells(text, tmp_path)] == expected


def test_exclude_and_include(tmp_path: Path) -> None:
    """Cells that match a pattern of `exclude` are dropped. Cells of `include` are added, with settings of their own."""
    text = MATRIX + (
        "[train]\nepochs = 3\n"
        '[[exclude]]\nbackbone = "b*"\nregime = "finetune"\n'
        '[[include]]\nbackbone = "c"\nregime = "scratch"\nseed = 7\nepochs = 9\n'
    )
    found = cells(text, tmp_path)
    assert [c.config.regime for c in found if c.config.backbone == "b"] == ["frozen", "frozen"]
    extra = [c.config for c in found if c.config.backbone == "c"]
    assert [(c.regime, c.seed, c.epochs) for c in extra] == [("scratch", 7, 9)]
    assert {c.config.epochs for c in found if c.config.backbone != "c"} == {3}


def test_the_command_line_rules_included_cells_too(tmp_path: Path) -> None:
    """`--backbone c --epochs 1` drops an included cell of another backbone, and overrides an entry's epochs."""
    path = tmp_path / "own.toml"
    path.write_text(MATRIX + '[[include]]\nbackbone = "timm:c"\nepochs = 9\n[[include]]\nbackbone = "d"\n')
    grid = load_grid(str(path)).override({"backbones": ["c"]}, {"epochs": 1})
    found = expand(grid, weights="auto", spec=lambda s: s, devices=lambda: HAVE)
    assert {cell.config.backbone for cell in found} == {"c", "timm:c"}
    assert {cell.config.epochs for cell in found} == {1}


@pytest.mark.parametrize(
    ("entry", "axes", "kept"),
    [
        ('device = "all"', {"devices": ["cpu"]}, True),
        ('device = "cuda"', {"devices": ["cuda:0"]}, True),
        ('device = "cuda:1"', {"devices": ["cpu"]}, False),
        ('device = "cuda"', {"devices": ["cuda:0@nvidia-h100"]}, True),
        ('device = "cpu"', {"devices": ["cuda:0@nvidia-h100"]}, False),
        ('device = "cpu"', {"devices": ["all"]}, True),
        ('backbone = "c"', {"backbones": ["timm:c"]}, True),
        ('backbone = "timm:c"', {"backbones": ["c"]}, True),
        ('backbone = "timm:c"', {"backbones": ["timm:d"]}, False),
        ("seed = 1", {"seeds": 2}, True),
        ("seed = 7", {"seeds": 2}, False),
    ],
)
def test_an_included_cell_is_left_out_only_where_it_is_another(
    tmp_path: Path, entry: str, axes: dict[str, object], kept: bool
) -> None:
    """Devices and backbones may be written in several ways."""
    path = tmp_path / "own.toml"
    path.write_text(f'{MATRIX}[[include]]\n{entry}\nregime = "scratch"\n')
    assert bool(load_grid(str(path)).override(axes, {}).include) is kept


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MATRIX + "[train]\nepoch = 3\n", "train.epoch: unknown key; nearest valid key: 'epochs'"),
        (MATRIX.replace("backbones", "backbone"), "matrix.backbone: unknown key; nearest valid key: 'backbones'"),
        ("matricks = 1\n" + MATRIX, "matricks: unknown key; nearest valid key: 'matrix'"),
        (MATRIX + '[[exclude]]\nregimen = "x"\n', "exclude[1].regimen: unknown key; nearest valid key: 'regime'"),
        (MATRIX + "[[include]]\nepoch = 1\n", "include[1].epoch: unknown key; nearest valid key: 'epochs'"),
        (MATRIX.replace('"frozen"', '"frozn"'), "regime='frozn': not one of finetune, frozen,"),
        (MATRIX.replace('"cpu"', '"tpu"'), "device='tpu': not on this machine, which has cuda:0, cuda:1, cpu"),
        (MATRIX + "[train]\nepochs = 0\n", "train.epochs=0"),
        (MATRIX + '[train]\nlearning_rate = "fast"\n', "train.learning_rate='fast'"),
        (MATRIX.replace("seeds = 2", "seeds = 0"), "seeds=0: at least one is needed"),
        (MATRIX.replace('["a", "b"]', "[]"), "backbones"),
        (MATRIX + "[[exclude]]\n", "every cell is excluded"),
        (MATRIX + '[[exclude]]\nregime = "frozn"\n', "exclude[1].regime='frozn': not one of"),
        (MATRIX + '[[exclude]]\nregime = ["frozen"]\n', "exclude[1].regime=['frozen']: must be one value"),
        (MATRIX + '[[include]]\nbackbone = "b"\nepochs = 0\n', "include[1].epochs=0"),
        (MATRIX + "[[include]]\nbackbone = 5.5\n", "include[1].backbone=5.5: must be one name"),
        (MATRIX + "[[exclude]]\ndevice = 0\n", "exclude[1].device=0: must be one name"),
        (MATRIX + '[[include]]\nseed = "1"\n', "include[1].seed='1': must be one number"),
        (MATRIX + '[train]\nepochs = "7"\n', "train.epochs='7': must be a number"),
        (MATRIX + "[train]\nepochs = true\n", "train.epochs=True: must be"),
        (MATRIX.replace("seeds = 2", "seeds = true"), "matrix.seeds=True: must be a number"),
        (MATRIX.replace("seeds = 2", 'seeds = [true, "3"]'), "matrix.seeds=[True, '3']: must be a number"),
        (MATRIX.replace("seeds = 2", f"seeds = [{10**23}]"), f"seed={10**23}: input should be less than {2**63}"),
        *(
            (MATRIX + f"[train]\n{name} = {2**63}\n", f"train.{name}={2**63}: input should be less than {2**63}")
            for name in ("epochs", "batch_size", "step_size", "folds", "views")
        ),
        (MATRIX.replace("seeds = 2", 'seeds = "x"'), "matrix.seeds='x': must be a number"),
        (
            MATRIX + '[train]\nprotocol = "tund"\n',
            "train.protocol='tund': not one of fixed, tuned, kfold; did you mean",
        ),
        (MATRIX + "[train]\nlearning_rates = 1e-3\n", "train.learning_rates=0.001: must be a list of numbers"),
        (MATRIX + "[train]\nepochs = [3]\n", "train.epochs=[3]: must be one value"),
        (MATRIX + "[train]\nfolds = 3\n", "train.folds=3: not read by protocol 'fixed', only by kfold; leave it out"),
        (MATRIX + '[[include]]\nprotocol = "kfold"\n', "include[1].protocol: all cells of a grid have one protocol"),
        (MATRIX + "[[include]]\nfolds = 3\n", "include[1].folds=3: not read by protocol 'fixed'"),
        ("[matrix\n", "not valid TOML"),
        ("", "matrix: missing"),
        ('dataset = ""\n' + MATRIX, "dataset='': string should have at least 1 character"),
        ('name = "x"\n' + MATRIX, "name: unknown key"),
    ],
)
def test_mistakes_name_the_place_and_what_would_be_right(tmp_path: Path, text: str, message: str) -> None:
    """Each message is one line."""
    assert message in mistake(text, tmp_path)


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-16", "is text in UTF-16 or UTF-32; save it as UTF-8"),
        ("utf-32", "is text in UTF-16 or UTF-32; save it as UTF-8"),
        ("cp1252", "is not text in UTF-8 (byte 0xe4 in line 6)"),
    ],
)
def test_a_grid_in_another_encoding_is_told_in_words(encoding: str, said: str, tmp_path: Path) -> None:
    """Editors of Windows write them. The byte order mark that they put before UTF-8 is no part of the text."""
    path = tmp_path / "own.toml"
    path.write_text(MATRIX, "utf-8-sig")
    assert load_grid(str(path)).matrix.backbones == ["a", "b"]
    path.write_text(f"{MATRIX}# ä\n", encoding)
    with pytest.raises(ConfigError) as error:
        load_grid(str(path))
    assert f"can't be read: {said}" in str(error.value)


def test_an_unknown_grid_has_a_near_match() -> None:
    """An unknown name has a near match, and a missing file is named."""
    with pytest.raises(ConfigError, match="did you mean 'default'"):
        load_grid("defualt")
    with pytest.raises(ConfigError, match=r"nowhere\.toml.*can't be read"):
        load_grid("nowhere.toml")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"regime": "frozn"},
            f"regime='frozn': not one of {', '.join(REGIMES)}; did you mean",
        ),
        ({"epochs": 0}, "epochs=0: input should be greater than or equal to 1"),
        ({"batch_size": 0}, "batch_size=0: input should be greater than or equal to 1"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"momentum": 1.5}, "momentum=1.5"),
        ({"epoch": 3}, "epoch: unknown key; nearest valid key: 'epochs'"),
        ({"optimizer": "sdg"}, "did you mean 'sgd'?"),
        ({"protocol": "k-fold"}, "protocol='k-fold': not one of fixed, tuned, kfold; did you mean 'kfold'?"),
        ({"protocol": "tuned", "learning_rates": [1e-3]}, "learning_rates=[0.001]: at least 2 are needed"),
        ({"protocol": "tuned", "learning_rates": [1e-3, 1e-3]}, "learning_rates=[0.001, 0.001]: rates must differ"),
        ({"protocol": "tuned", "learning_rates": [0, 1]}, "learning_rates=[0.0, 1.0]: each must be a number above 0"),
        (
            {"protocol": "tuned", "learning_rates": [1, float("inf")]},
            "learning_rates.1=inf: input should be a finite number",
        ),
        ({"protocol": "tuned", "learning_rates": [1, "2"]}, "learning_rates=[1, '2']: must be a number"),
        ({"protocol": "tuned", "learning_rates": 1e-3}, "learning_rates=0.001: input should be a valid tuple"),
        ({"protocol": "tuned", "learning_rate": 0.1}, "learning_rate=0.1: not read by protocol 'tuned', only by fixed"),
        ({"protocol": "tuned", "folds": 3}, "folds=3: not read by protocol 'tuned', only by kfold; leave it out"),
        ({"learning_rates": [1, 2]}, "learning_rates=[1.0, 2.0]: not read by protocol 'fixed', only by tuned"),
        ({"protocol": "kfold", "folds": 1}, "folds=1: input should be greater than or equal to 2"),
    ],
)
def test_a_config_refuses_what_is_not_valid(settings: dict[str, object], message: str) -> None:
    """A config in code is checked like one in a grid."""
    with pytest.raises(ConfigError) as error:
        TrainConfig(backbone="x", **settings)
    assert message in str(error.value)
    with pytest.raises(ConfigError):
        TrainConfig(backbone="x").replace(**settings)


def test_a_protocol_and_what_it_reads(tmp_path: Path) -> None:
    """A protocol comes from [train], is the same after JSON and sorts its rates. The command line overrides it."""
    path = tmp_path / "own.toml"
    path.write_text(MATRIX + '[train]\nprotocol = "tuned"\nlearning_rates = [1e-2, 1, 1e-3]\n')
    grid = load_grid(str(path))
    found = expand(grid, weights="auto", spec=lambda s: s, devices=lambda: HAVE)
    assert {cell.config.learning_rates for cell in found} == {(1e-3, 1e-2, 1.0)}
    assert {cell.config.trainings for cell in found} == {4}
    assert json.loads(json.dumps(grid.shared_settings)) == grid.shared_settings
    path.write_text(MATRIX + "[[include]]\nfolds = 3\n[train]\nprotocol = 'kfold'\n")
    found = expand(load_grid(str(path)), weights="auto", spec=lambda s: s, devices=lambda: HAVE)
    assert {(cell.config.protocol, cell.config.trainings) for cell in found} == {("kfold", 5), ("kfold", 3)}
    path.write_text(MATRIX)
    chosen = load_grid(str(path)).override({}, {"protocol": "kfold"})
    assert chosen.shared_settings["protocol"] == "kfold"
    assert run_name(chosen, None, "auto", {}) == "own-kfold"
    assert run_name(chosen, None, "random", {"epochs": 1, "protocol": "kfold"}) == "own-kfold-epochs1-random"
    some = settings_of(["fold=true", "lookahead=auto", "learning_rate=0.01"], {"batch_size": 8, "epochs": None})
    assert run_name(chosen, None, "auto", some) == "own-kfold-batch8-fold-true-lookahead-auto-learning_rate-0.01"


SWITCHES = [name for name, field in TrainConfig.model_fields.items() if field.annotation is bool]


@pytest.mark.parametrize("name", SWITCHES)
def test_a_grid_can_turn_settings_on(tmp_path: Path, name: str) -> None:
    """The value must be true or false."""
    place = tmp_path / "own.toml"
    for value, valid in (("true", True), ("1", False), ('"yes"', False)):
        place.write_text(f'[matrix]\nbackbones = ["timm:test_resnet"]\n[train]\nviews = 3\n{name} = {value}\n')
        if valid:
            shared = load_grid(str(place)).shared_settings
            assert shared[name] is True and shared["views"] == 3, "no regime reads all settings"
        else:
            with pytest.raises(ConfigError, match=rf"{name}=.*: must be true or false"):
                load_grid(str(place))
