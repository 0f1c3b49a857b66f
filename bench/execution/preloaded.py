"""What the fork server imports in advance: the worker, with torch, torchvision and timm.

multiprocessing lets a server end, with a traceback on the terminal, on any error but `ImportError`. Such an error, as
of a damaged file, is left to the calls: each imports the worker again, and reports why it can't.
"""

from __future__ import annotations

import contextlib
import gc
from importlib import import_module

from tl.deferred import deferred

gc.disable()  # a million objects are made here, and hardly one is garbage: looking for it takes a quarter of the time
with contextlib.suppress(Exception), deferred():
    import_module("bench.execution.worker")
# Collections in a cell's process pass over these objects. So their pages stay shared with the server.
gc.freeze()
gc.enable()
