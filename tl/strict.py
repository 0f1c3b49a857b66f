"""The base class of all records and settings. It is frozen, rejects unknown keys and reports mistakes in one line.

pydantic validates, and its error report has several lines. This module turns it into a `ConfigError` that names the
first wrong field, its value and what was expected.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from tl.errors import ConfigError, nearest
from tl.text import shortened

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)  # the class has no public name

SHORTEST, LONGEST = 1e-12, 1e9
"""Bounds of a duration in seconds. A processor's cycle takes 1e-10 s, and no computer runs for 1e9 s, 31 years."""


def _measurable(seconds: float) -> float:
    if 0 < seconds < SHORTEST:
        raise ValueError(f"should be 0 or at least {SHORTEST:g}: no clock measures less")
    return seconds


Seconds = Annotated[float, Field(ge=0, le=LONGEST), AfterValidator(_measurable)]
"""A measured duration. It is 0 where the clock didn't advance."""
PassSeconds = Annotated[float, Field(ge=1e-6, le=LONGEST)]
"""The duration of a pass over images, which is never 0: a few calls of Python alone take a microsecond."""
Amount = Annotated[float, Field(ge=0, le=1e15)]
"""A measured quantity, such as a load average."""
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
"""A number of things, such as bytes or images. Larger ones have no place in a column of a data frame."""
Positive = Annotated[int, Field(ge=1, lt=2**63)]
"""A `Count` that is never 0. (Of two lower bounds for one field, pydantic would take that of the annotation.)"""


class _OneLine(ModelMetaclass):
    """Checks calls of the class. A validator would be too slow, since it runs for every part of every record."""

    def __call__(self, /, *unnamed: Any, **given: Any) -> Any:
        model: Any = self
        if unnamed:
            example = f"{next(iter(model.model_fields))}={shortened(repr(unnamed[0]))}"
            raise ConfigError(f"{model.__name__}: give each value by its name, such as {example}")
        for name, annotation in _numbers(model).items():
            value = given.get(name)
            if isinstance(value, _CHECKED) and _is_lookalike(value, annotation):
                raise ConfigError(f"{name}={shortened(repr(value))}: must be a number")
        try:
            return super().__call__(**given)
        except ValidationError as error:
            raise ConfigError(_first_mistake(model, error)) from error


class Strict(BaseModel, metaclass=_OneLine):
    """A frozen model that accepts only known keys and values of the right type, not `true` or `"3"` for a number.

    Numbers are finite: what is unknown is None.

    Raises `ConfigError` where pydantic would raise `ValidationError`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse JSON, in which every value must have exactly the right type."""
        try:
            return cls.model_validate_json(text, strict=True)
        except ValidationError as error:
            raise ConfigError(_first_mistake(cls, error)) from error

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed; it is validated again."""
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})


@cache
def _numbers(model: type[BaseModel]) -> dict[str, Any]:
    """Return the fields that hold numbers, with their annotations."""
    found = {name: field.annotation for name, field in model.model_fields.items()}
    return {name: each for name, each in found.items() if _is_numeric(each)}


def _is_numeric(annotation: Any) -> bool:
    wanted, inner = _allowed_types(annotation)
    return bool(wanted & {int, float}) or (inner is not None and _is_numeric(inner))


def _is_lookalike(value: Any, annotation: Any) -> bool:
    """Return True if `value`, or an element of it, is a boolean or text but `annotation` requires a number."""
    wanted, inner = _allowed_types(annotation)
    if isinstance(value, bool | str):
        return bool(wanted & {int, float}) and type(value) not in wanted and value not in wanted
    if isinstance(value, list | tuple):
        return any(_is_lookalike(element, inner) for element in value if isinstance(element, _CHECKED))
    return False


_CHECKED = (bool, str, list, tuple)
"""Types of values to check; pydantic checks all others."""


@cache
def _allowed_types(annotation: Any) -> tuple[frozenset[Any], Any]:
    """Return the types and single words that an annotation allows, and the annotation of its lists' elements."""
    several = get_origin(annotation) in (list, tuple)
    options = [annotation] if several else get_args(_bare(annotation)) or [annotation]
    options = [_bare(option) for option in options]
    options += [word for option in options if get_origin(option) is Literal for word in get_args(option)]
    inner = next((get_args(option)[0] for option in options if get_origin(option) in (list, tuple)), None)
    return frozenset(options), inner


def _bare(annotation: Any) -> Any:
    """Return the type itself, without its range."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _first_mistake(model: type[BaseModel], error: ValidationError) -> str:
    # A misspelt key is reported twice, as unknown and as missing; the former says what to correct.
    mistakes = error.errors(include_url=False)
    first = next((mistake for mistake in mistakes if mistake["type"] == "extra_forbidden"), mistakes[0])
    # For a field of several types pydantic appends the type that it tried, which is not part of the name.
    parts = [part for part in first["loc"] if isinstance(part, int) or str(part).replace("_", "a").isalnum()]
    named = parts[:1] + [part for part in parts[1:] if part not in ("int", "str", "float", "bool")]
    where = ".".join(map(str, named)) or model.__name__
    if first["type"] == "extra_forbidden":
        fields = _part(model, first["loc"][:-1]).model_fields
        close = nearest(str(first["loc"][-1]), fields)
        known = f"nearest valid key: {close[0]!r}" if close else f"valid keys: {', '.join(fields)}"
        return f"{where}: unknown key; {known}"
    if first["type"] == "missing":
        return f"{where}: missing"
    message = first["msg"].removeprefix("Value error, ")
    expected = message[0].lower() + message[1:]
    if first["type"] == "value_error" and isinstance(first["input"], dict):  # values that contradict each other
        return f"{where}: {expected}"
    return f"{where}={shortened(repr(first['input']))}: {expected}"


def _part(model: type[BaseModel], path: tuple[int | str, ...]) -> type[BaseModel]:
    """Return the model at a path of fields within a model, as far as the path leads to models."""
    for name in path:
        field = model.model_fields.get(str(name))
        model = next(iter(_models(field.annotation)), model) if field else model
    return model


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for each in get_args(annotation) for model in _models(each)]
