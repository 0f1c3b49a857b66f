"""Networks of Keras: what trains and what stays, modes, weights and preprocessing, on a tiny network."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import tl
from bench.sweep.choices import choices
from tests.servers import serve
from tests.weights import epochs_for, proof_of
from tl import keras_models, keras_names
from tl.backbones import find_weights
from tl.datasets import Splits
from tl.errors import ConfigError, NotApplicable, WeightsError
from tl.network import unreachable
from tl.regimes import EVERYTHING, REGIMES
from tl.stages import stages

pytestmark = [
    pytest.mark.skipif(find_spec("keras") is None, reason="Keras isn't installed"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # of Keras's own code
]
SIZE = 32
PARAMETERS = (24 * 9 + 2 * 8) + (8 * 16 * 9 + 2 * 16) + (16 * 24 * 9 + 24)


@pytest.fixture(scope="module")
def keras(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Keras on torch, with its files in a folder of the tests; not loaded in this process before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        library = keras_models._keras()
        # Another test may have loaded it before.
        patch.setattr(library.src.backend.config, "_KERAS_DIR", str(tmp_path_factory.mktemp("keras")))
        yield library


URL = {"address": "", "hash": ""}


@pytest.fixture
def tiny(keras: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tiny network in place of VGG16, with that network's preprocessing; three stages, norms and dropout."""
    from keras import layers
    from keras.src.applications import imagenet_utils
    from keras.src.utils import file_utils

    def make(weights: str | None = None, include_top: bool = True, pooling: str | None = None) -> Any:
        first = keras.config.image_data_format() == "channels_first"
        shape = imagenet_utils.obtain_input_shape(None, SIZE, 8, keras.config.image_data_format(), include_top, weights)
        given = layers.Input(shape)
        axis = 1 if first else -1
        x = layers.BatchNormalization(axis=axis)(layers.Conv2D(8, 3, 2, use_bias=False)(given))
        x = layers.Dropout(0.3)(layers.ReLU()(x))
        x = layers.ReLU()(layers.BatchNormalization(axis=axis)(layers.Conv2D(16, 3, 2, use_bias=False)(x)))
        x = layers.Conv2D(24, 3, 2)(x)
        made = keras.Model(given, layers.GlobalAveragePooling2D()(x))
        if weights:
            made.load_weights(file_utils.get_file("tiny_notop.h5", URL["address"] + "/t.h5", file_hash=URL["hash"]))
        return made

    make.__module__ = "keras.src.applications.vgg16"
    monkeypatch.setattr(keras.applications, "VGG16", make)
    return make


@pytest.fixture
def file(tiny: Any, keras: Any, tmp_path: Path) -> Path:
    """Weights of such a network that was built with channels last, as Keras's are, in Keras's older format."""
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    h5py = pytest.importorskip("h5py")
    keras.utils.set_random_seed(3)
    network = tiny()
    for variable in network.variables:
        if "seed" not in variable.path:
            variable.assign(torch.rand(tuple(variable.shape)) * 0.4 + 0.1)
    with h5py.File(tmp_path / "t.h5", "w") as group:
        save_weights_to_hdf5_group(group, network)
    return tmp_path / "t.h5"


@pytest.fixture
def folder(file: Path, tmp_path: Path) -> Path:
    """A folder of weights that has them."""
    (tmp_path / "weights").mkdir()
    return Path(file.rename(tmp_path / "weights" / "keras-VGG16.h5")).parent


def train(splits: Splits, folder: Path, regime: str, **settings: Any) -> Any:
    config = tl.TrainConfig(backbone="keras:VGG16", regime=regime, epochs=epochs_for(regime), batch_size=8, **settings)
    return tl.train_model(config, splits, device="cpu", weights_dir=folder)


REFUSED = {
    "zeroshot": "no classifier that is known",
    "lora": "low-rank updates need linear layers or 1x1 convolutions",
    "quantized": "can't be quantised",
    "quantized-finetune": "can't be quantised",
    "last-3": "this backbone has 3 stages",
}


