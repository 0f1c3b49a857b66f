"""Tests that torch's compiler loads only where something needs it, and then works as ever."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.images import write_folder
from tests.weights import published

COMPILER = ("torch._dynamo", "torch._inductor", "triton", "sympy")


def ran(code: str, *arguments: str) -> list[str]:
    """The lines that a new process prints which runs this code."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


TRAINS = """
import sys, warnings
import tl.deferred
if sys.argv[2] == "at once":
    tl.deferred.NAMES.clear()
import tl, torch
warnings.simplefilter("ignore")
torch.set_num_threads(1)
splits = tl.load_splits(sys.argv[1])
for backbone, settings in (
    ("torchvision:shufflenet_v2_x0_5", {"regime": "finetune"}),
    ("timm:test_resnet", {"regime": "frozen", "protocol": "tuned"}),
    ("timm:test_resnet", {"regime": "finetune", "optimizer": "adamw", "execution": "plain"}),
):
    config = tl.TrainConfig(backbone=backbone, weights="pretrained", epochs=1, batch_size=4, **settings)
    result = tl.run_protocol(config, splits, device="cpu", weights_dir=sys.argv[3])
    print([(row.train_loss, row.val_loss) for row in result.epochs], result.work)
print(*sorted(sys.modules))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of a few images."""
    return str(write_folder(tmp_path_factory.mktemp("images"), train=4, val=2))


def test_training_loads_no_compiler_and_gives_the_same_numbers(folder: str) -> None:
    """Both executions, both optimisers and counting operations do without; with it all losses and counts are equal."""
    *deferred, without = ran(TRAINS, folder, "deferred", str(published()))
    *at_once, having = ran(TRAINS, folder, "at once", str(published()))
    assert len(deferred) == 3 and deferred == at_once
    assert not set(COMPILER) & set(without.split())
    assert {"torch._dynamo", "triton"} <= set(having.split()), "these libraries no longer load it: `tl.deferred` can go"


def modules_here(emit: object) -> list[str]:
    """The modules of this process."""
    return sorted(sys.modules)


CALLS = f"""
from bench.execution.process import ProcessExecutor
outcome = ProcessExecutor().call("{__name__}:modules_here")
assert outcome.status == "done", outcome.reason
print(*outcome.value)
"""


def test_a_cells_process_starts_without_the_compiler() -> None:
    """The server has torch, torchvision and timm, and so has each process that is forked from it.

    A new process calls: this one may have a server already, of another test, which loads less.
    """
    modules = set(ran(CALLS)[0].split())
    assert {"bench.execution.worker", "torch", "torchvision", "timm", "torch.utils.flop_counter"} <= modules
    assert not set(COMPILER) & modules


NEEDS = {
    "a name": "torch._dynamo.reset()",
    "a module in it": (
        "import torch._dynamo.config as c\nassert c is sys.modules[c.__name__] and c.__spec__.origin == c.__file__"
    ),
    "from": "from torch._dynamo import optimize",
    "from a module in it": "from torch._dynamo.utils import counters\nassert counters is not None",
    "compile": "assert torch.compile(lambda x: x + 1, backend='eager')(torch.ones(2)).sum() == 4",
    "export": "torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))",
    "inductor": "import torch._inductor",
    "what was imported before": (
        "assert torchvision.ops.roi_align.__globals__['is_compile_supported']('cpu') in (True, False)"
    ),
    "triton": (
        "assert importlib.util.find_spec('triton') and TRITON in sys.modules and not isinstance(torch, early)\n"
        "import triton\n"
        "assert isinstance(object.__new__(triton.runtime.jit.JITFunction), early) and not isinstance(torch, early)\n"
        "load_compiler()"
    ),
}
"""What needs the compiler → code that does."""

ASKS = """
import importlib.util, json, os, sys, traceback
from tl.deferred import TRITON, Placeholder, compiler_loaded, deferred, load_compiler
before = list(sys.meta_path)
def asked(code):
    with deferred():
        from torch.utils.flop_counter import _JITFunction as early
        assert isinstance(sys.modules["torch._dynamo"], Placeholder) and not compiler_loaded()
        exec(code, globals() | {"early": early})
        inside = compiler_loaded()
    left = [name for name, module in sys.modules.items() if isinstance(module, Placeholder)]
    return inside and compiler_loaded() and not left and sys.meta_path == before
with deferred():
    import torch, torchvision
for name, code in json.loads(sys.argv[1]).items():
    if (pid := os.fork()) == 0:
        try:
            os._exit(0 if asked(code) else 1)
        except BaseException:
            traceback.print_exc()
            os._exit(2)
    print(name, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def test_what_needs_the_compiler_gets_it() -> None:
    """Also inside of the context; then no placeholder is left, and imports work as they did before."""
    needs = {name: code for name, code in NEEDS.items() if name != "triton" or importlib.util.find_spec("triton")}
    assert ran(ASKS, json.dumps(needs)) == [f"{name} 0" for name in needs]


def test_exempted_functions_stay_exempted() -> None:
    """What was exempted from compilation while that wasn't loaded is not compiled later on."""
    code = """
import torch
from tl.deferred import deferred
with deferred():
    @torch.compiler.disable
    def exempt(x):
        seen.append(torch.compiler.is_compiling())
        return x * 2
seen = []
assert exempt(torch.ones(1)) == 2
graphs = []
def backend(graph, inputs):
    graphs.append([node.name for node in graph.graph.nodes if node.op.startswith("call")])
    return graph
def whole(x):
    return exempt(x + 1) - 3
assert torch.compile(whole, backend=backend)(torch.ones(1)) == 1
print(seen, graphs)
"""
    assert ran(code) == ["[False, False] [['add'], ['sub']]"]


def test_contexts_nest() -> None:
    """The placeholders stay until the last one ends, and a compiler that is loaded stays."""
    code = """
import sys
from tl.deferred import Placeholder, deferred, load_compiler
def there():
    return isinstance(sys.modules.get("torch._dynamo"), Placeholder)
with deferred():
    with deferred():
        pass
    print(there())
print(there(), "torch._dynamo" in sys.modules)
load_compiler()
with deferred():
    print(there(), "torch._dynamo" in sys.modules)
"""
    assert ran(code) == ["True", "False False", "False True"]
