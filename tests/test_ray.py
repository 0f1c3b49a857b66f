"""Sweeps on a Ray cluster of several simulated nodes: distributed cells, lost nodes, a killed driver."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.analysis.paired import compare
from bench.execution import ray_cluster, ray_node, ray_schedule
from bench.execution.ray import RayExecutor
from bench.store.runs import RunFolder
from bench.sweep.execute import execute, executor_for
from bench.sweep.grid import load_grid
from bench.sweep.options import Options
from bench.sweep.plan import plan
from tests import light
from tests.damage import warned_once
from tests.test_executors import wait_until
from tl.datasets import Splits
from tl.digest import file_digest
from tl.errors import ConfigError, DeviceError, UserError
from tl.machine import pick
from tl.weights import Weights

ray = pytest.importorskip("ray", reason="Ray isn't installed")
pytestmark = [
    pytest.mark.alone,  # a cluster's processes want all cores, and cells here have limits in seconds
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head that runs no cells, and two nodes of one core each."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cluster")
        patch.setenv("TL_CACHE", str(folder / "cache"))
        patch.setenv("LIGHT_LEDGER", str(folder / "ledger"))
        patch.setenv("LIGHT_GO", str(folder / "go"))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("RAY_health_check_period_ms", "500")
        patch.setenv("RAY_health_check_initial_delay_ms", "0")
        found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        found.ledger, found.go = folder / "ledger", folder / "go"
        found.workers = [found.add_node(num_cpus=1) for _ in range(2)]
        yield found
        ray.shutdown()
        found.shutdown()


@pytest.fixture
def executor(nodes: Any) -> Iterator[RayExecutor]:
    yield RayExecutor(nodes.address, light.LightExecutor)
    ray.shutdown()


def sweep(
    executor: Any, *backbones: str, seeds: int = 1, name: str = "grid", regimes: str = '"frozen"', **options: Any
) -> dict[str, Any]:
    """Run a grid of these backbones. Returns `BACKBONE SEED` → record."""
    Path("grid.toml").write_text(
        f'dataset = "synthetic-mini"\n[matrix]\nbackbones = {json.dumps(backbones)}\nregimes = [{regimes}]\n'
        f"seeds = {seeds}\n[paired]\npairs = 3\nseconds = 0.01\n"
    )
    grid, given, console = load_grid("grid.toml"), Options(name=name, **options), Console(quiet=True)
    planned = plan(grid, given, executor, console)
    execute(planned, grid, given, executor, console)
    found = RunFolder(Path("results") / name).records().values()
    return {f"{record.cell.config.backbone} {record.cell.config.seed}": record for record in found}


def test_cells_are_distributed_and_their_records_are_as_on_one_machine(executor: RayExecutor) -> None:
    """Each node runs one cell at a time. Records have machine, log and attempts; a failing cell disturbs no other."""
    odd = (light.LOUD, light.CRASHES, light.HANGS, *light.QUICK[:4])
    found = sweep(executor, light.SLOW, *odd, seeds=2, timeout=12.0)
    assert len(found) == 16
    statuses = {name.partition(" ")[0]: record.status for name, record in found.items()}
    assert statuses == dict.fromkeys((light.SLOW, light.LOUD, *light.QUICK[:4]), "done") | {
        light.CRASHES: "failed",
        light.HANGS: "timeout",
    }
    assert {record.attempts for record in found.values()} == {1}
    assert sorted(record.order for record in found.values()) == list(range(16))
    assert len({record.cell.device for record in found.values()}) == 1
    device = found[f"{light.SLOW} 0"].cell.device
    assert device.startswith("cpu@") and device.endswith("-1"), "the kind of node and its cores"
    loud = RunFolder(Path("results/grid")).log(found[f"{light.LOUD} 0"].cell_id).read_text()
    assert loud.startswith("first words") and loud.endswith("last words\n")
    spans = sorted((r.started.timestamp(), r.started.timestamp() + r.wall_seconds) for r in found.values())
    at_once = [sum(begin <= moment < end for begin, end in spans) for moment, _ in spans]
    assert max(at_once) == 2, "both nodes work, each on one cell"
    again = sweep(executor, *light.QUICK[:4], seeds=2)
    assert {name: again[name] for name in again} == found, "nothing runs again"


def test_process_pairs_are_timed_on_nodes_as_on_one_machine(executor: RayExecutor) -> None:
    """All processes of a pair are on one node. A pair that fails has its reason and log, and disturbs no other."""
    sweep(executor, *light.QUICK[:2], light.CRASHES, name="pairs", regimes='"finetune", "frozen"')
    run = RunFolder(Path("results/pairs"))
    found = list(run.pairs().values())
    assert len(found) == 9 and sorted(one.order for one in found) == list(range(9))  # type: ignore[type-var]
    for one in found:
        crashes = one.pair.cells[0].config.backbone == light.CRASHES
        assert one.status == ("failed" if crashes else "done"), one.reason
        assert crashes or len({len(side.turns or ()) for side in one.sides}) == 1
        assert one.attempts == 1 and one.environment.cpu
    done = next(one.pair for one in found if one.status == "done")
    timed = compare(done.cells[1], done.cells[0], found)
    assert timed and timed.pairs == 3 and timed.share and 0.5 < timed.share < 1.0
    before = {path: path.read_bytes() for path in (run.folder / "pairs").glob("*.json")}
    sweep(executor, *light.QUICK[:2], name="pairs", regimes='"finetune", "frozen"')
    assert all(path.read_bytes() == content for path, content in before.items()), "nothing is timed again"


def test_a_node_that_is_lost_takes_its_cells_in_flight_alone(nodes: Any, executor: RayExecutor) -> None:
    """Those cells start again on another node, and their records have the number of attempts."""
    import threading

    spare = nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    nodes.ledger.unlink(missing_ok=True)
    all_started: list[bool] = []

    def lose() -> None:
        try:
            all_started.append(
                wait_until(lambda: nodes.ledger.exists() and len(nodes.ledger.read_text().split()) == 3, 60)
            )
            nodes.remove_node(spare, allow_graceful=False)
            time.sleep(1)
        finally:
            nodes.go.touch()

    thread = threading.Thread(target=lose)
    thread.start()
    found = sweep(executor, light.WAITS, seeds=6)
    thread.join()
    assert all_started == [True]
    assert {record.status for record in found.values()} == {"done"} and len(found) == 6
    attempts = sorted(record.attempts for record in found.values())
    assert attempts == [1] * 5 + [2], "only the cell that ran there"


def test_a_cell_whose_nodes_are_always_lost_is_given_up(executor: RayExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails after a bounded number of attempts, which its record has."""
    found = sweep(executor, light.NODE_KILLER, light.QUICK[0])
    lost = found[f"{light.NODE_KILLER} 0"]
    assert lost.status == "failed" and lost.attempts == ray_schedule.MOST_ATTEMPTS
    assert f"lost, {ray_schedule.MOST_ATTEMPTS} times in a row" in lost.reason
    assert found[f"{light.QUICK[0]} 0"].status == "done"