@pytest.mark.parametrize("regime", REGIMES)
def test_every_regime_trains_a_network_of_keras(regime: str, folder: Path, mini: Splits) -> None:
    """What it doesn't train stays as it was, statistics too, and what it can't do is said."""
    if regime in REFUSED:
        with pytest.raises(NotApplicable, match=REFUSED[regime]):
            train(mini, folder, regime)
        return
    result = train(mini, folder, regime)
    assert result.frozen_verified is proof_of(regime)
    assert result.weights.kind == ("random" if REGIMES[regime].start == "random" else "pretrained")
    before = tl.make_backbone("keras:VGG16", weights=result.weights.kind, weights_dir=folder).module.state_dict()
    after = result.model.backbone.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    statistics = {name for name in before if "running" in name}
    assert len(statistics) == 4
    if regime == "frozen-tutorial":
        assert moved == statistics
    elif REGIMES[regime].trainable is EVERYTHING:
        assert moved == set(before)
    elif regime == "norm-only":
        assert moved == {name for name in before if "batch_normalization" in name}
    elif regime == "bias-only":
        assert moved == {name for name in before if name.endswith("bias")}
    elif regime == "last-2":
        assert moved == {name for name in before if "_1." in name or "conv2d_2" in name or "conv2d_1" in name}
    elif proof_of(regime) and REGIMES[regime].trainable.backbone is None:
        assert not moved
    if REGIMES[regime].by_steps:
        assert result.total_params == PARAMETERS + 24 * 2 + 2


def test_a_network_is_that_of_keras(tiny: Any, keras: Any) -> None:
    """In both modes, with the statistics that move, and with the gradients."""
    keras.config.set_image_data_format("channels_first")
    try:
        network = tiny()
    finally:
        keras.config.set_image_data_format("channels_last")
    for layer in network.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    ours = keras_models.KerasNetwork(network, SIZE, channels_last=False, reversed_channels=False)
    images = torch.rand(4, 3, SIZE, SIZE)
    values = [variable.value.detach().clone() for variable in network.variables]
    for training in (False, True):
        for variable, value in zip(network.variables, values, strict=True):
            variable.assign(value)
            variable.value.grad = None
        wanted = network(images, training=training)
        wanted.sum().backward()
        gradients = {v.path: v.value.grad.clone() for v in network.trainable_variables}
        statistics = {v.path: v.value.detach().clone() for v in network.non_trainable_variables}
        fresh = copy.deepcopy(ours).train(training)
        made = fresh(images)
        made.sum().backward()
        assert torch.allclose(made, wanted, atol=1e-6)
        own = dict(fresh.named_parameters())
        assert len(own) == len(gradients)
        for (name, parameter), gradient in zip(own.items(), gradients.values(), strict=True):
            assert torch.allclose(parameter.grad, gradient, atol=1e-5), name
        moved = [value for path, value in statistics.items() if "moving" in path]
        for buffer, value in zip(fresh.buffers(), moved, strict=True):
            assert torch.allclose(buffer, value, atol=1e-6)


def test_layers_have_modes_of_their_own(tiny: Any) -> None:
    """A layer in eval mode keeps its statistics, though another one trains; a copy is independent."""
    network: Any = tl.make_backbone("keras:VGG16", weights="random").module.eval()
    names = [name for name, _ in network.named_buffers()]
    before = {name: value.clone() for name, value in network.named_buffers()}
    other = copy.deepcopy(network)
    network.get_submodule(names[-1].rpartition(".")[0]).train()
    network(torch.rand(4, 3, SIZE, SIZE))
    moved = [name for name, value in network.named_buffers() if not torch.equal(value, before[name])]
    assert moved == names[2:]
    assert all(torch.equal(value, before[name]) for name, value in other.named_buffers())
    assert len(stages(network)) == 3


