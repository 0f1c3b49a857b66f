"""Keeps the weights of the best epoch while later epochs train, without a second copy of them in memory.

What a whole network trains is kept in a file, from where it comes back at most once. Writing takes a few milliseconds
for the 45 MB of a ResNet-18, less than a copy in memory that the process must first get, and no epoch's time has it.
"""

from __future__ import annotations

import tempfile
from contextlib import suppress
from typing import IO, Any, Self

import torch

from tl.freezing import Freezing
from tl.tensors import in_memory_order
from tl.work import tensor_bytes

SMALL = 1 << 20
"""What takes no more bytes than this, such as a head, is kept in memory."""


class KeptState:
    """The weights of the epoch that is kept, in a file without a name, so that none is left behind.

    They are in memory if they are small, and where a file can't be written: on a full disk, or without a folder for
    temporary files. Usable once, as a context.
    """

    def __init__(self, freezing: Freezing) -> None:
        self._freezing = freezing
        self._state: dict[str, torch.Tensor] = {}
        self._file: IO[bytes] | None = None
        if tensor_bytes(self._changing()) > SMALL:
            with suppress(OSError):
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # closed by `_drop_file`

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._state = {}
        self._drop_file()

    def keep(self) -> None:
        """Keep the model's weights in place of those kept before."""
        if self._file:
            try:
                self._file.seek(0)
                for tensor in self._changing():
                    _write(self._file, _bytes(in_memory_order(tensor).cpu()))
                return
            except OSError:
                self._drop_file()
        self._state = self._freezing.state()

    def restore(self) -> None:
        """Put the kept weights back into the model. Raises `OSError` if they can't be read."""
        if not self._file:
            self._freezing.restore(self._state)
            return
        self._file.seek(0)
        for tensor in self._changing():
            place = in_memory_order(tensor)
            found = torch.empty(place.shape, dtype=place.dtype)
            _read(self._file, _bytes(found))
            place.copy_(found)

    def _changing(self) -> list[torch.Tensor]:
        """What training may change, in the order of the model."""
        return [value for name, value in self._freezing.tensors().items() if name in self._freezing.changing]

    def _drop_file(self) -> None:
        if self._file:
            with suppress(OSError):
                self._file.close()
            self._file = None


def _bytes(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a tensor on the CPU; that of a copy if it has gaps."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data


def _write(file: IO[bytes], data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


def _read(file: Any, place: memoryview) -> None:
    while place:
        count = file.readinto(place)
        if not count:
            raise OSError("the temporary file with the best weights has become shorter")
        place = place[count:]
