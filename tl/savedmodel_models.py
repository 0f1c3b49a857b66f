"""SavedModels of TensorFlow as feature extractors. TensorFlow runs in a process of its own, and gets images by a pipe.

Nothing of such a network can train, so it is for regimes that extract features once.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import weakref
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from tl import savedmodel_process as process
from tl.batches import Preprocessing
from tl.errors import NotApplicable
from tl.library import Backbone, Maker
from tl.own_code import Elsewhere, named
from tl.own_models import as_backbone
from tl.savedmodel import digest_of_folder, folder_of, python_of, saved_model
from tl.weights import Weights

_LARGER = 256 / 224
"""How much larger images are before the crop: as usual, since a SavedModel doesn't say it."""
_START = "import runpy, sys; del sys.path[0], sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
"""Code that runs a file so that neither modules beside it nor those of the working folder stand for others."""


class SavedModel(nn.Module):
    """Features of a SavedModel: `(B, 3, S, S) float32` with values in [0, 1] → `(B, width) float32`.

    It holds a process with TensorFlow, which ends when nothing refers to this module any more.
    """

    def __init__(self, path: Elsewhere, folder: Path) -> None:
        super().__init__()
        self._path = path
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        python = python_of()
        command = [python, "-c", _START, process.__file__, os.fspath(folder), str(theirs_in), str(theirs_out)]
        # As many threads as training has, and no GPU, whose memory TensorFlow would take as a whole.
        threads = {"TF_NUM_INTRAOP_THREADS": str(torch.get_num_threads()), "TF_NUM_INTEROP_THREADS": "1"}
        environment = {**os.environ, **threads, "CUDA_VISIBLE_DEVICES": "-1"}
        self._to, self._from = os.fdopen(ours_out, "wb"), os.fdopen(ours_in, "rb")
        try:
            # What TensorFlow says of its start is for its developers; what goes wrong comes by the pipe.
            running = subprocess.Popen(
                command,
                pass_fds=(theirs_in, theirs_out),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            self._to.close()
            self._from.close()
            raise path.wrong(f"{python} can't be started: {error.strerror or error}") from error
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        self._end = weakref.finalize(self, _end, running, self._to, self._from)
        known: dict[str, Any] = self._answer()
        self.size, self.parameter_count = int(known["size"]), int(known["parameters"])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features of images."""
        # Pixels are handed over as TensorFlow has them: channels last.
        batch = images.detach().float().permute(0, 2, 3, 1).contiguous().cpu()
        with contextlib.suppress(OSError):  # its end is said below
            process.write(self._to, batch.numpy())
        return torch.from_numpy(self._answer()).to(images.device)

    def _answer(self) -> Any:
        """Return the next answer of the process. Raises `ConfigError` if that is an error, or if it has ended."""
        try:
            answer = process.read(self._from)
        except (EOFError, OSError) as error:
            raise self._path.wrong("its process with TensorFlow has ended: out of memory?") from error
        if isinstance(answer, dict) and "error" in answer:
            raise self._path.wrong(str(answer["error"]))
        return answer

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # nothing of it can change


def _end(running: subprocess.Popen[bytes], *pipes: Any) -> None:
    for pipe in pipes:
        with contextlib.suppress(OSError):  # what was still to be written
            pipe.close()
    running.kill()
    running.wait()


def _weights(name: str, policy: str, download: bool) -> Weights:
    return Weights(kind="pretrained", source="folder", label=Path(name).name, digest=digest_of_folder(name))


def _make(name: str, weights: Weights) -> Backbone:
    path = saved_model(name)
    if weights.kind == "random":
        raise NotApplicable(f"{path}: has weights of its own, and no random ones")
    with named(path):
        module = SavedModel(path, folder_of(path))
        preprocessing = Preprocessing(
            size=module.size,
            resize=int(module.size * _LARGER),
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            interpolation="bilinear",
        )
        with torch.inference_mode():
            width = module(torch.zeros(1, 3, module.size, module.size)).shape[1]
    made = Backbone(module, width, preprocessing, parameters_elsewhere=module.parameter_count)
    return as_backbone(path, made, "a tl.Backbone")


MAKER = Maker(
    weights=_weights,
    make=_make,
    load=lambda name: folder_of(saved_model(name)),
    frozen_because="a SavedModel runs in a process of TensorFlow, where nothing of it trains",
    others="the process with TensorFlow",
)