def test_random_numbers_follow_torchs_seed(tiny: Any) -> None:
    """Of new weights and of dropout; Python's own are left as they were."""
    import random

    state = random.getstate()
    one, two, other = (tl.make_backbone("keras:VGG16", weights="random", seed=seed).module for seed in (1, 1, 2))
    assert random.getstate() == state
    kernels = [next(module.parameters()) for module in (one, two, other)]
    assert torch.equal(kernels[0], kernels[1]) and not torch.equal(kernels[0], kernels[2])
    images, made = torch.rand(2, 3, SIZE, SIZE), []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        made.append(copy.deepcopy(one).train()(images))
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_features_are_those_of_the_file(file: Path, folder: Path, tiny: Any, keras: Any) -> None:
    """A network that was saved with channels last gives them for images in blue, green, red, without scaling."""
    made = tl.make_backbone("keras:VGG16", weights="pretrained", weights_dir=folder)
    assert (made.weights.source, made.width, made.preprocessing.size) == ("weights-dir", 24, SIZE)
    network = tiny()
    network.load_weights(folder / "keras-VGG16.h5")
    pixels = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    scale = made.preprocessing
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (scale.mean, scale.std))
    ours = made.module.eval()((pixels / 255 - mean) / std)
    theirs = keras.applications.vgg16.preprocess_input(pixels.permute(0, 2, 3, 1).numpy().astype("float32"))
    wanted = network(torch.tensor(theirs.copy()), training=False)
    assert torch.allclose(ours, wanted, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "mean", "std", "flipped"),
    [
        ("vgg16", (0.48502, 0.457957, 0.407604), 1 / 255, True),
        ("mobilenet_v2", (0.5, 0.5, 0.5), 0.5, False),
        ("densenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), False),
        ("efficientnet", (0.0, 0.0, 0.0), 1 / 255, False),
    ],
)
def test_preprocessing_of_each_mode(family: str, mean: Any, std: Any, flipped: bool, keras: Any, tiny: Any) -> None:
    """Of `caffe`, `tf` and `torch`, and of networks that have it built in."""
    tiny.__module__ = f"keras.src.applications.{family}"
    made = tl.make_backbone("keras:VGG16", weights="random")
    assert made.preprocessing.mean == pytest.approx(mean, abs=1e-5)
    assert made.preprocessing.std == pytest.approx(std if isinstance(std, tuple) else (std,) * 3, rel=1e-5)
    assert vars(made.module)["_reversed"] is flipped


@pytest.mark.filterwarnings("ignore:`input_shape` is undefined:UserWarning")  # of Keras's MobileNet
@pytest.mark.parametrize("name", ["EfficientNetB0", "MobileNetV3Small"])
def test_a_family_with_published_weights_is_that_of_keras(
    name: str, keras: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its features are those of the network that Keras itself makes of the file, which differs from a random one."""
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group
    from keras.src.utils import file_utils

    h5py = pytest.importorskip("h5py")
    make = getattr(keras.applications, name)
    (tmp_path / "weights").mkdir()
    path = tmp_path / "weights" / f"keras-{name}.h5"
    monkeypatch.setattr(file_utils, "get_file", lambda *_, **__: str(path))
    keras.utils.set_random_seed(3)
    with monkeypatch.context() as patch:
        patch.setattr(keras.Model, "load_weights", lambda *_: None)
        network = make(weights="imagenet", include_top=False, pooling="avg")
    for layer in network.layers:
        if type(layer).__name__ == "Normalization":
            layer.adapt_mean.assign(torch.tensor([0.4, 0.5, 0.6]))
            layer.adapt_variance.assign(torch.tensor([0.04, 0.05, 0.06]))
            layer.finalize_state()
        if type(layer).__name__ == "BatchNormalization":
            layer.momentum = 0.0
        if type(layer).__name__ == "Dropout":
            layer.rate = 0.0
    pixels = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():  # so that statistics are those of images, and features differ from image to image
        network(pixels.permute(0, 2, 3, 1).float(), training=True)
    with h5py.File(path, "w") as group:
        save_weights_to_hdf5_group(group, network)
    made = tl.make_backbone(f"keras:{name}", weights="pretrained", weights_dir=path.parent)
    theirs = make(weights="imagenet", include_top=False, pooling="avg")
    scale = made.preprocessing
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (scale.mean, scale.std))
    with torch.no_grad():
        ours = made.module.eval()((pixels / 255 - mean) / std)
        wanted = theirs(pixels.permute(0, 2, 3, 1).float(), training=False)  # both have their preprocessing inside
    assert torch.allclose(ours, wanted, atol=1e-3 * float(wanted.std(0).mean()))
    assert keras.config.image_data_format() == "channels_last"


def test_weights_are_downloaded_once(file: Path, monkeypatch: pytest.MonkeyPatch, keras: Any) -> None:
    """From the address that Keras names, checked by its digest, into Keras's cache; not where nothing may be."""
    content = file.read_bytes()
    with serve({"/t.h5": content}) as address:
        monkeypatch.setitem(URL, "address", address)
        monkeypatch.setitem(URL, "hash", hashlib.md5(content).hexdigest())
        unreachable.cache_clear()
        with pytest.raises(WeightsError, match="not on this machine, and TL_OFFLINE is set"):
            find_weights("keras:VGG16", "pretrained")
        monkeypatch.setenv("TL_OFFLINE", "")
        unreachable.cache_clear()
        with pytest.raises(WeightsError, match="a run downloads them from"):
            find_weights("keras:VGG16", "pretrained", download=False)
        monkeypatch.setitem(URL, "hash", "0" * 32)
        with pytest.raises(WeightsError, match="is damaged: its md5 is"):
            find_weights("keras:VGG16", "pretrained")
        monkeypatch.setitem(URL, "hash", hashlib.md5(content).hexdigest())
        assert find_weights("keras:VGG16", "pretrained").source == "download"
    unreachable.cache_clear()
    found = find_weights("keras:VGG16", "pretrained")
    assert (found.source, found.label) == ("Keras's cache", "tiny_notop.h5")
    assert found.path and found.path.read_bytes() == content
    found.path.unlink()


def test_a_wrong_file_is_one_line(folder: Path, keras: Any) -> None:
    """One that is none, and one of another network."""
    for content in (b"hello", b""):
        (folder / "keras-VGG16.h5").write_bytes(content)
        with pytest.raises(WeightsError, match=r"keras-VGG16\.h5: can't be read as weights: it is dam") as raised:
            tl.make_backbone("keras:VGG16", weights="pretrained", weights_dir=folder)
        assert "\n" not in str(raised.value)
    network = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)])
    (folder / "keras-VGG16.h5").unlink()
    network.save_weights(folder / "keras-VGG16.weights.h5")
    with pytest.raises(WeightsError, match=r"keras-VGG16\.weights\.h5 does not fit the network"):
        tl.make_backbone("keras:VGG16", weights="pretrained", weights_dir=folder)


