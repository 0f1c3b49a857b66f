"""Checks the arguments of public functions when they are called: a notebook's slip is one line, and leaves no files."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, BeforeValidator, InstanceOf, PlainValidator, TypeAdapter, ValidationError

from tl.cache import expand_user
from tl.errors import ConfigError
from tl.text import shortened

MOST_ELEMENTS = 100_000
"""Most elements of an argument. An iterable may have no end."""
Given = ParamSpec("Given")
Returned = TypeVar("Returned")


def checked(function: Callable[Given, Returned]) -> Callable[Given, Returned]:
    """Check the arguments of each call by the function's annotations, strictly: neither `"5"` nor `true` is a number.

    What numpy has for numbers, texts and lists is accepted. The call raises `ConfigError` with the argument's name and
    value, and `TypeError`, as ever, for an argument that is missing or that there isn't.
    """
    signature = inspect.signature(function)
    named = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if parameter.annotation is not parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    }

    @functools.cache
    def adapters() -> dict[str, TypeAdapter[Any]]:
        # The annotation of what is returned may have names that only type checkers know.
        hints = get_type_hints(type("", (), {"__annotations__": named}), function.__globals__, include_extras=True)
        wanted: dict[str, Any] = {name: Annotated[_exact(hints[name]), BeforeValidator(plain)] for name in named}
        return {name: TypeAdapter(each) for name, each in wanted.items()}

    @functools.wraps(function)
    def call(*positional: Given.args, **by_name: Given.kwargs) -> Returned:
        try:
            bound = signature.bind(*positional, **by_name)
        except TypeError as error:
            raise TypeError(f"{function.__name__}(): {error}") from None
        for name in [name for name in bound.arguments if name in named]:
            value = bound.arguments[name]
            try:
                bound.arguments[name] = adapters()[name].validate_python(value, strict=True)
            except ValidationError as error:
                message = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
                raise ConfigError(f"{name}={_shown(value)}: {message[0].lower()}{message[1:]}") from None
        return function(*bound.args, **bound.kwargs)

    return call


def plain(value: Any) -> Any:
    """Return the value with Python's own numbers, texts and lists in place of those of numpy and similar libraries."""
    if callable(to_list := getattr(value, "tolist", None)) and not isinstance(value, type):
        return to_list()
    return [plain(element) for element in value] if isinstance(value, list | tuple) else value


def _exact(hint: Any) -> Any:
    """The hint, for which no dictionary is a record: its mistakes would be told without the names of fields."""
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return Annotated[hint, InstanceOf()]  # type: ignore[type-arg]
    if get_origin(hint) in (Union, UnionType):
        return Union[tuple(_exact(each) for each in get_args(hint))]  # noqa: UP007 (`|` needs two operands)
    return hint


def _place(value: Any) -> str | Path:
    if not isinstance(value, str | Path):
        raise ValueError("must be text or a Path")
    if not str(value):
        raise ValueError("is empty; give it a value, or leave it out")
    place: str | Path = expand_user(value) if str(value).startswith("~") else value
    try:
        Path(place).stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as error:  # such as a name that is too long, or a NUL in it
        raise ValueError(f"can't be a path: {getattr(error, 'strerror', None) or error}") from error
    return place


def _listed(value: Any) -> list[Any]:
    if isinstance(value, str | Path):
        raise ValueError(f"must be a list, such as [{shortened(repr(value))}]")
    if not isinstance(value, Iterable) or isinstance(value, bytes | Mapping):
        raise ValueError("must be a list")
    found = list(islice(value, MOST_ELEMENTS + 1))
    if len(found) > MOST_ELEMENTS:
        raise ValueError(f"has too many elements: at most {MOST_ELEMENTS:,} are possible")
    return found


def _texts(value: Any) -> list[str]:
    found = _listed(value)
    for number, text in enumerate(found):
        if not isinstance(text, str):
            raise ValueError(f"must be a list of texts; {_element(number, text)}")
    return found


def _places(value: Any) -> list[str | Path]:
    found = []
    for number, place in enumerate(_listed(value)):
        try:
            found.append(_place(place))
        except ValueError as error:
            raise ValueError(f"must be a list of paths; {_element(number, place)}: {error}") from error
    return found


def _place_or_places(value: Any) -> str | Path | list[str | Path]:
    several = isinstance(value, Iterable) and not isinstance(value, str | Path | bytes | Mapping)
    return _places(value) if several else _place(value)


def _element(number: int, value: Any) -> str:
    return f"element {number} is {_shown(value)}"


def _seeds(value: Any) -> int | list[int]:
    if type(value) is int:
        return value
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError("must be a number of seeds, or a list of them")
    found = [plain(seed) for seed in _listed(value)]
    for number, seed in enumerate(found):
        if type(seed) is not int:
            raise ValueError(f"must be a list of whole numbers; {_element(number, seed)}")
    return found


Place = Annotated[str | Path, PlainValidator(_place)]
"""A file or folder, which need not exist, or a name that is looked up like one."""
Texts = Annotated[Iterable[str], PlainValidator(_texts)]
PlaceOrPlaces = Annotated[str | Path | Iterable[str | Path], PlainValidator(_place_or_places)]
"""One path, or a list of them."""
Places = Annotated[Iterable[str | Path], PlainValidator(_places)]
Seeds = Annotated[int | Iterable[int], PlainValidator(_seeds)]
"""The number of seeds, or the seeds."""


def _shown(value: Any) -> str:
    try:
        return shortened(repr(value))
    except Exception:
        return f"a {type(value).__name__}"
