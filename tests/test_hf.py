"""Networks of the Hugging Face hub: pinned commits, timm's and transformers' networks, and what goes wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import tl
from tests.commands import here
from tests.servers import serve
from tests.weights import epochs_for, proof_of
from tl import hf
from tl.backbones import find_weights
from tl.batches import centre_view, channel_scale, normalised
from tl.datasets import Splits
from tl.errors import ConfigError, NotApplicable, WeightsError
from tl.network import unreachable
from tl.regimes import REGIMES
from tl.specs import canonical

transformers = pytest.importorskip("transformers")
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 16,
}
MAPS = {"embedding_size": 8, "hidden_sizes": [8, 8, 12, 16], "depths": [1, 1, 1, 1]}
COMMIT = "0" * 40
"""That of `tests.servers`."""


def save(folder: Path, network: Any, processor: Any = None) -> Path:
    """Write a network as transformers does."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(4)
    for parameter in network.parameters():  # nothing is as a new network would have it
        torch.nn.init.normal_(parameter, std=0.2)
    network.save_pretrained(folder)
    (processor or transformers.ViTImageProcessor(size={"height": 32, "width": 32})).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of folders with tiny networks: two of transformers and two of timm, with attention and with maps."""
    root = tmp_path_factory.mktemp("hf")
    save(root / "vit", transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES, num_labels=5)))
    crop = transformers.ConvNextImageProcessor(size={"shortest_edge": 64}, resample=2)
    save(root / "resnet", transformers.ResNetForImageClassification(transformers.ResNetConfig(**MAPS)), crop)
    for name, architecture in (("timm", "test_vit2"), ("timm-maps", "test_resnet")):
        torch.manual_seed(4)
        network = timm.create_model(architecture, num_classes=7)
        config = {k: v for k, v in network.pretrained_cfg.items() if isinstance(v, int | float | str | list | tuple)}
        settings = {"architecture": architecture, "num_classes": 7, "pretrained_cfg": {**config, "crop_pct": 0.8}}
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(settings))
        save_file(network.state_dict(), root / name / "model.safetensors")
    return root


@pytest.fixture
def at(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder has them."""
    monkeypatch.chdir(saved)


@pytest.fixture
def hub(saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, bytes]]:
    """A server with the transformer as `me/vit` in place of the hub, by path, and an empty cache."""
    from huggingface_hub import constants

    files = {
        f"/me/vit/resolve/{revision}/{file.name}": file.read_bytes()
        for file in (saved / "vit").iterdir()
        for revision in ("main", "v1", COMMIT)
    }
    monkeypatch.setenv("TL_OFFLINE", "")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    unreachable.cache_clear()
    with serve(files) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield files
    unreachable.cache_clear()


REFUSED = {
    (regime, name): "can't be quantised" for regime in ("quantized", "quantized-finetune") for name in ("vit", "resnet")
}
"""What a regime can't do with a network, and the reason that is given."""


def check_regime(regime: str, name: str, backbone: str, splits: Splits) -> tl.TrainResult | None:
    """Train, and prove that what is frozen stayed as it was. Returns None if the regime has no meaning here."""
    config = tl.TrainConfig(backbone=backbone, regime=regime, epochs=epochs_for(regime), batch_size=8)
    config = config.replace(lora_rank=1) if REGIMES[regime].adapter == "lora" else config
    said = "no classifier that is known" if REGIMES[regime].head == "own" else REFUSED.get((regime, name))
    if said:
        with pytest.raises(NotApplicable, match=said):
            tl.train_model(config, splits, device="cpu")
        return None
    result = tl.train_model(config, splits, device="cpu")
    assert result.frozen_verified is proof_of(regime) and dict(result.config.code).keys() == {"backbone"}
    assert result.weights.kind == ("random" if REGIMES[regime].start == "random" else "pretrained")
    return result


@pytest.mark.parametrize("name", ["vit", "resnet", "timm-maps"])
@pytest.mark.parametrize("regime", REGIMES)
def test_every_regime_trains_a_network_of_a_folder(regime: str, name: str, at: None, mini: Splits) -> None:
    """Of transformers, with attention and with maps, and of timm."""
    result = check_regime(regime, name, f"hf-local:{name}", mini)
    assert result is None or result.weights.source in ("folder", "random")


