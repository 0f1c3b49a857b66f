"""A fake NVML for machines without a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

UUID = "0a1b2c3d-0000-1111-2222-333344445555"


class NVMLError(Exception):
    pass


class FakeNvml:
    """NVML with one GPU; `refuses` names the readings that it doesn't support."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    nvmlClocksEventReasonNone = 0
    nvmlClocksEventReasonGpuIdle = 1
    nvmlClocksEventReasonSwPowerCap = 4
    nvmlClocksEventReasonHwThermalSlowdown = 64
    nvmlClocksEventReasonPowerCapByAnotherName = 4
    nvmlClocksEventReasonAll = 69

    def __init__(self) -> None:
        self.processes: list[tuple[int, int | None]] = []
        self.utilisation: list[int] = [0]
        """The next readings; the last one repeats."""
        self.reasons = 0
        self.refuses: set[str] = set()
        self.open = 0

    def _answer(self, question: str, value: Any) -> Any:
        if question in self.refuses:
            raise NVMLError("Not Supported")
        return value

    def nvmlInit(self) -> None:
        self._answer("init", None)
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> str:
        if uuid != b"GPU-" + UUID.encode():
            raise NVMLError("Not Found")
        return "handle"

    def nvmlDeviceGetName(self, handle: str) -> str:
        return self._answer("name", "GPU 9000")

    def nvmlSystemGetDriverVersion(self) -> str:
        return self._answer("driver", "580.1")

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        return self._answer("clocks", {1: 1980, 2: 2619}[kind])

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        return self._answer("temperature", 51)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        value = self.utilisation.pop(0) if len(self.utilisation) > 1 else self.utilisation[0]
        return self._answer("utilisation", SimpleNamespace(gpu=value))

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:
        return self._answer("reasons", self.reasons)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:
        return self._answer("processes", [SimpleNamespace(pid=p, usedGpuMemory=m) for p, m in self.processes])
