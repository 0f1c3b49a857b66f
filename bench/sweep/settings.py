"""Reads settings of a training from a command line, such as `fold=true`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from bench.sweep.grid import SHARED_SETTINGS, check_keys
from tl.errors import ConfigError


def setting(text: str) -> tuple[str, Any]:
    """Name and value of `NAME=VALUE`. Raises `ConfigError`."""
    name, values = values_of(text)
    if len(values) > 1:
        raise ConfigError(f"--set {text!r}: {name} must have one value")
    return name, values[0]


def settings_of(texts: Iterable[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` with the settings of texts added. Raises `ConfigError`, also if one is given twice."""
    found = dict(options)
    for text in texts:
        name, value = setting(text)
        if found.get(name) is not None:
            raise ConfigError(f"--set {text!r}: {name} is given twice")
        found[name] = value
    return found


def values_of(text: str) -> tuple[str, list[Any]]:
    """Name and values, each once, of `NAME=VALUE` or `NAME=VALUE,VALUE`. A list is one value: `[1, 2]`.

    Raises `ConfigError` for a name that there isn't. Whether a value fits may depend on other settings.
    """
    name, equals, values = text.partition("=")
    if not equals or not values:
        raise ConfigError(f"--set {text!r}: must be NAME=VALUE")
    check_keys("", {name: values}, SHARED_SETTINGS)
    whole = _value(values)
    found = [whole] if whole is not None else [_value(each) for each in values.split(",")]
    return name, [value for place, value in enumerate(found) if value not in found[:place]]


def _value(text: str) -> Any:
    """A value as in TOML, where a word needs no quotes; None for several words."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        return None if "," in text else text
