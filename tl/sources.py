"""Sources: libraries of networks, by the name that stands before the colon of a backbone. No torch is loaded here.

To add one, add an entry to `SOURCES`; a package does so with an entry point of group `tl.sources`, a script with
`--plugin` (see `tl.plugins`).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata


@dataclass(frozen=True, kw_only=True)
class Source:
    """A library of networks. Its code is loaded when a network is built, since that loads torch."""

    packages: tuple[str, ...]
    """Distributions whose versions decide which networks there are, and what they compute."""
    library: str
    """Where its `tl.library.Library` is: `module:NAME`."""

    @property
    def versions(self) -> dict[str, str]:
        """Package → installed version; empty text for one that is not installed. No package is imported."""
        return {name: package_version(name) for name in self.packages}


def package_version(name: str) -> str:
    """The installed version of a package, which is not imported; empty text if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


SOURCES: dict[str, Source] = {
    "torchvision": Source(packages=("torchvision",), library="tl.torchvision_models:LIBRARY"),
    "timm": Source(packages=("timm",), library="tl.timm_models:LIBRARY"),
}
