"""Tests of the division of networks into stages, against stages that were found by hand in the libraries' sources."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

import tl
from tests.weights import network
from tl.backbones import Classifier
from tl.errors import NotApplicable
from tl.library import library
from tl.stages import last_stages, parameters_of, stages

BY_HAND: dict[str, list[tuple[str, ...]]] = {
    "torchvision:resnet18": [("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)],
    "torchvision:shufflenet_v2_x0_5": [("conv1",), ("stage2",), ("stage3",), ("stage4", "conv5")],
    "torchvision:mobilenet_v2": [
        ("features.0", "features.1"),
        ("features.2", "features.3"),
        ("features.4", "features.5", "features.6"),
        tuple(f"features.{number}" for number in range(7, 14)),
        tuple(f"features.{number}" for number in range(14, 19)),
    ],
    "torchvision:mobilenet_v3_small": [
        ("features.0",),
        ("features.1",),
        ("features.2", "features.3"),
        tuple(f"features.{number}" for number in range(4, 9)),
        (*(f"features.{number}" for number in range(9, 13)), "classifier.0"),
    ],
    "torchvision:densenet121": [
        ("features.conv0", "features.norm0"),
        ("features.denseblock1",),
        ("features.transition1", "features.denseblock2"),
        ("features.transition2", "features.denseblock3"),
        ("features.transition3", "features.denseblock4", "features.norm5"),
    ],
    "torchvision:vgg11": [
        ("features.0",),
        ("features.3",),
        ("features.6", "features.8"),
        ("features.11", "features.13"),
        ("features.16", "features.18", "classifier.0", "classifier.3"),
    ],
    "torchvision:swin_t": [
        ("features.0", "features.1"),
        ("features.2", "features.3"),
        ("features.4", "features.5"),
        ("features.6", "features.7", "norm"),
    ],
    "torchvision:vit_b_32": [
        ("class_token", "conv_proj", "encoder.pos_embedding"),
        *((f"encoder.layers.encoder_layer_{number}",) for number in range(11)),
        ("encoder.layers.encoder_layer_11", "encoder.ln"),
    ],
    "timm:tf_efficientnet_lite0": [
        ("conv_stem", "bn1", "blocks.0"),
        ("blocks.1",),
        ("blocks.2",),
        ("blocks.3", "blocks.4"),
        ("blocks.5", "blocks.6", "conv_head", "bn2"),
    ],
    "timm:test_resnet": [("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)],
    "timm:mobilenetv3_small_100": [
        ("conv_stem", "bn1"),
        ("blocks.0",),
        ("blocks.1",),
        ("blocks.2", "blocks.3"),
        ("blocks.4", "blocks.5", "conv_head"),
    ],
    "timm:mobilevitv2_050": [  # its transformers work on patches: (B, channels, pixels of a patch, patches)
        ("stem", "stages.0"),
        ("stages.1",),
        ("stages.2",),
        ("stages.3",),
        ("stages.4",),
    ],
    "timm:legacy_xception": [  # blocks are cut where they pool; the last convolutions are in no chain
        ("conv1", "bn1", "conv2", "bn2", "block1.rep"),
        ("block1.skip", "block1.skipbn", "block2.rep"),
        ("block2.skip", "block2.skipbn", "block3.rep"),
        ("block3.skip", "block3.skipbn", *(f"block{number}" for number in range(4, 12)), "block12.rep"),
        ("block12.skip", "block12.skipbn", "conv3", "bn3", "conv4", "bn4"),
    ],
    "timm:vgg11": [
        ("features.0",),
        ("features.3",),
        ("features.6", "features.8"),
        ("features.11", "features.13"),
        ("features.16", "features.18", "pre_logits.fc1", "pre_logits.fc2"),
    ],
    "timm:convnext_atto": [
        ("stem", "stages.0"),
        ("stages.1",),
        ("stages.2",),
        ("stages.3", "head.norm"),
    ],
    "timm:twins_pcpvt_small": [  # all embeddings are registered before the first block
        *((f"patch_embeds.{number}", f"blocks.{number}", f"pos_block.{number}") for number in range(3)),
        ("patch_embeds.3", "blocks.3", "pos_block.3", "norm"),
    ],
    "timm:cait_xxs24_224": [
        ("cls_token", "pos_embed", "patch_embed"),
        *((f"blocks.{number}",) for number in range(24)),
        ("blocks_token_only.0",),
        ("blocks_token_only.1", "norm"),
    ],
    "timm:xcit_nano_12_p16_224": [  # its stem is a chain of convolutions
        ("cls_token", "patch_embed", "pos_embed"),
        *((f"blocks.{number}",) for number in range(12)),
        ("cls_attn_blocks.0",),
        ("cls_attn_blocks.1", "norm"),
    ],
}
"""Network → prefixes of the names of parameters, by stage."""


def backbone(spec: str) -> nn.Module:
    """A network without its classifier."""
    made = network(spec)
    library(spec.partition(":")[0]).cut(made)
    return made


@pytest.mark.parametrize("spec", BY_HAND)
def test_stages_are_those_found_by_hand(spec: str) -> None:
    """Each parameter is in the stage of its prefix, and in no other."""
    made = backbone(spec)
    expected = [
        {name for name, _ in made.named_parameters() for start in prefixes if f"{name}.".startswith(f"{start}.")}
        for prefixes in BY_HAND[spec]
    ]
    names = {parameter: name for name, parameter in made.named_parameters()}
    assert [{names[parameter] for parameter in parameters_of(stage)} for stage in stages(made)] == expected
    assert sum(map(len, expected)) == len(names)


@pytest.mark.parametrize("spec", ["torchvision:shufflenet_v2_x0_5", "timm:test_vit", "timm:twins_pcpvt_small"])
def test_a_stage_runs_after_those_before_it(spec: str) -> None:
    """Freezing the first stages ends the backward pass there: nothing that they return needs a gradient."""
    made = backbone(spec)
    found = stages(made)
    images = torch.zeros(1, 3, *made.pretrained_cfg["input_size"][1:]) if "timm" in spec else torch.zeros(1, 3, 64, 64)
    for count in range(1, len(found)):
        trained = set(parameters_of(last_stages(made, count)))
        assert trained == {parameter for stage in found[-count:] for parameter in parameters_of(stage)}
        for parameter in made.parameters():
            parameter.requires_grad_(parameter in trained)
        frozen = [part for stage in found[:-count] for part in stage if isinstance(part, nn.Module)]
        needed, handles = listen(frozen)
        assert made(images).requires_grad
        assert needed and not any(needed)
        for handle in handles:
            handle.remove()


def listen(modules: list[nn.Module]) -> tuple[list[bool], list[Any]]:
    """Whether what each of these modules returns needs a gradient, once they have run; and the hooks to remove."""
    needed: list[bool] = []

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        needed.append((output[0] if isinstance(output, tuple) else output).requires_grad)

    return needed, [module.register_forward_hook(hook) for module in modules]


@pytest.mark.parametrize("spec", ["torchvision:resnet18", "timm:test_efficientnet", "timm:test_vit"])
def test_the_network_is_left_as_it_was(spec: str) -> None:
    """Modes, statistics, hooks and random numbers are the same after the pass that finds the stages."""
    made = backbone(spec)
    made.train()
    next(iter(made.children())).eval()
    before, state = copy.deepcopy(made.state_dict()), torch.get_rng_state()
    modes = [module.training for module in made.modules()]
    assert len(stages(made)) > 1
    assert [module.training for module in made.modules()] == modes and True in modes and False in modes
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in made.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in made.parameters())


class Convolutions(nn.Sequential):
    """Three convolutions at three resolutions; the first and the last may share their weight."""

    def __init__(self, *, shared: bool = False, stride: int = 2) -> None:
        layers = [nn.Conv2d(3, 3, 3, stride=stride, padding=1) for _ in range(3)]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        if shared:
            self[2].weight = self[1].weight


def test_stages_that_share_a_parameter_are_one() -> None:
    assert len(stages(Convolutions())) == 3
    network = Convolutions(shared=True)
    first, last = (parameters_of(stage) for stage in stages(network))
    assert first == [network[0].weight, network[0].bias] and len(last) == 3


def test_layers_of_one_resolution_are_stages_of_their_own() -> None:
    """Nothing lowers the resolution, as in a transformer."""
    assert len(stages(Convolutions(stride=1))) == 3


class Flat(nn.Module):
    """Its hidden layer fits images of one side alone; each of its convolutions is a stage."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 2, 3, stride=2, padding=1), nn.Conv2d(2, 2, 3, stride=2, padding=1)
        self.hidden = nn.Linear(2 * (side // 4) ** 2, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.hidden(self.second(self.first(images)).flatten(1))
        return features


def test_images_have_the_side_that_the_backbone_names() -> None:
    """A network that says nothing of its images gets those that it will train on."""
    module = Flat(32)
    with pytest.raises(NotApplicable, match="224 × 224 pixels raised: mat1 and mat2 shapes"):
        stages(module)
    preprocessing = tl.Preprocessing(size=32, resize=32, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
    config = tl.TrainConfig(backbone="timm:test_resnet")
    model = Classifier(tl.Backbone(module, 4, preprocessing), 2, config)
    found = stages(model.backbone)
    assert [len(parameters_of(stage)) for stage in found] == [2, 4]


class Fussy(nn.Module):
    """It accepts no image."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise ValueError("wrong size\nof images")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 224**2, 2)), "no two stages can be found"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), "no two stages can be found"),
        (Fussy(), r"stages of this backbone are unknown: 224 × 224 pixels raised: wrong size$"),
    ],
    ids=["no blocks", "one convolution", "an error"],
)
def test_a_network_without_stages_is_not_applicable(network: nn.Module, message: str) -> None:
    with pytest.raises(NotApplicable, match=message):
        stages(network)
    assert not any(module._forward_hooks for module in network.modules())


def test_all_stages_are_not_the_last_ones() -> None:
    """What would train everything is `finetune`, and isn't called otherwise."""
    network = Convolutions()
    assert len(parameters_of(last_stages(network, 2))) == 4
    with pytest.raises(NotApplicable, match="has 3 stages, so its last 3 are all of it: use regime 'finetune'"):
        last_stages(network, 3)


def test_a_frozen_copy_has_the_same_stages() -> None:
    """They depend on the network alone: not on what has gradients, nor on the mode."""
    made = backbone("timm:test_resnet")
    other = copy.deepcopy(made).train().requires_grad_(False)
    assert [len(parameters_of(stage)) for stage in stages(made)] == [
        len(parameters_of(stage)) for stage in stages(other)
    ]
    sizes = [sum(p.numel() for p in parameters_of(stage)) for stage in stages(made)]
    assert all(one < two for one, two in pairwise(sizes[1:])), "deeper stages of a ResNet are wider"
