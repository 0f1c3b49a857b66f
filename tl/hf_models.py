"""Networks of the Hugging Face hub: those of timm, built by timm, and those of transformers, pooled.

Weights are read from safetensors alone, and no code of a repository runs.
"""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from tl.batches import Preprocessing, centre_view, normalised
from tl.batches import channel_scale as scale_on
from tl.devices import seeded
from tl.errors import WeightsError, near_matches
from tl.filling import filled
from tl.hf import WEIGHTS, Described, NoSuchFile, Repository, described, fetched, in_cache, repository_of
from tl.imagenet import output
from tl.library import Backbone, Maker, fitting
from tl.observed import Scale, scale_of
from tl.own_code import named
from tl.own_models import as_backbone
from tl.timm_models import cut, preprocessing_of
from tl.weights import Checkpoint, Weights, load_state_dict

_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of interpolations → names."""
_ROUNDING, _PIXEL = 0.03, 8.0
"""Largest differences of a view from that of transformers, in standard deviations of its pixels: by rounding, and by a
shift of one pixel where an uneven margin is cropped, times the view's side."""


def _checkpoint(source: str, name: str) -> Checkpoint:
    repository = repository_of(source, name)
    found = described(repository)
    _check_known(repository, found)
    label = repository.text
    if source == "hf-local":
        return Checkpoint(
            label=label,
            file_names=(),
            bundled_as="",
            cached=lambda: (_weights_in(found.folder), "folder"),
            download=lambda: _weights_in(found.folder),
            url="",
        )
    from huggingface_hub import constants

    def cached() -> tuple[Path, str] | None:
        path = in_cache(repository, WEIGHTS)
        return (path, "Hugging Face cache") if path else None

    return Checkpoint(
        label=label,
        file_names=(),
        bundled_as="",
        cached=cached,
        download=partial(_downloaded, repository),
        url=f"{constants.ENDPOINT}/{repository.module}",
    )


def _weights_in(folder: Path) -> Path:
    if not (folder / WEIGHTS).is_file():
        raise WeightsError(f"{folder} has no {WEIGHTS}; files of other kinds are not read, since they can run code")
    return folder / WEIGHTS


def _downloaded(repository: Repository) -> Path:
    try:
        return fetched(repository, WEIGHTS)
    except NoSuchFile as error:
        why = f"it has no {WEIGHTS}; files of other kinds are not read, since they can run code"
        raise WeightsError(why) from error


def _check_known(repository: Repository, found: Described) -> None:
    """Raise `ConfigError` if the installed library has no such network."""
    if found.by_timm:
        architecture = found.config["architecture"]
        if not timm.is_model(architecture):
            hint = near_matches(architecture, timm.list_models())
            raise repository.wrong(f"timm {timm.__version__} has no network {architecture!r}{hint}")
        return
    _class_of(repository, found)


def _transformers() -> Any:
    """Load transformers, without its messages and bars on the terminal."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def _class_of(repository: Repository, found: Described) -> Any:
    """Return the class that the weights were saved from. Raises `ConfigError` if transformers has it not."""
    library = _transformers()
    kind = str(found.config.get("model_type"))
    if kind not in library.CONFIG_MAPPING:
        if found.config.get("auto_map"):
            raise repository.wrong("needs code of its repository, and that is never run")
        hint = near_matches(kind, library.CONFIG_MAPPING.keys())
        raise repository.wrong(f"transformers {library.__version__} has no model_type {kind!r}{hint}")
    for name in found.config.get("architectures") or []:
        if (saved := getattr(library, str(name), None)) is not None:
            return saved
    configured = library.CONFIG_MAPPING[kind]
    if configured not in library.MODEL_MAPPING:
        raise repository.wrong(f"transformers has no network for its model_type {kind!r}")
    return library.MODEL_MAPPING[configured]


def _make(source: str, name: str, weights: Weights) -> Backbone:
    repository = repository_of(source, name)
    found = described(repository)
    _check_known(repository, found)
    if found.by_timm:
        made = _by_timm(repository, found, weights)
    else:
        with named(repository):
            made = _by_transformers(repository, found, weights)
    return as_backbone(repository, made, "a tl.Backbone")


def _by_timm(repository: Repository, found: Described, weights: Weights) -> Backbone:
    make = partial(timm.create_model, f"local-dir:{found.folder}")
    with named(repository):
        if weights.kind == "random":
            module: nn.Module = make(pretrained=False)
        else:
            given = load_state_dict(weights, {})
            with fitting(str(repository), weights):
                module = filled(lambda: make(pretrained=True, pretrained_cfg_overlay={"state_dict": given}))
        preprocessing = preprocessing_of(_Config(module.pretrained_cfg), f"{repository.source}:{repository.text}")
        _, width = cut(module)
    return Backbone(module, width, preprocessing)


class _Config:
    """A dictionary of settings whose values are attributes, as those of timm's own networks."""

    def __init__(self, settings: Any) -> None:
        vars(self).update(settings)


