"""Backbone names, without importing the libraries that hold them.

A spec is `torchvision:NAME[.TAG]` or `timm:NAME[.TAG]`; the tag names one of the weights that are published for the
network, with their preprocessing. A bare name is looked up in all sources that list their networks. Other sources have
names of their own form, such as `module:MODULE:NAME`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tl.errors import ConfigError, nearest
from tl.sources import SOURCES, names_of


@dataclass(frozen=True)
class Spec:
    """The name of a backbone in its parts; `str(spec)` is the text that configs and records have."""

    source: str
    """A key of `tl.sources.SOURCES`; empty for a bare name."""
    name: str
    """The library's own name of the network; behind a source it may have a colon."""

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Take a spec apart. It needs no known source and no known name."""
        source, colon, name = text.partition(":")
        return cls(source, name) if source and colon else cls("", text)

    @property
    def architecture(self) -> str:
        """The name without the tag of its weights."""
        return self.name.partition(".")[0]

    def matches(self, other: Spec) -> bool:
        """True if both can name the same network: a bare name stands for any source's."""
        return self.name == other.name and (self.source == other.source or not (self.source and other.source))

    def __str__(self) -> str:
        return f"{self.source}:{self.name}" if self.source else self.name


def find(text: str, names: Mapping[str, Iterable[str]]) -> Spec:
    """Return the network that a spec or a bare name means, with its source.

    `names` maps each source that lists its networks to all names that it has. Raises `ConfigError` for an unknown name
    (with the nearest ones) and for a bare name that two sources have (naming both).
    """
    given = Spec.parse(text)
    if (unlisted := names_of(given.source)) is not None:
        return Spec(given.source, unlisted.canonical(given.name))
    if given.source and given.source not in names:
        known = [*names, *(source for source, entry in SOURCES.items() if not entry.lists)]
        raise ConfigError(f"backbone={text!r}: unknown source {given.source!r}; valid sources: {', '.join(known)}")
    sources = [given.source] if given.source else list(names)
    hits = [Spec(source, given.name) for source in sources if given.name in set(names[source])]
    if len(hits) == 1:
        return hits[0]
    if hits:
        raise ConfigError(f"backbone={text!r}: several libraries have it; say {' or '.join(map(str, hits))}")
    candidates = {str(Spec(given.source and source, name)) for source, has in names.items() for name in has}
    network, dot, _ = text.partition(".")
    tagged = {one for one in candidates if one.startswith(f"{network}.")} if dot else set()
    close = nearest(text, tagged or candidates, n=3) or sorted(tagged)[:3]
    hint = f"; near matches: {', '.join(close)}" if close else ""
    where = " or ".join(sources)
    raise ConfigError(f"backbone={text!r}: no such network in {where}{hint}; see `python -m bench list backbones TEXT`")


def canonical(spec: str, names: Mapping[str, Iterable[str]]) -> str:
    """Return a spec as configs and records have it, with its source: `resnet26` → `timm:resnet26`. Raises as `find`."""
    return str(find(spec, names))
