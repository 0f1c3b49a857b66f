"""The environment of a result: processor, memory, versions, commit. Imports neither torch nor timm."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import psutil
from pydantic import Field

from tl.gpu import GpuState
from tl.machine import cpu_name, usable_cores
from tl.sources import SOURCES, package_version
from tl.strict import Amount, Count, Share, Strict


def network_packages() -> tuple[str, ...]:
    """Packages that define networks and their operations. Counted work depends on their versions."""
    return tuple(dict.fromkeys(["torch", *(name for source in SOURCES.values() for name in source.packages)]))


def packages() -> tuple[str, ...]:
    """Packages whose versions influence times."""
    return (*network_packages(), "numpy", "pillow")


class Environment(Strict):
    """One machine with one set of libraries."""

    python: str
    system: str
    cpu: str
    cores: Count = Field(description="logical cores that the process may run on")
    memory_bytes: Count = Field(description="the machine's main memory")
    packages: dict[str, str] = Field(description="package → version, without packages that are not installed")
    git_commit: str = Field("", description="commit of this suite's checkout; empty if it is not a checkout")
    git_dirty: bool | None = Field(None, description="true if tracked files differ from that commit")

    def differences(self, other: Environment) -> list[str]:
        """Names of the fields that differ and that influence times."""
        return [name for name in ("cpu", "cores", "packages") if getattr(self, name) != getattr(other, name)]

    @property
    def suite(self) -> str:
        """The suite's commit, with a `+` if it had uncommitted changes; empty if unknown."""
        return self.git_commit[:12] + ("+" if self.git_dirty else "")

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self.packages.items())
        commit = f", commit {self.git_commit[:12]}" if self.git_commit else ""
        dirty = " with uncommitted changes" if self.git_dirty else ""
        gib = self.memory_bytes / 2**30
        machine = f"{self.cpu}, {self.cores} cores, {gib:.1f} GiB, {self.system}"
        return f"{machine}; Python {self.python}, {versions}{commit}{dirty}"


class MachineState(Strict):
    """The state of the machine while one cell ran. Unknown values are None or empty, never 0."""

    governor: str = Field("", description="clock governor of the first core; empty if the system doesn't report it")
    load_before: Amount | None = Field(None, description="load average over one minute, before the cell")
    load_after: Amount | None = None
    memory_available_bytes: Count | None = Field(None, description="memory available without swapping, before the cell")
    other_cpu_share: Share | None = Field(
        None, description="CPU time of processes outside this suite ÷ (wall time × usable cores); Linux only"
    )
    steal_share: Share | None = Field(
        None, description="time that the hypervisor gave to others ÷ (wall time × usable cores); Linux only"
    )
    cpu_capability: str = Field("", description="instruction set that torch's CPU kernels use")
    cuda_version: str = Field("", description="version of CUDA that torch was built with")
    cudnn_version: str = Field("", description="torch's number for it; empty if the cell is not on CUDA")
    gpu_before: GpuState | None = None
    gpu_after: GpuState | None = Field(None, description="state at the end of training, before the clocks fall")
    warnings: tuple[str, ...] = Field((), description="disturbances of the cell, such as other processes")


def environment() -> Environment:
    """Find out the environment of this process."""
    commit, dirty = _git()
    return Environment(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cpu=cpu_name(),
        cores=usable_cores(),
        memory_bytes=psutil.virtual_memory().total,
        packages={name: version for name in packages() if (version := package_version(name))},
        git_commit=commit,
        git_dirty=dirty,
    )


def _git() -> tuple[str, bool | None]:
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return "", None

    def git(*arguments: str) -> str:
        # Without optional locks a kill leaves no `index.lock` behind, which would stop the user's next commit.
        command = ["git", "--no-optional-locks", "-C", str(checkout), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return "", None