def _by_transformers(repository: Repository, found: Described, weights: Weights) -> Backbone:
    whole, missing = _whole(repository, found, weights)
    base = whole.base_model
    base = getattr(base, "vision_model", base)  # of a network for images and texts
    names = {id(value): name for name, value in (*whole.named_parameters(), *whole.named_buffers())}
    own = {names[id(value)] for value in (*base.parameters(), *base.buffers()) if id(value) in names}
    lost = sorted(name for name in own & missing if not name.endswith("num_batches_tracked"))  # older files have none
    if lost:
        raise WeightsError(f"{weights.label} does not fit the network: it lacks {len(lost)} tensors, such as {lost[0]}")
    if getattr(base, "main_input_name", "") != "pixel_values":
        raise repository.wrong(f"{type(base).__name__} is no network for images")
    preprocessing, scale = _preprocessing(repository, found)
    module = ImageNetwork(base, preprocessing.size, reversed_channels=scale.reversed)
    images = torch.randn(2, 3, preprocessing.size, preprocessing.size, generator=torch.Generator().manual_seed(0))
    first = output(module, images)
    if not torch.equal(first, output(module, images)):
        raise repository.wrong("its features are random: it hides parts of an image by chance, in use too")
    return Backbone(module, first.shape[-1], preprocessing)


