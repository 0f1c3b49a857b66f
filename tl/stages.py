"""Divides a network of any library into its stages, from input to output.

A stage is what works at one resolution: in a ResNet `layer1` to `layer4`, in an EfficientNet the blocks between two
halvings of the image. In a network that keeps its resolution, such as a vision transformer, each block is a stage.
One forward pass on an empty image shows what runs when, and at which resolution; no list of models is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from tl.blocks import blocks, products
from tl.errors import NotApplicable

LOWER = 0.6
"""A resolution counts as lower if it has at most this share of the positions. A class token is no difference."""
USUAL_SIZE = 224
"""Side of the empty image, in pixels, for networks that don't say which size they expect."""
Part = nn.Module | nn.Parameter
_SIZES: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


@dataclass
class _Item:
    """A part of a network that is not divided further."""

    part: Part
    is_block: bool
    order: float = -1.0
    """When it ran first; what never ran goes with the part that is registered before it."""
    positions: int | None = None
    """Number of positions of its output, such as 49 for 7 × 7; None if that is unknown."""

    @property
    def convolves(self) -> bool:
        """True if it has a convolution."""
        return isinstance(self.part, nn.Module) and any(isinstance(each, nn.Conv2d) for each in self.part.modules())


def stages(network: nn.Module) -> list[list[Part]]:
    """Return the stages of a network in the order in which they run. Each parameter is in exactly one of them.

    A stage is a list of modules, and of parameters that a module holds which belongs to several stages, such as a class
    token. What runs before the first lowering of the resolution, or before the first block of a network that keeps it,
    is the first stage. What follows the last block belongs to the last stage: norms, a last convolution, the hidden
    layers of a classifier. Stages that share a parameter are one.

    The network is left as it was. Raises `NotApplicable` if no two stages can be found in it.
    """
    chosen = blocks(network) or _convolutions(network)
    items = list({item.part: item for item in _items(network, set(chosen))}.values())  # a module may have two names
    _run(network, items)
    items.sort(key=lambda item: item.order)
    places = [place for place, item in enumerate(items) if item.is_block]
    # Layers of a stem may be in a chain, too; they are no blocks of their own beside larger ones.
    large = [place for place in places if _weights(items[place].part) > 1] or places
    # Layers of a single position, such as the convolutions at the end of timm's VGG, are hidden layers of a classifier.
    # What follows the blocks may lower the resolution once more, as the last convolutions of timm's Xception do.
    maps = [
        place for place, item in enumerate(items) if (item.is_block or item.convolves) and (item.positions or 0) > 1
    ]
    starts = _lowerings(items, maps[-1]) if maps else []
    if len({sum(start <= place for start in starts) for place in large}) < 2:
        starts = large  # one resolution
    bounds = [0, *(start for start in starts if start), len(items)]
    found = [[item.part for item in items[start:stop]] for start, stop in pairwise(bounds)]
    found = _disjoint(_without_empty(found))
    if len(found) < 2:
        raise NotApplicable("no two stages can be found in this backbone")
    return found


def expect_size(network: nn.Module, size: int) -> None:
    """Let the stages of a network be looked for with images of this side, in pixels, as it will train on them."""
    _SIZES[network] = size


def last_stages(network: nn.Module, count: int) -> list[Part]:
    """Return the parts of the last `count` stages. Raises `NotApplicable` for a network without a stage before them."""
    found = stages(network)
    if count >= len(found):
        raise NotApplicable(
            f"this backbone has {len(found)} stages, so its last {count} are all of it: use regime 'finetune'"
        )
    return [part for stage in found[-count:] for part in stage]


def parameters_of(parts: Iterable[Part]) -> list[nn.Parameter]:
    """Return the parameters of some parts, each once."""
    all_of = (part.parameters() if isinstance(part, nn.Module) else [part] for part in parts)
    return list(dict.fromkeys(parameter for some in all_of for parameter in some))


def _convolutions(network: nn.Module) -> list[nn.Module]:
    """Torch's convolutions; or else the layers that have a kernel, of four dimensions."""
    found: list[nn.Module] = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    return found or [
        layer for layer in network.modules() if any(each.ndim == 4 for each in layer.parameters(recurse=False))
    ]


