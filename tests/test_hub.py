"""Networks of PyTorch Hub: trust, the pinned commit, the cut classifier, and what goes wrong."""

from __future__ import annotations

import io
import json
import sys
import urllib.error
import zipfile
from collections.abc import Callable, Iterator
from email.message import Message
from functools import partial
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import pytest
import torch

import bench
import tl
from bench.sweep.choices import choices
from tests.commands import command, here
from tests.servers import serve
from tests.weights import epochs_for, proof_of
from tl import hub, hub_models, own_code
from tl.datasets import Splits
from tl.errors import ConfigError, NotApplicable
from tl.hub import digest_of_entry, entry_of
from tl.network import unreachable
from tl.own_code import ImportPath
from tl.regimes import REGIMES
from tl.specs import canonical

HUBCONF = """
dependencies = ["torch"]

from parts.blocks import KEPT, network


def tiny(pretrained=False):
    return network(pretrained)


def tuned():
    return network(True)


def keeping(pretrained=False):
    return KEPT


def pooled(pretrained=False):
    return network(pretrained)[:-1]


def by_weights(*, weights=None):
    return network(weights is not None)


def ends(pretrained=False):
    raise SystemExit(4)


def breaks(pretrained=False):
    raise OSError("no such file")


number = 3
"""
BLOCKS = """
import torch
from torch import nn


def network(pretrained):
    torch.manual_seed(1) if pretrained else None
    return nn.Sequential(
        nn.Conv2d(3, 6, 7, stride=8, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        *(nn.Conv2d(6, 6, 3, stride=2, padding=1) for _ in range(3)),  # with the first one four stages
        nn.Conv2d(6, 6, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 1000),
    )


KEPT = network(True)
"""
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLD, TIP, FORK, UNKNOWN = ("0" * 39 + digit for digit in "1234")
"""A commit in the history of the default branch, the last one of a tag, one of a fork, and one that there isn't."""


class Files(dict[str, bytes]):
    """The files of a server, which notes what it is asked for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(files)
        self.asked: list[str] = []

    def get(self, path: str, default: Any = None) -> Any:
        self.asked.append(path)
        return super().get(path, default)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder as a repository has it. What a test loads of it is forgotten after it."""
    (tmp_path / "mine" / "parts").mkdir(parents=True)
    (tmp_path / "mine" / "hubconf.py").write_text(HUBCONF)
    (tmp_path / "mine" / "parts" / "blocks.py").write_text(BLOCKS)
    monkeypatch.setenv(hub.VARIABLE, "")
    yield tmp_path / "mine"
    hub_models._loaded.clear()
    own_code._imported.clear()
    for name in ("parts", "parts.blocks"):
        sys.modules.pop(name, None)


