"""What is published: a wheel that works without the repository, and an sdist that makes the same wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def built(source: Path, folder: Path) -> Path:
    """Build the wheel of a source tree with the setuptools that is here."""
    command = [*PIP, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed files and those that are about to be, and no others: builds leave folders behind."""
    folder = tmp_path_factory.mktemp("source")
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\n")
    for name in names:
        if name.startswith(("bench/", "tl/")) or name in ("pyproject.toml", "README.md", "LICENSE"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def wheel(committed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(committed, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_has_every_file_of_both_packages(committed: Path, wheel: Path) -> None:
    """Grids, templates, the marks of types and the digest of the archive, too; nothing else is installed."""
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    expected = {
        path.relative_to(committed).as_posix() for top in ("bench", "tl") for path in (committed / top).rglob("*")
    }
    assert names == {name for name in expected if (committed / name).is_file()}


def test_the_citation_has_the_version() -> None:
    """It stands in `pyproject.toml`, and this file can't read it there."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version


def test_the_sdist_makes_the_same_wheel(committed: Path, wheel: Path, tmp_path: Path) -> None:
    code = f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=committed, check=True, capture_output=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        file.extractall(tmp_path, filter="data")
    (source,) = (path for path in tmp_path.iterdir() if path.is_dir())
    with zipfile.ZipFile(wheel) as ours, zipfile.ZipFile(built(source, tmp_path / "again")) as theirs:
        assert set(ours.namelist()) == set(theirs.namelist())


def test_the_wheel_runs_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    """A sweep and its report, with nothing of the repository on Python's path."""
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    subprocess.run(
        [*PIP, "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)], check=True, capture_output=True
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    where = "import bench, tl; print(bench.__file__, tl.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=work, env=environment, check=True, capture_output=True, text=True
    )
    assert found.stdout.count(str(site)) == 2
    words = ["run", "--grid", "smoke", "--data", "synthetic-mini", "--device", "cpu", "--weights", "random"]
    words += ["--backbone", "timm:test_resnet", "--epochs", "1"]
    done = subprocess.run(
        [sys.executable, str(site / "bin" / "tl-bench"), *words],
        cwd=work,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and (work / "reports").exists(), done.stdout + done.stderr
    assert {path.suffix for path in (work / "reports").glob("smoke*.*")} == {".md", ".html"}
