"""A process with TensorFlow that computes features of a SavedModel: `python savedmodel_process.py FOLDER IN OUT`.

`IN` and `OUT` are the numbers of two open pipes. The file needs TensorFlow, which brings numpy, and nothing else of the
suite, so the Python that runs it may be another one than that of the suite (`TL_TENSORFLOW_PYTHON`).

A message is a letter, eight bytes that say how long its content is, and the content: `J` JSON, `A` an array as numpy
saves one. First comes JSON that says what the network is, or why there is none (`error`); then for each array of images
`(B, S, S, 3) float32` an array of features, or JSON with an `error`. The process ends when nobody writes any more.
"""

from __future__ import annotations

import io
import json
import os
import struct
import sys
from typing import IO, Any

import numpy as np

HEADER = struct.Struct("<cQ")
SIGNATURE = "serving_default"
USUAL_SIZE = 224


def write(pipe: IO[bytes], message: Any) -> None:
    """Write an array, or anything else as JSON."""
    if isinstance(message, np.ndarray):
        buffer = io.BytesIO()
        np.save(buffer, message, allow_pickle=False)
        kind, content = b"A", buffer.getbuffer()
    else:
        kind, content = b"J", memoryview(json.dumps(message).encode())
    pipe.write(HEADER.pack(kind, len(content)))
    pipe.write(content)
    pipe.flush()


def read(pipe: IO[bytes]) -> Any:
    """Read a message. Raises `EOFError` if the other side has ended."""
    kind, length = HEADER.unpack(_exactly(pipe, HEADER.size))
    content = _exactly(pipe, length)
    return json.loads(content) if kind == b"J" else np.load(io.BytesIO(content), allow_pickle=False)


def _exactly(pipe: IO[bytes], length: int) -> bytes:
    content = pipe.read(length)
    if len(content) < length:
        raise EOFError("the other side has ended")
    return content


class Refused(Exception):
    """A SavedModel that makes no features of images."""


def open_model(folder: str) -> tuple[Any, dict[str, Any]]:
    """Load a SavedModel. Returns a function from images to features, and what is known of the network."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow as tf
    except ModuleNotFoundError as error:
        if error.name != "tensorflow":
            raise
        install = f"{sys.executable} -m pip install tensorflow-cpu"
        raise Refused(f"needs tensorflow, which {sys.executable} doesn't have: {install}") from error

    loaded = tf.saved_model.load(folder)
    signatures = dict(loaded.signatures)
    if SIGNATURE in signatures:
        function = signatures[SIGNATURE]
    elif len(signatures) == 1:
        (function,) = signatures.values()
    else:
        raise Refused(f"has no signature {SIGNATURE!r}; it has {', '.join(signatures) or 'none'}")
    inputs = function.structured_input_signature[1]
    if len(inputs) != 1:
        raise Refused(f"takes {len(inputs)} inputs ({', '.join(inputs)}), not images alone")
    ((name, spec),) = inputs.items()
    shape = spec.shape.as_list() if spec.shape.rank is not None else [None] * 4
    if len(shape) != 4 or shape[3] not in (3, None) or shape[1] != shape[2] or spec.dtype != tf.float32:
        raise Refused(f"takes {shape} {spec.dtype.name}, not square images [None, size, size, 3] float32")

    def features(images: Any) -> Any:
        made = {key: value.numpy() for key, value in function(**{name: tf.constant(images)}).items()}
        pooled = [value for value in made.values() if value.ndim == 2]
        if len(pooled) != 1:
            shapes = ", ".join(f"{key} {list(value.shape)}" for key, value in made.items())
            raise Refused(f"gives {shapes} for {len(images)} images, not one table of features (images, width)")
        return np.ascontiguousarray(pooled[0], dtype=np.float32)

    known = {
        "size": shape[1] or USUAL_SIZE,
        "parameters": sum(int(np.prod(variable.shape)) for variable in function.variables),
        "tensorflow": tf.__version__,
    }
    return features, known


def serve(folder: str, inputs: IO[bytes], outputs: IO[bytes], opened: Any = open_model) -> None:
    """Answer until the other side ends."""
    try:
        features, known = opened(folder)
    except Exception as error:  # of TensorFlow's code: whatever it is, the other side says it
        write(outputs, {"error": _said(error)})
        return
    write(outputs, known)
    while True:
        try:
            images = read(inputs)
        except EOFError:
            return
        try:
            write(outputs, features(images))
        except Exception as error:
            write(outputs, {"error": _said(error)})


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, Refused) else f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    with os.fdopen(int(sys.argv[2]), "rb") as reading, os.fdopen(int(sys.argv[3]), "wb") as writing:
        serve(sys.argv[1], reading, writing)