@pytest.fixture
def github(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Files]:
    """A server with that repository in place of GitHub's, by path."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for file in folder.rglob("*.py"):
            archive.write(file, Path(f"mine-{COMMIT}") / file.relative_to(folder))
    commits = "/repos/me/mine/commits"
    files = Files({f"{commits}/{ref}": COMMIT.encode() for ref in ("HEAD", "v1", "more%2Flayers")})
    files |= {f"/me/mine/zip/{commit}": packed.getvalue() for commit in (COMMIT, OLD, TIP, FORK)}
    files |= {
        f"/repos/me/mine/compare/{COMMIT}...{commit}?per_page=1": json.dumps({"status": status}).encode()
        for commit, status in ((OLD, "behind"), (TIP, "diverged"), (FORK, "ahead"))
    }
    many = [{"name": f"v{n}", "commit": {"sha": "9" * 40}} for n in range(100)]
    files |= {
        "/repos/me/mine/branches?per_page=100&page=1": json.dumps(many[:1]).encode(),
        "/repos/me/mine/tags?per_page=100&page=1": json.dumps(many).encode(),
        "/repos/me/mine/tags?per_page=100&page=2": json.dumps([{"name": "x", "commit": {"sha": TIP}}]).encode(),
    }
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TL_OFFLINE", "")
    unreachable.cache_clear()
    with serve(files) as address:
        monkeypatch.setattr(hub, "API", address)
        monkeypatch.setattr(hub, "ARCHIVES", address)
        yield files
    unreachable.cache_clear()


def check_regime(regime: str, backbone: str, splits: Splits) -> None:
    """Train, and prove that what is frozen stayed as it was."""
    config = tl.TrainConfig(backbone=backbone, regime=regime, epochs=epochs_for(regime), batch_size=8)
    config = config.replace(lora_rank=2) if REGIMES[regime].adapter == "lora" else config
    if REGIMES[regime].head == "own":
        with pytest.raises(NotApplicable, match="no classifier that is known"):
            tl.train_model(config, splits, device="cpu")
        return
    result = tl.train_model(config, splits, device="cpu")
    assert result.frozen_verified is proof_of(regime) and dict(result.config.code).keys() == {"backbone"}
    assert result.weights.kind == ("random" if REGIMES[regime].start == "random" else "pretrained")


@pytest.mark.parametrize("regime", REGIMES)
def test_every_regime_trains_a_network_of_a_folder(regime: str, folder: Path, mini: Splits) -> None:
    """With the classifier cut off."""
    check_regime(regime, "hub-local:mine:tiny", mini)


@pytest.mark.parametrize("regime", REGIMES)
def test_every_regime_trains_a_network_of_a_repository(regime: str, github: Files, mini: Splits) -> None:
    """That is trusted, by its branch."""
    hub.trust(["me/mine"])
    check_regime(regime, "hub:me/mine:v1:tiny", mini)


def test_the_classifier_is_cut_off(folder: Path) -> None:
    """What is left gives the features that the last layer had."""
    made = tl.make_backbone("hub-local:mine:tiny")
    assert made.width == 6 and made.module(torch.zeros(2, 3, 224, 224)).shape == (2, 6)
    assert tl.make_backbone("hub-local:mine:by_weights").weights.digest == made.weights.digest
    assert tl.make_backbone("hub-local:mine:tuned").weights.kind == "pretrained"
    with pytest.raises(NotApplicable, match="has no parameter `pretrained`"):
        tl.make_backbone("hub-local:mine:tuned", weights="random")


def test_what_an_entry_keeps_is_not_trained(folder: Path, mini: Splits) -> None:
    """Nor is the classifier cut off twice."""
    config = tl.TrainConfig(backbone="hub-local:mine:keeping", regime="finetune", epochs=1, batch_size=8)
    losses = [tl.train_model(config, mini, device="cpu").epochs[0].train_loss for _ in range(2)]
    assert losses[0] == losses[1]


WRONG = {
    "mine:tinny": "hubconf.py has no 'tinny'; near matches: tiny",
    "mine:pooled": "its classifier is not one linear layer on pooled features, so it can't be cut off",
    "mine:breaks": "OSError: no such file",
    "mine:number": "hubconf.py has no function of that name",
    "nowhere:tiny": "nowhere has no hubconf.py",
    "tiny": "must be hub-local:FOLDER:ENTRY",
    "needy:tiny": "needs packages that are not installed: no_such_package, no_such.part",
    "unsure:tiny": "`dependencies` of hubconf.py is not a list of names",
    "ending:tiny": "SystemExit: 9",
    "mine:ends": "SystemExit: 4",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_entry_is_one_line(name: str, folder: Path) -> None:
    """That names it and says what is wrong."""
    for each, line in {
        "needy": "dependencies = ['torch', 'no_such_package', 'no_such.part']",
        "unsure": "dependencies = 'torch'",
        "ending": "raise SystemExit(9)",
    }.items():
        (folder.parent / each).mkdir()
        (folder.parent / each / "hubconf.py").write_text(f"{line}\ndef tiny():\n    pass\n")
    with pytest.raises(ConfigError) as raised:
        tl.make_backbone(f"hub-local:{name}")
    said = str(raised.value)
    assert said.startswith(f"backbone='hub-local:{name}': {WRONG[name]}") and "\n" not in said


def test_a_change_of_the_folder_is_noticed(folder: Path) -> None:
    """Of any of its modules: it makes another cell, and this process can't load it again."""
    config = tl.TrainConfig(backbone="hub-local:mine:tiny")
    before = config.with_code()
    tl.make_backbone(config.backbone)
    (folder / "parts" / "blocks.py").write_text(BLOCKS + "\n# more\n")
    assert config.with_code().code != before.code
    with pytest.raises(ConfigError, match="restart Python"):
        tl.make_backbone(config.backbone)