def _whole(repository: Repository, found: Described, weights: Weights) -> tuple[Any, set[str]]:
    """Build the network that was saved, in single precision, and name its tensors that the file lacks."""
    kind = _class_of(repository, found)
    config = kind.config_class.from_pretrained(found.folder, local_files_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers, about settings that nobody here can change
        if weights.kind == "random":
            return kind._from_config(config, dtype=torch.float32), set()
        assert weights.path is not None
        with fitting(str(repository), weights), seeded(0):
            made, info = kind.from_pretrained(
                weights.path.parent,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        return made, set(info["missing_keys"])


class ImageNetwork(nn.Module):
    """A network of transformers as a backbone: `(B, 3, S, S)` → pooled features `(B, width)`."""

    def __init__(self, network: nn.Module, size: int, *, reversed_channels: bool) -> None:
        super().__init__()
        self.network = network
        self.pooling = _Pooling(any(name.rpartition(".")[2] == "cls_token" for name, _ in network.named_parameters()))
        self.image_size = size
        self._reversed = reversed_channels

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features of normalised images."""
        features: torch.Tensor = self.pooling(self.network(pixel_values=images.flip(1) if self._reversed else images))
        return features


class _Pooling(nn.Module):
    """Features of an output of transformers: what the network itself pools, if it does.

    Else they are its class token, if it has one, or the mean of its tokens or of its map.
    """

    def __init__(self, has_token: bool) -> None:
        super().__init__()
        self._has_token = has_token

    def forward(self, made: Any) -> torch.Tensor:
        """Return `(B, width)`."""
        pooled: Any = getattr(made, "pooler_output", None)
        if pooled is None:
            pooled = made.last_hidden_state
        if pooled.ndim == 4:
            pooled = pooled.mean((2, 3))
        elif pooled.ndim == 3:
            pooled = pooled[:, 0] if self._has_token else pooled.mean(1)
        features: torch.Tensor = pooled
        return features


def _preprocessing(repository: Repository, found: Described) -> tuple[Preprocessing, Scale]:
    """Find what does to images what transformers does. Raises `ConfigError` if ours can't."""
    processor = _processor(repository, found)

    def process(image: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = processor(image, return_tensors="pt")["pixel_values"][0]
        return made

    interpolation = _INTERPOLATIONS.get(int(getattr(processor, "resample", 2) or 0))
    wanted = process(_smooth())
    scale = scale_of(process)
    if interpolation and scale and wanted.ndim == 3 and wanted.shape[1] == wanted.shape[2]:
        size = int(wanted.shape[1])
        tried = [
            Preprocessing(size=size, resize=side, mean=scale.mean, std=scale.std, interpolation=interpolation, squash=s)
            for side, s in _candidates(processor, size)
        ]
        off = [_difference(one, wanted.flip(0) if scale.reversed else wanted) for one in tried]
        if min(off) <= _ROUNDING + _PIXEL / size:
            return tried[off.index(min(off))], scale
    raise repository.wrong(
        f"its preprocessing ({type(processor).__name__}) is not a resize, a centre crop to a square and a scale of "
        "each channel; a function of yours can make a tl.Backbone of it (module:MODULE:NAME)"
    )


def _processor(repository: Repository, found: Described) -> Any:
    # If nothing is said of trust, transformers asks on the terminal whether to run code of the repository.
    settings: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        return _transformers().AutoImageProcessor.from_pretrained(found.folder, **settings)
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise repository.wrong("its preprocessing needs code of its repository, and that is never run") from error
        raise


def _difference(tried: Preprocessing, wanted: torch.Tensor) -> float:
    """Return the largest difference of our view of an image from theirs, in standard deviations of its pixels."""
    made = normalised(centre_view(_smooth(), tried)[None], scale_on(tried, torch.device("cpu")))[0]
    return float((made - wanted).abs().max() / wanted.std())


def _smooth() -> torch.Tensor:
    """An image `(3, 300, 400) uint8` without edges, on which another rounding of a place makes little difference."""
    down, right = torch.linspace(0, 1, 300).view(-1, 1), torch.linspace(0, 1, 400).view(1, -1)
    waves = [(down * 5).sin() * (right * 3).cos(), (down * 2 + right * 4).sin(), (down * 3).cos() + right - 1]
    return torch.stack([(wave + 1).mul(127).clamp(0, 255).expand(300, 400) for wave in waves]).byte()


def _candidates(processor: Any, size: int) -> list[tuple[int, bool]]:
    """Sides to which images may be resized before the crop to `size`, each with whether the aspect ratio is lost."""
    given = getattr(processor, "size", None) or {}
    sides = [int(value) for key in ("shortest_edge", "height") if (value := _part(given, key))]
    share = getattr(processor, "crop_pct", None)
    sides += [int(size / share) if share else int(size * 256 / 224), size]
    return [(side, squash) for side in dict.fromkeys(sides) if side >= size for squash in (False, True)]


def _part(given: Any, key: str) -> Any:
    return given.get(key) if isinstance(given, dict) else getattr(given, key, None)


def _load(source: str, name: str) -> object:
    """Load the library of a network."""
    found = described(repository_of(source, name))
    return timm if found.by_timm else _transformers()


def _maker(source: str) -> Maker:
    return Maker(checkpoint=partial(_checkpoint, source), make=partial(_make, source), load=partial(_load, source))


MAKER, LOCAL_MAKER = _maker("hf"), _maker("hf-local")
