"""Copies of what code of one's own returns.

A function may return what it keeps, such as a network that its module has made once. A training must begin with what
was there before the first one, and change nothing that the next one gets.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import nn

from tl.library import Backbone
from tl.own_code import ImportPath, named

Made = TypeVar("Made")


def copy_of(path: ImportPath, made: Made) -> Made:
    """Return a deep copy of what some code returned. Raises `ConfigError`, which names it, if it can't be copied."""
    # Torch refuses to copy a tensor that was computed from others, as its former weight_norm keeps one.
    computed: dict[int, Any] = {}
    network = made.module if isinstance(made, Backbone) else made
    for part in network.modules() if isinstance(network, nn.Module) else ():
        tensors = (value for value in vars(part).values() if isinstance(value, torch.Tensor) and not value.is_leaf)
        computed |= {id(value): value.detach().clone() for value in tensors}
    with named(path, "what it returned can't be copied, and a copy is what trains: "):
        return deepcopy(made, computed)