def _weights(part: Part) -> int:
    return products(part) if isinstance(part, nn.Module) else 0


def _items(module: nn.Module, chosen: set[nn.Module]) -> Iterator[_Item]:
    """The parts of a network that are not divided further, in the order in which they are registered.

    Modules with a block inside are divided into what they hold.
    """
    inside = [child for child in module.modules() if child is not module and child in chosen]
    if module in chosen or not inside:
        yield _Item(module, module in chosen)
        return
    for parameter in module.parameters(recurse=False):
        yield _Item(parameter, False)
    for child in module.children():
        yield from _items(child, chosen)


def _run(network: nn.Module, items: Sequence[_Item]) -> None:
    """Run the network on an empty image, and note when each item runs first and the resolution of what it returns."""
    count = 0

    def noted(item: _Item) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            nonlocal count
            if item.order < 0:
                count += 1
                item.order, item.positions = float(count), _positions(output)

        return hook

    modes = {module: module.training for module in network.modules()}
    handles = [item.part.register_forward_hook(noted(item)) for item in items if isinstance(item.part, nn.Module)]
    like = next(network.parameters(), torch.empty(0))
    size = _size(network)
    try:
        network.eval()
        # Not in inference mode: what a network keeps of this pass, such as positions, may be needed for gradients.
        with torch.no_grad():
            network(torch.zeros(1, 3, size, size, dtype=like.dtype, device=like.device))
    except Exception as error:  # of any library's code
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        raise NotApplicable(f"the stages of this backbone are unknown: {size} × {size} pixels raised: {why}") from error
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    before = 0.0
    for item in items:
        before = item.order = item.order if item.order > 0 else before


def _size(network: nn.Module) -> int:
    """Side of the images that a network expects, in pixels, if that is known: timm's networks and torchvision's ViTs
    say so themselves."""
    if network in _SIZES:
        return _SIZES[network]
    said = getattr(network, "pretrained_cfg", None)
    if isinstance(said, dict) and said.get("input_size"):
        return int(said["input_size"][-1])
    size = getattr(network, "image_size", None)
    return size if isinstance(size, int) else USUAL_SIZE


def _positions(output: Any) -> int | None:
    """Number of positions in what a module returned for one image; None for anything but a square map or tokens."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, torch.Tensor) or output.ndim not in (3, 4):
        return None
    if output.ndim == 3:  # tokens
        return output.shape[0] * output.shape[1]
    _, one, two, three = output.shape  # channels first or last; anything else may be patches, in whatever order
    if two == three:
        return two * three
    return one * two if one == two else None


def _lowerings(items: Sequence[_Item], last: int) -> list[int]:
    """The items up to `last` that lower the resolution for all that comes after them."""
    lasting = [0] * (last + 1)  # a branch may work at a lower resolution than what comes after it
    highest = 0
    for place in range(last, -1, -1):
        highest = lasting[place] = max(highest, items[place].positions or 0)
    found, now = [], lasting[0]
    for place, positions in enumerate(lasting):
        if positions <= LOWER * now:
            found.append(place)
            now = positions
    return found


def _without_empty(found: Sequence[list[Part]]) -> list[list[Part]]:
    """Join each stage without parameters, such as a first pooling, with the one after it, or before it at the end."""
    made: list[list[Part]] = []
    waiting: list[Part] = []
    for stage in found:
        waiting += stage
        if parameters_of(waiting):
            made.append(waiting)
            waiting = []
    if waiting and made:
        made[-1] += waiting
    return made


def _disjoint(found: Sequence[list[Part]]) -> list[list[Part]]:
    """Join stages that share a parameter, with all those between them."""
    made: list[list[Part]] = []
    for stage in found:
        own = set(parameters_of(stage))
        first = next((place for place, other in enumerate(made) if own & set(parameters_of(other))), len(made))
        made[first:] = [[part for other in (*made[first:], stage) for part in other]]
    return made