@pytest.mark.parametrize("regime", REGIMES)
def test_every_regime_trains_a_network_of_the_hub(regime: str, hub: dict[str, bytes], mini: Splits) -> None:
    """By its branch."""
    result = check_regime(regime, "vit", "hf:me/vit@v1", mini)
    assert result is None or result.weights.source in ("download", "Hugging Face cache", "random")


def test_features_are_those_of_transformers(at: None) -> None:
    """Of the network that was saved, without its classifier, on images that went through its own preprocessing."""
    picture = torch.linspace(0, 255, 3 * 90 * 120).view(3, 90, 120).byte()
    for name, pooled in (
        ("vit", lambda made: made.last_hidden_state[:, 0]),
        ("resnet", lambda made: made[1].flatten(1)),
    ):
        processor = transformers.AutoImageProcessor.from_pretrained(name)
        whole = transformers.AutoModelForImageClassification.from_pretrained(name).eval()
        made = tl.make_backbone(f"hf-local:{name}", weights="pretrained")
        images = processor(picture, return_tensors="pt")["pixel_values"]
        view = centre_view(picture, made.preprocessing)[None]
        ours = normalised(view, channel_scale(made.preprocessing, torch.device("cpu")))
        assert torch.allclose(ours, images, atol=0.02)
        with torch.no_grad():
            wanted = pooled(whole.base_model(pixel_values=images))
            assert torch.allclose(made.module.eval()(images), wanted, atol=1e-5) and wanted.shape == (1, made.width)


def test_a_network_of_timm_is_built_by_timm(at: None) -> None:
    """With the settings of its folder, and without its classifier."""
    made = tl.make_backbone("hf-local:timm", weights="pretrained")
    state = load_file("timm/model.safetensors")
    own = made.module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in own.items()) and len(own) == len(state) - 2
    assert made.preprocessing.resize == int(made.preprocessing.size / 0.8)
    assert tl.make_backbone("hf-local:timm", weights="random").weights.kind == "random"