def test_cells_for_which_no_node_is_left(nodes: Any, executor: RayExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """They fail with the reason, and the sweep ends."""
    monkeypatch.setattr(ray_schedule, "WAIT_FOR_NODE_SECONDS", 1.0)
    monkeypatch.setattr(ray_cluster.Cluster, "refresh", lambda self, wait_seconds=0.0: None)
    gone = ray_cluster.Slot(node="gone", device="cpu@x-1", model="x", cpus=1, gpus=0, count=0)
    executor.cluster.slots = {"gone": (gone,)}
    found = sweep(executor, light.QUICK[0])
    assert found[f"{light.QUICK[0]} 0"].status == "failed"
    assert "no node has cpu@x-1" in found[f"{light.QUICK[0]} 0"].reason


def test_a_node_that_doesn_t_answer(executor: RayExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets no cell, and the reason is kept. It is asked again later, and no sweep waits for it until then."""

    def silent(*_: object, timeout: float) -> None:
        raise ray.exceptions.GetTimeoutError

    executor.cluster.slots = {}
    with monkeypatch.context() as patch:
        patch.setattr(executor.cluster.ray, "get", silent)
        executor.cluster.refresh()
        assert executor.cluster.is_asking and not executor.cluster.unusable
        with pytest.raises(UserError, match=r"nodes of the cluster didn't list their devices in 120 s"):
            executor.devices()
        patch.setattr(ray_cluster, "ASK_SECONDS", 0.0)
        executor.cluster.refresh()
        assert not executor.cluster.is_asking and len(executor.cluster.unusable) == 2
        with pytest.raises(UserError, match="didn't list its devices in 0 s; does another job use its GPUs"):
            executor.devices()
        patch.setattr(ray_cluster, "ASK_AGAIN_SECONDS", 0.0)
    executor.cluster._ask_again = dict.fromkeys(executor.cluster.unusable, 0.0)
    executor.cluster.refresh(wait_seconds=60)
    assert not executor.cluster.unusable and len(executor.cluster.slots) == 2


LIGHT = (
    "import sys; from tests import light; from bench import cli; from bench.execution import executors\n"
    "from bench.execution.ray import RayExecutor\n"
    "executors.EXECUTORS['ray'] = lambda address: RayExecutor(address, light.LightExecutor)\n"
    "cli.main()"
)
"""The program, with quick cells on the nodes."""


def test_a_pick_runs_its_rungs_on_a_cluster(nodes: Any, tmp_path: Path) -> None:
    """It chooses as on one machine, and its cells say where they ran."""
    command = [sys.executable, "-W", "ignore", "-c", LIGHT, "pick", "synthetic-mini", "--no-report", "--format", "json"]
    command += ["--backbone", "timm:quick0,timm:quick1", "--seeds", "1", "--epochs", "2"]
    command += ["--executor", "ray", "--ray-address", nodes.address]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["pick"]["backbone"] in ("timm:quick0", "timm:quick1")
    records = RunFolder(tmp_path / "results" / "pick-synthetic-mini").records().values()
    assert {record.cell.config.regime for record in records} == {"knn", "ridge", "logistic", "finetune", "frozen"}
    assert all(record.machine is not None and record.status == "done" for record in records)


def test_the_driver_is_killed_and_started_again(nodes: Any, tmp_path: Path) -> None:
    """Finished cells are kept, and the running cells end with the killed driver."""
    Path("grid.toml").write_text(
        f'dataset = "synthetic-mini"\n[matrix]\nbackbones = ["{light.SLOW}"]\nregimes = ["frozen"]\nseeds = 8\n'
    )
    command = [sys.executable, "-W", "ignore", "-c", LIGHT, "run", "--grid", "grid.toml", "--no-report"]
    command += ["--executor", "ray", "--ray-address", nodes.address]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        assert wait_until(lambda: len(list(tmp_path.glob("results/grid/cells/*.json"))) >= 2, 90)
        driver.send_signal(signal.SIGKILL)
    kept = {path: path.read_bytes() for path in tmp_path.glob("results/grid/cells/*.json")}
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(kept)} of them done before" in done.stdout
    assert {path: path.read_bytes() for path in kept} == kept
    assert {record.status for record in RunFolder(tmp_path / "results" / "grid").records().values()} == {"done"}


def test_a_real_cell_on_ray_of_its_own(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an address Ray starts on this machine. Command, progress and record are as without Ray."""
    monkeypatch.setenv("TL_CACHE", str(cache / "tl"))
    command = [sys.executable, "-W", "ignore", "-m", "bench", "run", "--grid", "smoke", "--executor", "ray"]
    command += ["--backbone", "timm:test_resnet", "--regime", "frozen", "--weights", "random", "--no-report"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
    assert "[1/1] timm:test_resnet frozen cpu@" in done.stdout and "done in" in done.stdout
    (record,) = RunFolder(next((tmp_path / "results").iterdir())).records().values()
    assert record.result is not None and record.result.frozen_verified and record.result.device == "cpu"
    assert record.machine is not None and record.attempts == 1


def test_what_isn_t_on_a_node_is_sent(mini: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images and weights are sent to the node's cache once and checked there; nodes that have them get nothing."""
    fetched: list[str] = []

    class Fake:
        @staticmethod
        def get(part: dict[str, bytes]) -> dict[str, bytes]:
            fetched.extend(part)
            return part

    monkeypatch.setitem(sys.modules, "ray", Fake)
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ray_node, "PART_BYTES", 20_000)
    there = tmp_path / "driver"
    shutil.copytree(mini.root, there)
    splits = ray_node.replace(mini, root=there)
    names = [*mini.train.files, *mini.val.files]
    images = ray_node.pack({name: there / name for name in names}, lambda part: part)
    assert len(images.parts) > 1
    path = there / "some.pth"
    path.write_bytes(b"weights")
    weights = Weights(kind="pretrained", source="package x", digest=file_digest(path), path=path)
    payload = ray_node.pack({ray_node.sent_name(path): path}, lambda part: part)

    monkeypatch.setattr(ray_node, "_KNOWN", {})
    assert ray_node.find_images(splits, None).root == there and ray_node.find_file(weights, None).path == path
    assert fetched == []
    shutil.rmtree(there)
    monkeypatch.setattr(ray_node, "_KNOWN", {})
    for find in (lambda: ray_node.find_images(splits, None), lambda: ray_node.find_file(weights, None)):
        with pytest.raises(ray_node._Missing):
            find()
    for _ in range(2):
        found = ray_node.find_images(splits, images)
        assert found.root.is_relative_to(tmp_path / "cache") and found == ray_node.replace(splits, root=found.root)
        assert ray_node.find_file(weights, payload).path.read_bytes() == b"weights"
    assert len(fetched) == len(mini.train) + len(mini.val) + 1, "once"
    next((tmp_path / "cache" / "sent" / weights.digest).iterdir()).write_bytes(b"damaged")
    with pytest.raises(ray_node._Missing):
        ray_node.find_file(weights, None)
    sent = warned_once(lambda: ray_node.find_file(weights, payload), tmp_path / "cache" / "sent" / weights.digest)
    assert sent.path.read_bytes() == b"weights"
    (found.root / mini.train.files[3]).write_bytes(b"damaged")
    monkeypatch.setattr(ray_node, "_KNOWN", {})
    assert warned_once(lambda: ray_node.find_images(splits, images), found.root) == found
    wrong = ray_node.pack({ray_node.sent_name(path): sent.path}, lambda part: dict.fromkeys(part, b""))
    with pytest.raises(UserError, match="doesn't hold what was sent to this node; remove that folder"):
        ray_node.find_file(weights.replace(digest="1" * 64), wrong)
    shutil.rmtree(tmp_path / "cache" / "sent" / weights.digest)

    def barred(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:  # a home folder that the node's user may not read
        patch.setattr(Path, "is_file", barred)
        patch.setattr(Path, "is_dir", barred)
        with pytest.raises(ray_node._Missing):
            ray_node.find_file(weights, None)
        assert not ray_node._has_images(there, splits)
    evil = ray_node.Payload(parts=({"../../evil": b""},))
    with pytest.raises(UserError, match="outside its folder"):
        ray_node.find_file(weights.replace(digest="0" * 64), evil)


def test_kinds_of_nodes_are_distinguished() -> None:
    """Nodes differ by model and cores. A node with GPUs has one slot per GPU."""
    small = ray_cluster._slots("a", {"CPU": 2.0}, {"cpu": "AMD EPYC 7B13"}, 2)
    large = ray_cluster._slots("b", {"CPU": 8.0, "GPU": 2.0}, {"cuda:0": "NVIDIA H100", "cpu": "Xeon(R) @ 2 GHz"}, 8)
    found = {slot.device: slot for slot in (*small, *large)}
    assert list(found) == ["cpu@amd-epyc-7b13-2", "cuda:0@nvidia-h100", "cpu@xeon-r-2-ghz-8"]
    gpu = found["cuda:0@nvidia-h100"]
    assert (gpu.cpus, gpu.gpus, gpu.count) == (4.0, 1, 2)
    have = {device: slot.model for device, slot in found.items()}
    assert pick("cuda", have) == "cuda:0@nvidia-h100" and pick("cpu@amd-epyc-7b13-2", have) == "cpu@amd-epyc-7b13-2"
    with pytest.raises(DeviceError, match="several kinds of it, cpu@amd-epyc-7b13-2, cpu@xeon-r-2-ghz-8"):
        pick("cpu", have)


WITHOUT_RAY = "import sys; sys.modules['ray'] = None; from bench.cli import main; main()"


def test_mistakes() -> None:
    """Each ends in one line."""
    with pytest.raises(UserError, match=r"--ray-address 127\.0\.0\.1:1: no Ray cluster there"):
        RayExecutor("127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"--ray-address 'ray://h:10001': Ray's client can't"):
        RayExecutor("ray://h:10001")
    with pytest.raises(ConfigError, match="needs --executor ray"):
        executor_for(Options(name="x", executor="process", address="auto"))
    bare = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY, "run", "--executor", "ray"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert bare.returncode == 2 and bare.stderr.count("\n") == 1 and 'pip install "tl-bench[ray]"' in bare.stderr
