"""Finds the blocks of a network of any library, such as residual blocks, without a list of models."""

from __future__ import annotations

from torch import nn

LOW_RANK = "low_rank"
"""Name of the low-rank update inside a layer that has one; see `tl.lora`."""
_CHAINS = (nn.Sequential, nn.ModuleList)


def blocks(network: nn.Module) -> list[nn.Module]:
    """Return the blocks of a network that can run again one by one: the links of its chains, such as residual blocks.

    A chain is a `Sequential` or a `ModuleList`, or a module with nothing in it but blocks of one class. A link that has
    a chain of blocks in it is a stage, and its blocks are returned instead. Single layers are no blocks, with or
    without a low-rank update.
    """
    found: list[nn.Module] = []
    for child in _children(network):
        if not _is_chain(network) or _is_chain(child) or _is_stage(child):
            found += blocks(child)
        elif _children(child) and products(child):
            found.append(child)
    return found


def _is_chain(module: nn.Module) -> bool:
    """A chain of single layers alone is not one: it is a block itself."""
    children = _children(module)
    if isinstance(module, _CHAINS):
        return any(_children(child) for child in children)
    # In a dense block, a dictionary, each layer is given the outputs of all those before it: it is one block.
    if isinstance(module, nn.ModuleDict) or len({type(child) for child in children}) != 1:
        return False
    return all(products(child) > 1 and _children(child) and not isinstance(child, _CHAINS) for child in children)


def _is_stage(module: nn.Module) -> bool:
    """A module with a chain of several blocks of one class, not of convolutions that have their norm beside them."""
    for chain in module.children():
        if isinstance(chain, _CHAINS):
            kinds = [type(link) for link in chain if products(link) > 1]
            if any(kinds.count(kind) > 1 and not issubclass(kind, _CHAINS) for kind in kinds):
                return True
    return False


def _children(module: nn.Module) -> list[nn.Module]:
    return [child for name, child in module.named_children() if name != LOW_RANK]


def products(module: nn.Module) -> int:
    """Number of weights in a module by which something is multiplied, such as those of convolutions."""
    own = (parameter for name, parameter in module.named_parameters() if LOW_RANK not in name.split("."))
    return sum(parameter.ndim > 1 for parameter in own)
