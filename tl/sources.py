"""Sources: libraries of networks, named by the part of a backbone's name before the colon. Loads no torch.

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
    """Distributions whose versions decide which networks exist, and what they compute."""
    library: str
    """The place of its `tl.library.Library`: `module:NAME`."""

    @property
    def versions(self) -> dict[str, str]:
        """Package → installed version, empty if it is not installed. No package is imported."""
        return {name: package_version(name) for name in self.packages}


def package_version(name: str) -> str:
    """Return the installed version of a package; empty if it is not installed. The package is not imported."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


SOURCES: dict[str, Source] = {
    "torchvision": Source(packages=("torchvision",), library="tl.torchvision_models:LIBRARY"),
    "timm": Source(packages=("timm",), library="tl.timm_models:LIBRARY"),
}