def test_modules_of_two_folders_with_one_name(folder: Path) -> None:
    """Each has its own."""
    other = folder.parent / "other"
    (other / "parts").mkdir(parents=True)
    (other / "hubconf.py").write_text(HUBCONF)
    (other / "parts" / "blocks.py").write_text(BLOCKS.replace("6", "9"))
    widths = [tl.make_backbone(f"hub-local:{name}:tiny").width for name in ("mine", "other", "mine")]
    assert widths == [6, 9, 6]


@pytest.mark.parametrize("first", ["mine", "theirs"])
def test_modules_of_ones_own_have_the_same_names(
    first: str, folder: Path, mini: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each gets its own, whichever is imported first."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (folder.parent / "parts").mkdir()
    (folder.parent / "parts" / "__init__.py").write_text("")
    (folder.parent / "parts" / "blocks.py").write_text(
        "from torch.nn.functional import cross_entropy\n\n"
        "def make_loss():\n    return lambda logits, labels: cross_entropy(logits, labels) + 1000\n"
    )
    path = ImportPath.parse("loss", "parts.blocks:make_loss")
    own_code.load(path) if first == "mine" else tl.make_backbone("hub-local:mine:tiny")
    config = tl.TrainConfig(backbone="hub-local:mine:tiny", regime="frozen", epochs=1, batch_size=8, loss=path.text)
    result = tl.train_model(config, mini, device="cpu")
    assert result.epochs[0].train_loss > 1000 and len(result.model.backbone) == 10


def test_what_belongs_to_the_source_of_an_entry(folder: Path) -> None:
    """Python files behind links, and modules from elsewhere; neither hidden folders nor a link to itself."""
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "linked.py").write_text("x = 1\n")
    (folder / "link").symlink_to(outside)
    (folder / "parts" / "again").symlink_to(folder)
    (folder.parent / "own_elsewhere.py").write_text("y = 1\n")
    (folder / "parts" / "blocks.py").write_text(f"import own_elsewhere\n{BLOCKS}")
    (folder / ".hidden").mkdir()
    entry = entry_of("hub-local", "mine:tiny")
    digests = [digest_of_entry(entry)]
    for file in (outside / "linked.py", folder.parent / "own_elsewhere.py", folder / ".hidden" / "x.py"):
        file.write_text("z = 2\n")
        digests.append(digest_of_entry(entry))
    assert len(set(digests)) == 3 and digests[-1] == digests[-2]


def test_a_repository_needs_trust(github: Files, mini: Splits) -> None:
    """Without it nothing is asked of the network."""
    said = "runs code of that repository on this machine: add --trust me/mine if you trust"
    for name in ("hub:me/mine:tiny", f"hub:me/mine:{COMMIT}:tiny"):
        config = tl.TrainConfig(backbone=name)
        for use in (
            lambda name=name: tl.make_backbone(name),
            lambda config=config: tl.train_model(config, mini, device="cpu"),
            lambda config=config: tl.run_protocol(config, mini, device="cpu"),
            lambda config=config: config.with_code(),
            lambda name=name: digest_of_entry(entry_of("hub", name.removeprefix("hub:"))),
        ):
            with pytest.raises(ConfigError, match=said):
                use()
    assert github.asked == []
    said = f"backbone='hub:me/mine:tiny': {said}"
    done = command("run", "--grid", "smoke", "--backbone", "hub:me/mine:tiny", "--device", "cpu", "--no-report")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr
    with pytest.raises(ConfigError, match="--trust 'mine': must be a repository on GitHub, OWNER/REPO"):
        hub.trust(["mine"])


@pytest.mark.parametrize("call", [partial(bench.run, "smoke"), partial(bench.pick, "synthetic-mini")])
def test_trust_ends_with_the_call(call: Callable[..., Any], folder: Path) -> None:
    """The next one must give it again."""
    given = {"backbones": ["hub:me/mine:tiny"], "executor": "inline", "progress": False}
    with pytest.raises(ConfigError, match="can't be pinned to a commit: TL_OFFLINE is set"):
        call(trust=["me/mine"], **given)
    with pytest.raises(ConfigError, match="add --trust me/mine"):
        call(**given)


