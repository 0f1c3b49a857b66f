"""Keeps torch's compiler from loading where nothing compiles. Loads no torch itself.

torchvision, timm, torch's optimisers and its counter of operations import `torch._dynamo` and triton for a decorator or
a class, and use nothing else of them unless something is compiled. With all that these import in turn, that takes more
than half a second and 140 MiB. Inside of `deferred`, placeholders answer in their place: where nothing is compiled, no
function needs an exemption from it.

What a placeholder doesn't know, it leaves to the real module, which is then loaded, and all placeholders are gone. So
`torch.compile`, `torch.export` and versions of these libraries that ask for other names work as ever, only slower.
No number depends on it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import FunctionType, ModuleType
from typing import Any

DYNAMO, DYNAMO_UTILS, TRITON = "torch._dynamo", "torch._dynamo.utils", "triton.runtime.jit"


@contextmanager
def deferred() -> Iterator[None]:
    """Put placeholders in the place of torch's compiler and triton, if they are not loaded, and remove them at the end.

    It holds for the whole process. Contexts may be nested, also by several threads.
    """
    global _depth
    with _LOCK:
        if _depth == 0:
            _install()
        _depth += 1
    try:
        yield
    finally:
        with _LOCK:
            _depth -= 1
            if _depth == 0:
                _remove()


def load_compiler() -> None:
    """Load torch's compiler. Then `deferred` has no effect."""
    _real(DYNAMO)


def compiler_loaded() -> bool:
    """Return whether torch's compiler is loaded, so something may have been compiled."""
    return _loaded(DYNAMO) is not None


class Placeholder(ModuleType):
    """Stands for a module that isn't loaded. It has a few names; for any other one the module is loaded."""

    def __getattr__(self, name: str) -> Any:
        # `inspect` and others ask every module for such names, just to see whether it has them. A package is asked for
        # its path when a module in it is imported.
        if name.startswith("__") and (self.__name__, name) != (DYNAMO, "__path__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(_real(self.__name__), name)


class _Finder(MetaPathFinder):
    """Gives way to the real modules when one that belongs to them is imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return None for all other modules, which the finders after this one find."""
        if fullname == "triton" and target is None:
            return _making_way(PathFinder.find_spec(fullname, path))
        if not fullname.startswith(f"{DYNAMO}."):
            return None
        # Asking the placeholder for its `__path__` has loaded the real package, which may have imported this module.
        there = sys.modules.get(fullname)
        return ModuleSpec(fullname, _There(there)) if there and target is None else None


def _making_way(spec: ModuleSpec | None) -> ModuleSpec | None:
    """Make a module remove all placeholders when it is loaded. Torch only looks whether it could be."""
    if spec and spec.loader:
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            _remove_placeholders()
            load(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
    return spec


class _There(Loader):
    """The loader of a module that is loaded already."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module."""
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """Undo what the import system has done to the module."""
        vars(module)["__spec__"] = self._spec  # a module may refuse to be assigned to


def _disable(fn: Any = None, recursive: bool = True, **settings: Any) -> Any:
    """Stand for `torch._dynamo.disable`, which exempts a function from compilation."""
    if fn is None and not settings.get("reason"):
        return partial(_disable, recursive=recursive, **settings)
    if not isinstance(fn, FunctionType):
        return _real(DYNAMO).disable(fn, recursive, **settings)
    exempted: Callable[..., Any] | None = None

    @wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal exempted
        if exempted is None:
            real = getattr(_loaded(DYNAMO), "disable", None)
            if real is None:
                return fn(*args, **kwargs)
            exempted = real(fn, recursive, **settings)
        return exempted(*args, **kwargs)

    # By these the compiler recognises such a function.
    vars(call).update(
        _torchdynamo_disable=True,
        _torchdynamo_disable_msg=settings.get("reason"),
        _torchdynamo_disable_recursive=recursive,
        _torchdynamo_orig_callable=fn,
    )
    return call


def _graph_break(*args: Any, **settings: Any) -> None:
    """Stand for `torch._dynamo.graph_break`, which divides what is being compiled."""
    if dynamo := _loaded(DYNAMO):
        dynamo.graph_break(*args, **settings)


def _is_compile_supported(*args: Any) -> Any:
    """Stand for `torch._dynamo.utils.is_compile_supported`, which torchvision asks when it aligns regions."""
    return _real(DYNAMO_UTILS).is_compile_supported(*args)


class _OfTriton(type):
    def __instancecheck__(cls, instance: object) -> bool:
        triton = _loaded(TRITON)
        return triton is not None and isinstance(instance, triton.JITFunction)


class _JITFunction(metaclass=_OfTriton):
    """Stands for `triton.runtime.jit.JITFunction`; without triton nothing is an instance of it."""


NAMES: dict[str, dict[str, Any]] = {
    DYNAMO: {"disable": _disable, "graph_break": _graph_break},
    DYNAMO_UTILS: {"is_compile_supported": _is_compile_supported},
    TRITON: {"JITFunction": _JITFunction},
}
"""Module → what is asked of it though nothing is compiled."""

_LOCK = threading.RLock()
_FINDER = _Finder()
_depth = 0
"""How many contexts are open."""


def _install() -> None:
    if any(name in sys.modules for name in (DYNAMO, "triton")):
        return
    for name, known in NAMES.items():
        sys.modules[name] = placeholder = Placeholder(name)
        placeholder.__spec__ = ModuleSpec(name, None)
        vars(placeholder).update(known)
    sys.meta_path.insert(0, _FINDER)


def _remove() -> None:
    _remove_placeholders()
    if _FINDER in sys.meta_path:
        sys.meta_path.remove(_FINDER)


def _remove_placeholders() -> None:
    for name in NAMES:
        if isinstance(sys.modules.get(name), Placeholder):
            del sys.modules[name]


def _real(name: str) -> Any:
    """Load a module that a placeholder stands for."""
    _remove_placeholders()
    return import_module(name)


def _loaded(name: str) -> Any:
    """Return a module if the real one is loaded, else None."""
    module = sys.modules.get(name)
    return None if isinstance(module, Placeholder) else module
