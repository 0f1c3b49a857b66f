"""What a file of pytest-benchmark must say of the machine and of the benchmark for its times to be compared."""

from __future__ import annotations

import hashlib
import inspect
from typing import Any

import pytest
import torch

from bench.environment import environment


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Libraries and threads, beside the processor that pytest-benchmark tells itself."""
    machine_info["packages"] = {**environment().packages, "threads": str(torch.get_num_threads())}


@pytest.fixture(autouse=True)
def _source(request: pytest.FixtureRequest) -> None:
    """The benchmark's own code: times of a benchmark that was changed are those of something else."""
    if "benchmark" in request.fixturenames:
        text = inspect.getsource(request.function)
        request.getfixturevalue("benchmark").extra_info["source"] = hashlib.sha256(text.encode()).hexdigest()[:12]
