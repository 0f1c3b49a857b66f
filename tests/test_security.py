"""Files that are read can't run code, and files are written only where they belong."""

from __future__ import annotations

import ast
import os
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torchvision

from tests.commands import ONE, command
from tl import hymenoptera, weights
from tl.digest import file_digest
from tl.errors import WeightsError

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "bench").rglob("*.py"), *(ROOT / "tl").rglob("*.py")])
MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml"}
"""Modules that create objects from what they read, and so can run code."""
CALLS = {"eval", "exec", "compile", "__import__", "system", "popen"}
ARGUMENTS = {("shell", True), ("allow_pickle", True), ("weights_only", False), ("trust_remote_code", True)}


def _calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            # A bare name or a dotted one: `re.compile` is not Python's `compile`.
            if isinstance(function, ast.Name):
                yield function.id, node
            elif isinstance(function, ast.Attribute):
                yield ast.unparse(function), node


def dangers(text: str) -> list[str]:
    """Return everything in a source that can turn data into code."""
    tree, found = ast.parse(text), []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [name for name in names if name.partition(".")[0] in MODULES]
    for name, call in _calls(tree):
        given = {(k.arg, k.value.value) for k in call.keywords if isinstance(k.value, ast.Constant)}
        found += [f"{name}({word}={value})" for word, value in given & ARGUMENTS]
        if name in CALLS or name in ("os.system", "os.popen") or "hub.load" in name.replace("hub.load_state", ""):
            found.append(name)
        if (
            name in ("np.load", "numpy.load", "torch.load")
            and not {("allow_pickle", False), ("weights_only", True)} & given
        ):
            found.append(f"{name} without allow_pickle=False or weights_only=True")
    return found


def test_no_source_turns_data_into_code() -> None:
    """The sources use no pickle, eval, shell or torch.hub, so they need no option like `--trust`."""
    assert len(SOURCES) > 60
    assert {str(path): found for path in SOURCES if (found := dangers(path.read_text(encoding="utf-8")))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "eval(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.hub.load('somebody/repository', 'model')",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_a_danger_is_found(line: str) -> None:
    """The check above can fail."""
    assert dangers(line)
    assert not dangers("re.compile(text); module.eval(); torch.hub.get_dir(); np.load(path, allow_pickle=False)")


def test_downloads_are_by_https_and_told_by_their_digest(tmp_path: Path) -> None:
    """Every image has a digest; a file of weights has one in its name or in that of its blob."""
    assert hymenoptera.URL.startswith("https://") and len(hymenoptera.expected()) == 397
    urls = {
        weight.url
        for name in torchvision.models.list_models(module=torchvision.models)
        for weight in torchvision.models.get_model_weights(name)
    }
    assert len(urls) > 80 and all(url.startswith("https://") for url in urls)
    good, bad = tmp_path / "a-00000000.pth", tmp_path / "b.pth"
    good.write_bytes(b"weights")
    digest = file_digest(good)
    right, wrong = good.rename(tmp_path / f"a-{digest[:8]}.pth"), tmp_path / "a-12345678.pth"
    wrong.write_bytes(b"weights")
    bad.write_bytes(b"weights")
    blob, other = tmp_path / digest, tmp_path / ("1" * 64)
    for path in (blob, other):
        path.write_bytes(b"weights")
    links = [tmp_path / f"model{number}.safetensors" for number in range(2)]
    links[0].symlink_to(blob)
    links[1].symlink_to(other)
    for path in (right, bad, links[0]):
        assert weights._from_file(path, "download", "x", named_by_digest=True).digest == digest
    for path in (wrong, links[1]):
        with pytest.raises(WeightsError, match=r"is damaged.*remove"):
            weights._from_file(path, "torch hub cache", "x", named_by_digest=True)
    own = weights._from_file(wrong, "weights-dir", "x", named_by_digest=False)
    assert own.digest == digest, "a user's own file may be called anything"


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil"])
def test_an_archive_that_reaches_outside_is_refused(name: str, tmp_path: Path) -> None:
    """Nothing of the archive is unpacked."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("a/fine.txt", "fine")
        file.writestr(name, "evil")
    with pytest.raises(ValueError, match="unsafe member"):
        hymenoptera.unpack(tmp_path / "x.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*"))


@pytest.fixture
def short() -> Iterator[Path]:
    """A temporary folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="tl-") as folder:
        yield Path(folder)


def test_nothing_is_written_elsewhere_and_all_with_the_users_umask(short: Path) -> None:
    """A run with its report leaves nothing in the home and temporary folders."""
    places = {name: short / name for name in ("home", "tmp", "cache", "work")}
    for path in places.values():
        path.mkdir()
    env = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "MPL"))}
    env |= {"HOME": str(places["home"]), "TMPDIR": str(places["tmp"]), "TL_CACHE": str(places["cache"])}
    done = subprocess.run(
        [sys.executable, "-m", "bench", *ONE, "--regime", "frozen"],
        cwd=places["work"],
        env=env | {"PYTHONPATH": str(ROOT), "TL_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        umask=0o077,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in places["work"].iterdir()) == ["reports", "results"]
    assert [path for name in ("home", "tmp") for path in places[name].rglob("*")] == []
    written = [*places["work"].rglob("*"), *places["cache"].rglob("*")]
    assert len(written) > 8 and not [path for path in written if stat.S_IMODE(path.lstat().st_mode) & 0o077]


def test_names_from_the_command_line_are_no_markup(tmp_path: Path) -> None:
    """A shell, a page or a terminal shows them as text."""
    done = command(*ONE, "--regime", "frozen", "--name", "a[red]b;touch evil <i>", "--no-images")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "evil").exists() and "a[red]b;touch evil <i>" in done.stdout
    page = (tmp_path / "reports" / "a[red]b;touch evil <i>.html").read_text()
    assert "<i>" not in page.replace("<i></i>", "") and "&lt;i&gt;" in page