def variant(saved: Path, name: str, **settings: Any) -> Path:
    """A copy of a folder in the working folder, with other settings; those that are None are left out."""
    copy = Path(shutil.copytree(saved / name, "copy"))
    config = json.loads((copy / "config.json").read_text()) | settings
    (copy / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return copy


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("timm", {"architecture": "test_vitt2"}, "timm .* has no network 'test_vitt2'; near matches: test_vit2"),
        ("vit", {"model_type": "vitt"}, "transformers .* has no model_type 'vitt'; near matches: vit"),
        ("vit", {"model_type": "mine", "auto_map": {"AutoModel": "x.Y"}}, "needs code of its repository, and that is"),
        ("vit", {"model_type": None}, "names neither a network of timm nor one of transformers"),
        ("vit", {"hidden_size": 24}, "does not fit the network"),
        ("vit", {"num_hidden_layers": 4}, "does not fit the network: it lacks 16 tensors, such as "),
    ],
)
def test_wrong_settings_are_one_line(
    name: str, settings: dict[str, Any], said: str, saved: Path, tmp_path: Path
) -> None:
    """That names the folder and says what is wrong."""
    variant(saved, name, **settings)
    with pytest.raises((ConfigError, WeightsError), match=said) as raised:
        tl.make_backbone("hf-local:copy", weights="pretrained")
    assert "hf-local:copy" in str(raised.value) or "copy" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_a_folder_lacks_is_said(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle is never read in place of safetensors, and nobody guesses what images a network expects."""
    copy = variant(saved, "vit")
    (copy / "model.safetensors").unlink()
    torch.save({}, copy / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"has no model\.safetensors; files of other kinds are not read"):
        tl.make_backbone("hf-local:copy", weights="pretrained")
    assert tl.make_backbone("hf-local:copy", weights="random").width == 16
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match=r"it has no preprocessor_config\.json"):
        tl.make_backbone("hf-local:copy", weights="random")
    with pytest.raises(ConfigError, match=r"nowhere has no config\.json"):
        tl.make_backbone("hf-local:nowhere")
    monkeypatch.setattr("tl.extras.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs transformers, which isn't installed: pip install 'tl-bench\[transf"):
        tl.make_backbone("hf-local:copy")


def test_networks_that_make_no_features_of_an_image(tmp_path: Path) -> None:
    """One that hides parts by chance, and one for texts."""
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = transformers.ViTMAEConfig(**SIZES | {"patch_size": 4}, **decoder, decoder_intermediate_size=16)
    save(tmp_path / "mae", transformers.ViTMAEForPreTraining(config))
    words = transformers.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    save(tmp_path / "bert", transformers.BertModel(words))
    for name, said in (("mae", "its features are random"), ("bert", "BertModel is no network for images")):
        with pytest.raises(ConfigError, match=said):
            tl.make_backbone(f"hf-local:{name}", weights="pretrained")


def test_the_part_for_images_of_a_network_for_images_and_texts(tmp_path: Path) -> None:
    """Its pooled output are the features."""
    words = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    texts = words | {"vocab_size": 9, "bos_token_id": 1, "eos_token_id": 2}
    network = transformers.CLIPModel(transformers.CLIPConfig(vision_config=SIZES, text_config=texts))
    crop = transformers.CLIPImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    save(tmp_path / "clip", network, crop)
    made = tl.make_backbone("hf-local:clip", weights="pretrained")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = network.eval().vision_model(pixel_values=images).pooler_output
        assert torch.allclose(made.module.eval()(images), wanted, atol=1e-5)
    assert (made.preprocessing.resize, made.preprocessing.interpolation) == (36, "bicubic")


@pytest.mark.parametrize("revision", ["", "@v1", f"@{COMMIT}"])
def test_a_repository_is_pinned_and_downloaded_once(
    revision: str, hub: dict[str, bytes], mini: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commit is in the name; with the whole name nothing more is asked of the network."""
    made = tl.make_backbone(f"hf:me/vit{revision}", weights="pretrained")
    assert made.spec == f"hf:me/vit@{COMMIT}" and made.width == 16
    assert (made.weights.source, made.weights.label) == ("download", f"me/vit@{COMMIT}")
    hub.clear()
    unreachable.cache_clear()
    monkeypatch.setenv("TL_OFFLINE", "1")
    assert find_weights(made.spec, "pretrained").source == "Hugging Face cache"
    config = tl.TrainConfig(backbone=made.spec, regime="frozen", epochs=1, batch_size=8)
    result = tl.train_model(config, mini, device="cpu")
    assert result.weights.digest == made.weights.digest and result.frozen_verified
    if revision != f"@{COMMIT}":  # what a name meant last is known without a network
        assert canonical(f"hf:me/vit{revision}", {}) == made.spec


def test_nothing_is_downloaded_where_it_may_not_be(hub: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights stay where they are, and `auto` says why they are random."""
    spec = canonical("hf:me/vit", {})
    with pytest.raises(WeightsError, match="not on this machine; a run downloads them from"):
        find_weights(spec, "pretrained", download=False)
    assert "a run downloads" in find_weights(spec, "auto", download=False).reason
    monkeypatch.setenv("TL_OFFLINE", "1")
    unreachable.cache_clear()
    with pytest.raises(WeightsError, match="not on this machine, and TL_OFFLINE is set"):
        find_weights(spec, "pretrained")
    with pytest.raises(ConfigError, match="backbone='hf:me/other': its commit is unknown, and TL_OFFLINE is set"):
        canonical("hf:me/other", {})


def test_what_the_hub_lacks_is_one_line(hub: dict[str, bytes]) -> None:
    """With near matches of the same owner, as far as the hub says."""
    del hub[f"/me/vit/resolve/{COMMIT}/model.safetensors"]
    with pytest.raises(WeightsError, match=r"it has no model\.safetensors; files of other kinds are not read"):
        tl.make_backbone("hf:me/vit", weights="pretrained")
    with pytest.raises(ConfigError, match=r"backbone='hf:me/vitt': it has no config\.json"):
        canonical("hf:me/vitt", {})
    wrong = ("me/vit--a", "me/vit.git", "-me/vit", "me/vit@a..b", f"me/vit--a@{COMMIT}")
    for name in ("vit", "me/vit@", "me/vit@a b", "me/vit/x", *wrong):
        with pytest.raises(ConfigError, match=r"must be hf:OWNER/NAME\[@REVISION\]"):
            canonical(f"hf:{name}", {})


def test_an_unknown_model_has_near_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the same owner, which the hub's client lists."""
    import huggingface_hub

    class Api:
        def __init__(self, endpoint: str) -> None:
            pass

        def list_models(self, author: str, limit: int) -> list[Any]:
            return [huggingface_hub.ModelInfo(id=f"{author}/{name}") for name in ("resnet-50", "vit-base")]

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert hf._near(hf.repository_of("hf", "me/resnet50")) == "; near matches: me/resnet-50"


def test_a_command_runs_a_folder(saved: Path, tmp_path: Path) -> None:
    """Its records have the digest of the settings; a change of them makes another cell."""
    variant(saved, "timm")
    words = ["run", "--grid", "smoke", "--backbone", "hf-local:copy", "--regime", "frozen", "--device", "cpu"]
    words += ["--seeds", "1", "--name", "r", "--no-report", "--no-paired", "--executor", "inline"]
    done = here(*words)
    assert done.returncode == 0 and "done in" in done.stdout, done.stdout + done.stderr
    (path,) = (tmp_path / "results" / "r" / "cells").glob("*.json")
    record = json.loads(path.read_text())
    assert record["weights"]["source"] == "folder" and record["weights"]["kind"] == "pretrained"
    settings = json.loads(Path("copy/config.json").read_text())
    Path("copy/config.json").write_text(json.dumps(settings | {"more": 1}))
    again = here(*words)
    assert again.returncode == 2 and "source" in again.stderr, again.stdout + again.stderr
    assert list(path.parent.iterdir()) == [path]


def test_code_of_a_preprocessing_never_runs(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does transformers ask on the terminal whether it may."""
    copy = variant(saved, "vit")
    settings = json.loads((copy / "preprocessor_config.json").read_text())
    settings |= {"image_processor_type": "Mine", "auto_map": {"AutoImageProcessor": "mine.Mine"}}
    (copy / "preprocessor_config.json").write_text(json.dumps(settings))
    (copy / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine:\n    pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ConfigError, match="its preprocessing needs code of its repository, and that is never run"):
        tl.make_backbone("hf-local:copy", weights="random")
    assert not (tmp_path / "ran").exists()


def test_statistics_that_a_file_lacks_are_noticed(saved: Path, tmp_path: Path) -> None:
    """As weights are."""
    copy = variant(saved, "resnet")
    tensors = load_file(copy / "model.safetensors")
    lost = next(name for name in tensors if name.endswith("running_mean"))
    del tensors[lost]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=f"it lacks 1 tensors, such as {lost}"):
        tl.make_backbone("hf-local:copy", weights="pretrained")


@pytest.mark.parametrize("both", [False, True])
def test_settings_follow_from_the_repository_alone(
    both: bool, hub: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not from which of its files another program has put into the cache. Of two files transformers chooses one."""
    inner = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}, "image_mean": [0.25] * 3}
    if both:
        hub[f"/me/vit/resolve/{COMMIT}/processor_config.json"] = json.dumps({"image_processor": inner}).encode()
    repository = hf.repository_of("hf", f"me/vit@{COMMIT}")
    digest = hf.digest_of_settings(repository)
    assert (hf.in_cache(repository, "processor_config.json") is not None) is both
    made = tl.make_backbone(f"hf:me/vit@{COMMIT}", weights="random")
    assert made.preprocessing.mean == ((0.25,) * 3 if both else (0.5,) * 3)
    hub.clear()
    assert hf.digest_of_settings(repository) == digest, "that there is no such file is remembered"
    monkeypatch.setenv("TL_OFFLINE", "1")
    unreachable.cache_clear()
    assert hf.digest_of_settings(repository) == digest


def test_a_folder_has_one_name() -> None:
    """However it is written."""
    assert {canonical(f"hf-local:{name}", {}) for name in ("mine", "./mine", "mine/")} == {"hf-local:mine"}
