"""Backbone names, without importing the libraries that hold them.

A spec is `torchvision:NAME` or `timm:NAME[.TAG]`. A bare name is looked up in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tl.errors import ConfigError, nearest


def canonical(spec: str, names: Mapping[str, Iterable[str]]) -> str:
    """The spec with its source: `resnet26` → `timm:resnet26`.

    `names` maps each source to all names that it has. Raises `ConfigError` for an unknown name (with the
    nearest ones) and for a bare name that two sources have (naming both).
    """
    source, colon, name = spec.partition(":")
    if colon and source not in names:
        raise ConfigError(f"backbone={spec!r}: unknown source {source!r}; valid sources: {', '.join(names)}")
    known = {source: set(names[source])} if colon else {source: set(names[source]) for source in names}
    wanted = name if colon else spec
    hits = [f"{source}:{wanted}" for source, has in known.items() if wanted in has]
    if len(hits) == 1:
        return hits[0]
    if hits:
        raise ConfigError(f"backbone={spec!r}: ambiguous; say {' or '.join(hits)}")
    candidates = {f"{source}:{name}" if colon else name for source, has in names.items() for name in has}
    close = nearest(spec, candidates, n=3)
    hint = f"; near matches: {', '.join(close)}" if close else ""
    where = source if colon else " or ".join(names)
    raise ConfigError(f"backbone={spec!r}: no such network in {where}{hint}; see `python -m bench list backbones TEXT`")
