"""`bench doctor`: checks what this machine has, what is missing, and why."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from bench.analysis.words import counted
from bench.execution.discovery import with_advice
from bench.execution.executors import make_executor
from bench.store.environment import environment
from bench.sweep.grid import load_grid
from tl.cache import cache_dir, check_cache
from tl.datasets import load_splits
from tl.errors import UserError
from tl.images import open_store
from tl.machine import DeviceKey
from tl.text import visible
from tl.weights import BUNDLED


def examine() -> None:
    """Check and print the findings. Downloads nothing."""
    console = Console()

    def show(mark: str, topic: str, text: str) -> None:
        colour = {"ok": "green", "no": "yellow", "!!": "red"}[mark]
        console.print(Text.assemble((mark, colour), visible(f" {topic}: {text}")), soft_wrap=True)

    machine = environment()
    gib = machine.memory_bytes / 2**30
    cores = f"{counted(machine.cores, 'core')} (as many threads per cell)"
    show("ok", "machine", f"{machine.cpu}, {cores}, {gib:.1f} GiB of memory, {machine.system}")
    show("ok", "software", ", ".join([f"Python {machine.python}", *(f"{k} {v}" for k, v in machine.packages.items())]))
    try:
        problem = check_cache()
        show("!!" if problem else "ok", "cache", problem or str(cache_dir()))
    except UserError as error:
        show("!!", "cache", str(error))
    executor = make_executor("process")
    try:
        found = executor.devices()
    except UserError as error:
        show("!!", "devices", str(error))
        return
    for device, name in found.items():
        show("ok", f"device {device}", name)
    for device in ("cuda", "mps"):
        if device not in {DeviceKey.parse(name).kind for name in found}:
            show("no", f"device {device}", "not on this machine, or torch was built without it")
    for name in ("hymenoptera", "synthetic"):
        try:
            splits = load_splits(name, download=False)
            open_store(splits)
            counts = f"{len(splits.train)} for training, {len(splits.val)} for validation"
            show("ok", f"images {name}", f"{counts}, all decodable, in {splits.root}")
        except UserError as error:
            show("no", f"images {name}", str(error))
    specs = list(dict.fromkeys([*load_grid("default").matrix.backbones, *BUNDLED]))
    outcome = executor.call("bench.execution.worker:resolve_weights", specs, "auto", None, False)
    for spec, weights in outcome.value.items() if outcome.status == "done" else []:
        if weights.kind == "pretrained" and not weights.download_from:
            show("ok", f"weights {spec}", f"{weights.source} ({weights.label})")
        else:
            show("no", f"weights {spec}", weights.reason)
    if outcome.status != "done":
        show("!!", "weights", with_advice(outcome.reason))