def test_what_is_refused(tiny: Any, mini: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown names with near matches, checkpointing without blocks, and Keras that isn't installed."""
    with pytest.raises(ConfigError, match="has no such network; near matches: ResNet50"):
        tl.make_backbone("keras:resnet50")
    config = tl.TrainConfig(backbone="keras:VGG16", weights="random", regime="finetune", checkpointing=True)
    with pytest.raises(NotApplicable, match="checkpointing needs 2 or more blocks"):
        tl.train_model(config, mini, device="cpu")
    assert "keras:ResNet50" in choices("backbones", "keras:Res") and "keras:NAME" in choices("backbones", "keras")
    with monkeypatch.context() as patch:
        patch.setattr("keras.backend.backend", lambda: "jax")
        with pytest.raises(ConfigError, match="RuntimeError: this process has loaded Keras on jax already") as raised:
            keras_models.MAKER.load("VGG16")
    assert str(raised.value).startswith("backbone='keras:VGG16': ")
    monkeypatch.setattr("tl.extras.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs keras, which isn't installed: pip install 'tl-bench\[keras\]'"):
        tl.make_backbone("keras:VGG16")


def test_names_are_those_of_keras(keras: Any) -> None:
    """Read from its source, so that a command needs not load it."""
    assert keras_names._listed() == sorted(
        name for name, value in vars(keras.applications).items() if callable(value) and name[:1].isupper()
    )


def test_a_whole_network_of_keras(keras: Any) -> None:
    """One that must be built with channels last, with sequences of layers in it."""
    made = tl.make_backbone("keras:ConvNeXtTiny", weights="random")
    assert (made.width, made.preprocessing.size) == (768, 224) and len(stages(made.module)) == 4


def test_batch_norm_can_stay_frozen(folder: Path, mini: Splits) -> None:
    """While everything else is fine-tuned: neither its parameters nor its statistics change."""
    result = train(mini, folder, "finetune", freeze_bn=True)
    before = tl.make_backbone("keras:VGG16", weights="pretrained", weights_dir=folder).module.state_dict()
    after = result.model.backbone.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert result.frozen_verified and same == {name for name in before if "batch_normalization" in name}