@pytest.mark.parametrize("commit", [OLD, TIP, FORK, UNKNOWN])
def test_a_commit_must_be_the_repositorys_own(commit: str, github: Files) -> None:
    """GitHub shows those of forks under its name, and anybody can make one."""
    hub.trust(["me/mine"])
    entry = entry_of("hub", f"me/mine:{commit}:tiny")
    if commit in (OLD, TIP):
        assert hub.folder_of(entry).is_dir()
        github.clear()
        assert hub.folder_of(entry).is_dir()
        return
    with pytest.raises(ConfigError, match=f"{commit[:8]} is neither in the history .* it may be of a fork"):
        hub.folder_of(entry)
    assert not any("/zip/" in path for path in github.asked)


@pytest.mark.parametrize(
    "name",
    [
        *("a/b:../../../evil/r/commits/main:x", "a/b:x/../y:x", "a/b:x?y:x", "a/b:x#y:x", "a/b:%2e%2e:x", "a/b:/x:x"),
        *("a/..:x", "a/.:x", "../b:x", "./b:x"),
    ],
)
def test_no_name_leads_elsewhere(name: str) -> None:
    """To another repository or folder."""
    with pytest.raises(ConfigError, match="must be hub:OWNER/REPO"):
        entry_of("hub", name)
    with pytest.raises(ConfigError, match="must be a repository on GitHub"):
        hub.trust(["a/.."])


def test_two_downloads_at_once_leave_one_copy(github: Files) -> None:
    """The slower one takes what is there."""
    hub.trust(["me/mine"])
    entry = entry_of("hub", f"me/mine:{COMMIT}:tiny")
    folder = hub.folder_of(entry)
    before = digest_of_entry(entry), sorted(folder.rglob("*"))
    hub._download(entry, folder)
    assert (digest_of_entry(entry), sorted(folder.rglob("*"))) == before
    assert list(folder.parent.iterdir()) == [folder]


def test_a_training_is_of_the_pinned_commit(github: Files, mini: Splits, tmp_path: Path) -> None:
    """Its config names the code that it has the digest of, and that ran."""
    hub.trust(["me/mine"])
    config = tl.TrainConfig(backbone="hub:me/mine:tiny", regime="frozen", epochs=1, batch_size=8)
    for result in (tl.train_model(config, mini, device="cpu"), tl.run_protocol(config, mini, device="cpu")):
        assert result.config.backbone == result.model.spec == f"hub:me/mine:{COMMIT}:tiny"
    assert [path.name for path in (tmp_path / "cache" / "hub").iterdir()] == [f"me+mine+{COMMIT}"]


def test_a_folder_has_one_name(folder: Path) -> None:
    """However it is written."""
    assert {canonical(f"hub-local:{name}:tiny", {}) for name in ("mine", "./mine", "mine/", ".//mine/.")} == {
        "hub-local:mine:tiny"
    }


@pytest.mark.parametrize("ref", ["", "v1:", "more/layers:", f"{COMMIT}:"])
def test_a_repository_is_pinned_and_downloaded_once(ref: str, github: Files, mini: Splits) -> None:
    """Its commit is in the name; with the whole name nothing more is asked of the network."""
    hub.trust(["me/mine"])
    made = tl.make_backbone(f"hub:me/mine:{ref}tiny")
    assert made.spec == f"hub:me/mine:{COMMIT}:tiny" and made.width == 6
    github.clear()
    config = tl.TrainConfig(backbone=made.spec, regime="frozen", epochs=1, batch_size=8)
    result = tl.train_model(config, mini, device="cpu")
    assert result.weights.digest == made.weights.digest and result.frozen_verified


def test_a_command_runs_a_trusted_repository(github: Files, tmp_path: Path) -> None:
    """The records have the commit. The same command finds its results."""
    words = ["run", "--grid", "smoke", "--backbone", "hub:me/mine:tiny", "--regime", "frozen", "--device", "cpu"]
    words += ["--seeds", "1", "--name", "r", "--no-report", "--no-paired", "--trust", "me/mine"]
    words += ["--executor", "inline"]  # a process that was there before knows neither the server nor the cache
    done = here(*words)
    assert done.returncode == 0 and "done in" in done.stdout, done.stdout + done.stderr
    (path,) = (tmp_path / "results" / "r" / "cells").glob("*.json")
    record: dict[str, Any] = json.loads(path.read_text())
    assert record["cell"]["config"]["backbone"] == f"hub:me/mine:{COMMIT}:tiny"
    assert record["weights"]["source"] == "own code" and dict(record["cell"]["config"]["code"]).keys() == {"backbone"}


