"""Shared fixtures: a cache for the session, tiny image sets, and the real images if they are available."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.nvml import FakeNvml
from tl import plugins
from tl.datasets import Splits, load_splits

TINY = ("torchvision:shufflenet_v2_x0_5", "timm:test_resnet")
"""One network per source; each trains in a second."""


THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
"""Environment of a worker beside others: one thread each where a test doesn't say how many, and none that spins while
it has nothing to do."""
settings.register_profile("suite", deadline=None)  # how long an example takes depends on what else the machine does
settings.load_profile("suite")


def pytest_configure(config: pytest.Config) -> None:
    """Remember the folder of the real images, and hide it from tests that don't ask for it."""
    if config.getoption("dist", "no") != "no":
        return  # this process runs no test, and its workers inherit its environment
    if hasattr(config, "workerinput"):
        os.environ.update(THREADS)
    config.stash[_REAL] = os.environ.pop("TL_DATA", None)
    # A suite that was started in the background ignores Ctrl-C, and so would the commands that tests interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Keep collections of garbage off the million objects of what is imported, as in a cell's process.

    Each would take a third of a second otherwise, and trainings ask for dozens of them.
    """
    gc.collect()
    gc.freeze()


_REAL = pytest.StashKey[str | None]()


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Cache everything in a temporary folder, and download only from servers of the tests."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        for name, place in (("TL_CACHE", "tl"), ("TORCH_HOME", "torch"), ("HF_HOME", "huggingface")):
            patch.setenv(name, str(folder / place))
        patch.setenv("TL_OFFLINE", "1")
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            patch.delenv(name, raising=False)
            patch.delenv(name.upper(), raising=False)
        yield folder


@pytest.fixture(scope="session")
def light_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of its own for `tests.light`, whose names of backbones are not the real ones."""
    return tmp_path_factory.mktemp("light")


@pytest.fixture
def light_commands(light_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands in other processes import `tests.light`, and find its names of backbones, not the real ones."""
    monkeypatch.setenv("TL_CACHE", str(light_cache))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in a folder of its own, without data/ in it; scripts that it loads are unknown to later ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(plugins.VARIABLE, "")  # what a test adds to it is gone with the test


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """Give each test the same random weights and inputs, whichever tests its worker ran before.

    Torch isn't loaded for it: it reads `THREADS` when it is.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """Replace NVML by a fake one with one GPU."""
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


@pytest.fixture(scope="session")
def mini() -> Splits:
    """Return 24 + 16 small synthetic images."""
    return load_splits("synthetic-mini")


@pytest.fixture(scope="session")
def real_images(request: pytest.FixtureRequest) -> Path:
    """Return the folder of the real ants and bees; skip the test if it is missing."""
    given = request.config.stash[_REAL]
    folder = Path(given) if given else request.config.rootpath / "data" / "hymenoptera_data"
    if not folder.is_dir():
        pytest.skip("the real images are not here: set TL_DATA to the folder with train/ and val/")
    return folder.resolve()
