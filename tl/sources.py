"""Sources: where networks come from, named by the part of a backbone's name before the colon. Loads no torch.

A library lists its networks. Some sources can't: anything may be behind their colon, such as code of one's own.

To add one, add an entry to `SOURCES`; a package does so with an entry point of group `tl.sources`, a script with
`--plugin` (see `tl.plugins`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where networks come from. Its code is loaded when a network is built, since that loads torch."""

    packages: tuple[str, ...]
    """Distributions whose versions decide which networks exist, and what they compute. All records have them.

    A source with a package of its own has the package's version in its digests instead, which other cells don't have.
    """
    library: str
    """The place of its `tl.library.Library`, or of its `tl.library.Maker` if it can't list its networks: `module:NAME`.
    """
    names: str = ""
    """The place of the `Names` of a source that can't list its networks; empty for a library."""

    @property
    def lists(self) -> bool:
        """True if it lists its networks. Then models of them can be saved: a name is enough to rebuild its network."""
        return not self.names

    @property
    def versions(self) -> dict[str, str]:
        """Package → installed version, empty if it is not installed. No package is imported."""
        return {name: package_version(name) for name in self.packages}


@dataclass(frozen=True, kw_only=True)
class Names:
    """What a source that can't list its networks says of a name, before anything is loaded."""

    form: str
    """What stands behind the colon, such as `MODULE:NAME`."""
    summary: str
    canonical: Callable[[str], str]
    """Returns a name as configs and records have it. Raises `ConfigError` for what can't be a name."""
    digest: Callable[[str], str]
    """Returns the digest of the code behind a name, or of the settings by which a library makes it, in hex. Raises
    `UserError` if there is none."""
    allow: Callable[[str], None] = lambda name: None
    """Lets a process use a name that the process which started it has checked."""
    listed: Callable[[], list[str]] = list
    """Returns names that can be told without loading anything, to list them; there may be others."""


def names_of(source: str) -> Names | None:
    """What says whether something is a name of a source; None for a library, which lists its names, and if unknown."""
    place = SOURCES[source].names if source in SOURCES else ""
    if not place:
        return None
    found: Names = at(place)
    return found


def at(place: str) -> Any:
    """Import what is at a place, `module:NAME`."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def package_version(name: str) -> str:
    """Return the installed version of a package; empty if it is not installed. The package is not imported."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


SOURCES: dict[str, Source] = {
    "torchvision": Source(packages=("torchvision",), library="tl.torchvision_models:LIBRARY"),
    "timm": Source(packages=("timm",), library="tl.timm_models:LIBRARY"),
    "module": Source(packages=(), library="tl.own_models:MAKER", names="tl.own_names:NAMES"),
    "hub": Source(packages=(), library="tl.hub_models:MAKER", names="tl.hub:NAMES"),
    "hub-local": Source(packages=(), library="tl.hub_models:LOCAL_MAKER", names="tl.hub:LOCAL_NAMES"),
    "hf": Source(packages=(), library="tl.hf_models:MAKER", names="tl.hf:NAMES"),
    "keras": Source(packages=(), library="tl.keras_models:MAKER", names="tl.keras_names:NAMES"),
    "hf-local": Source(packages=(), library="tl.hf_models:LOCAL_MAKER", names="tl.hf:LOCAL_NAMES"),
}