@pytest.mark.parametrize(
    ("path", "answer", "said"),
    [
        ("/repos/me/mine/commits/HEAD", None, "GitHub has no such repository, or it is private$"),
        ("/repos/me/mine/commits/HEAD", b"<html>", "gave an unexpected answer"),
        (f"/me/mine/zip/{COMMIT}", None, "its code can't be downloaded: .* answered 404"),
        (f"/me/mine/zip/{COMMIT}", b"PK", "its code can't be unpacked"),
    ],
)
def test_what_the_server_gets_wrong_is_one_line(
    path: str, answer: bytes | None, said: str, github: Files, tmp_path: Path
) -> None:
    """And leaves nothing half in the cache."""
    hub.trust(["me/mine"])
    if answer is None:
        del github[path]
    else:
        github[path] = answer
    with pytest.raises(ConfigError, match=said):
        tl.make_backbone("hub:me/mine:tiny")
    assert list(tmp_path.glob("cache/hub/*")) == []


def test_without_a_network_a_commit_is_asked_for(folder: Path) -> None:
    """The tests forbid the network."""
    hub.trust(["me/mine"])
    with pytest.raises(ConfigError, match="HEAD can't be pinned to a commit: TL_OFFLINE is set"):
        tl.make_backbone("hub:me/mine:tiny")


def test_what_github_lacks_is_named_with_near_matches(github: Files) -> None:
    """A repository, and a branch or tag; without a list of them there is no hint."""
    hub.trust(["me/mine", "me/mien"])
    github["/repos/me/mine"] = b"{}"
    github["/repos/me/mine/branches?per_page=100"] = json.dumps([{"name": "main"}]).encode()
    github["/repos/me/mine/tags?per_page=100"] = json.dumps([{"name": "release-1"}]).encode()
    github["/users/me/repos?per_page=100"] = json.dumps([{"name": "mine"}, {"name": "other"}]).encode()
    for name, said in (
        ("me/mien:tiny", "GitHub has no such repository, or it is private; near matches: me/mine"),
        ("me/mine:relase-1:tiny", "the repository has no branch, tag or commit 'relase-1'; near matches: release-1"),
        ("me/mine:zz:tiny", "the repository has no branch, tag or commit 'zz'"),
    ):
        with pytest.raises(ConfigError) as raised:
            canonical(f"hub:{name}", {})
        assert str(raised.value) == f"backbone='hub:{name}': {said}"


def test_an_entry_behind_a_star_has_near_matches(folder: Path) -> None:
    """Which only the loaded file shows."""
    (folder / "hubconf.py").write_text("from parts.blocks import *\n")
    with pytest.raises(ConfigError, match=r"hubconf\.py has no function of that name; near matches: network"):
        tl.make_backbone("hub-local:mine:netwrok")


def test_githubs_limit_is_named(github: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer is a number that says little."""

    def refuse(request: Any, timeout: float) -> None:
        headers = Message()
        headers["x-ratelimit-remaining"] = "0"
        raise urllib.error.HTTPError(request.full_url, 403, "rate limit exceeded", headers, None)

    hub.trust(["me/mine"])
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(ConfigError, match="answered 403: its limit on requests from here is used up"):
        canonical("hub:me/mine:tiny", {})


def test_trust_by_the_environment(github: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are joined by commas, with blanks or without."""
    monkeypatch.setenv(hub.VARIABLE, "you/yours, me/mine")
    assert canonical("hub:me/mine:tiny", {}) == f"hub:me/mine:{COMMIT}:tiny"


def test_extensions_belong_to_the_source_of_an_entry(folder: Path) -> None:
    """Which are imported, but no Python."""
    file = folder / "parts" / f"fast{EXTENSION_SUFFIXES[0]}"
    (folder / "parts" / "blocks.py").write_text(f"import parts.fast\n{BLOCKS}")
    digests = set()
    for content in (b"1", b"2"):
        file.write_bytes(content)
        digests.add(digest_of_entry(entry_of("hub-local", "mine:tiny")))
    assert len(digests) == 2


def test_listing_asks_nothing_of_the_network(github: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither GitHub nor another host."""

    def connect(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.create_connection", connect)
    for text in (None, "hub", "hub:", "hf"):
        assert any(name.startswith(text or "hub:") for name in choices("backbones", text))
    assert github.asked == []
