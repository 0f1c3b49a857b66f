"""Exports a saved model for programs without this library, and compares what the export says with what the model says.

To add a form, add an entry to `FORMS`. An export has the network alone: its input are prepared images
`(B, 3, S, S) float32` for any B, as `model.json` describes, and its output are logits. An export that predicts another
class for an image, or whose logits differ by more than rounding, isn't kept.
"""

from __future__ import annotations

import copy
import importlib.util
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl.errors import ConfigError, ModelError, not_one_of
from tl.saved import Exported

if TYPE_CHECKING:  # a command looks at `FORMS` before anything loads torch
    import torch

    from tl.model import Model

IMAGES = 64
"""Most images on which an export is compared."""
ALLOWED = 1e-3
"""Largest difference of a logit, relative to the largest logit. Rounding makes it 1e-7 to 1e-5."""
_INPUT, _OUTPUT = "images", "logits"
_EXAMPLE_BATCH = 2
"""Images of the batch with which a network is followed: a batch of one would be taken for the only possible size."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """A form of exports."""

    file: str
    """Name of the file in the model's folder."""
    packages: tuple[str, ...]
    """Packages that it needs beside the suite's own."""
    write: Callable[[Any, Any, Path], None]
    """Writes a network, which is followed on a batch of images, to a path."""
    run: Callable[[Path, Any], Any]
    """Runs the file in the path on a batch of images; returns its logits."""


def check_forms(forms: Sequence[str]) -> None:
    """Raise `ConfigError` for an unknown form, and for one that needs a package that isn't installed."""
    for form in forms:
        if form not in FORMS:
            raise ConfigError(not_one_of("--export", form, FORMS))
        if missing := [name for name in FORMS[form].packages if importlib.util.find_spec(name) is None]:
            raise ConfigError(
                f"--export {form} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
                f"installed: pip install 'tl-bench[{form}]'"
            )


def export(model: Model, folder: Path, form: str, batches: Sequence[torch.Tensor]) -> Exported:
    """Write an export of a model into its folder, and compare the two on prepared images.

    Raises `ModelError` if the network can't be exported, or if the export disagrees; its file is removed then.
    """
    import torch

    kind, network = FORMS[form], copy.deepcopy(model.network)
    network.to(device="cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    path = folder / kind.file
    try:
        example = torch.zeros(_EXAMPLE_BATCH, *batches[0].shape[1:])
        try:
            kind.write(network, example, path)
            found = torch.cat([kind.run(path, batch.cpu().contiguous()) for batch in batches])
        except Exception as error:  # of the exporters, which raise anything
            why = (str(error).strip() or type(error).__name__).partition("\n")[0]
            raise ModelError(f"{form}: {model.card.backbone} can't be exported: {why}") from error
        expected = torch.cat([model(batch).cpu() for batch in batches])
        return _compared(form, kind.file, found, expected)
    except BaseException:
        for each in folder.glob(f"{kind.file}*"):  # ONNX may put large tensors into a second file
            each.unlink()
        raise


def _compared(form: str, file: str, found: torch.Tensor, expected: torch.Tensor) -> Exported:
    difference = float((found - expected).abs().max())
    others = int((found.argmax(1) != expected.argmax(1)).sum())
    if others or not difference <= ALLOWED * float(expected.abs().max()):
        raise ModelError(
            f"{form}: the export disagrees with the model: another class for {others} of {len(expected)} images, "
            f"logits differ by up to {difference:.2g}; it isn't kept"
        )
    return Exported(kind=form, file=file, images=len(expected), largest_difference=difference, same_classes=True)


def _write_torch(network: Any, example: Any, path: Path) -> None:
    import torch

    batch = torch.export.Dim("batch", min=1)
    torch.export.save(torch.export.export(network, (example,), dynamic_shapes={_INPUT: {0: batch}}), path)


def _run_torch(path: Path, images: Any) -> Any:
    import torch

    with torch.no_grad():
        return torch.export.load(path).module()(images)


def _write_onnx(network: Any, example: Any, path: Path) -> None:
    import torch
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # torch's bars would make one for several processes, which a killed one leaves
    torch.onnx.export(
        network,
        (example,),
        path,
        dynamo=True,
        verbose=False,
        input_names=[_INPUT],
        output_names=[_OUTPUT],
        dynamic_shapes={_INPUT: {0: torch.export.Dim("batch", min=1)}},
        external_data=False,
    )


def _run_onnx(path: Path, images: Any) -> Any:
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run([_OUTPUT], {_INPUT: images.numpy()})[0])


FORMS: dict[str, Form] = {
    "torch": Form(file="model.pt2", packages=(), write=_write_torch, run=_run_torch),
    "onnx": Form(file="model.onnx", packages=("onnx", "onnxscript", "onnxruntime"), write=_write_onnx, run=_run_onnx),
}
"""Name of a form, as in `--export`, and of the extra with its packages → the form."""
