"""The base of every record and setting: frozen, unknown keys refused, mistakes told in one line.

pydantic validates; this turns its several-line report into one `ConfigError` that names the first
wrong field, its value and what was expected.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from tl.errors import ConfigError, nearest

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)  # it has no public name


class _OneLine(ModelMetaclass):
    """What a call of the class does. Not a validator of the model: those run for every part of every record."""

    def __call__(self, /, **given: Any) -> Any:
        model: Any = self
        for name, annotation in _numbers(model).items():
            value = given.get(name)
            if isinstance(value, _SUSPECTS) and _is_lookalike(value, annotation):
                raise ConfigError(f"{name}={value!r}: must be a number")
        try:
            return super().__call__(**given)
        except ValidationError as error:
            raise ConfigError(_first_mistake(model, error)) from error


class Strict(BaseModel, metaclass=_OneLine):
    """A frozen model that accepts known keys and values of the right type only: no `true` or `"3"` for a number.

    Raises `ConfigError` where pydantic would raise `ValidationError`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Of JSON, where every value must have the right type as it stands."""
        try:
            return cls.model_validate_json(text, strict=True)
        except ValidationError as error:
            raise ConfigError(_first_mistake(cls, error)) from error

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated anew."""
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})


@cache
def _numbers(model: type[BaseModel]) -> dict[str, Any]:
    """Fields that hold numbers, with their annotations."""
    found = {name: field.annotation for name, field in model.model_fields.items()}
    return {name: each for name, each in found.items() if _asks_for_numbers(each)}


def _asks_for_numbers(annotation: Any) -> bool:
    wanted, inner = _asked(annotation)
    return bool(wanted & {int, float}) or (inner is not None and _asks_for_numbers(inner))


def _is_lookalike(value: Any, annotation: Any) -> bool:
    """Whether `value`, or an element of it, is `true` or text where `annotation` asks for a number."""
    wanted, inner = _asked(annotation)
    if isinstance(value, bool | str):
        return bool(wanted & {int, float}) and type(value) not in wanted
    if isinstance(value, list | tuple):
        return any(_is_lookalike(element, inner) for element in value if isinstance(element, _SUSPECTS))
    return False


_SUSPECTS = (bool, str, list, tuple)
"""Anything else is left to pydantic."""


@cache
def _asked(annotation: Any) -> tuple[frozenset[Any], Any]:
    """The types that an annotation allows, and the annotation of what its lists hold."""
    several = get_origin(annotation) in (list, tuple)
    options = [annotation] if several else get_args(annotation) or [annotation]
    inner = next((get_args(option)[0] for option in options if get_origin(option) in (list, tuple)), None)
    return frozenset(options), inner


def _first_mistake(model: type[BaseModel], error: ValidationError) -> str:
    # A misspelt key shows up twice, as unknown and as missing: the former says what to mend.
    mistakes = error.errors(include_url=False)
    first = next((mistake for mistake in mistakes if mistake["type"] == "extra_forbidden"), mistakes[0])
    # For a field of several types pydantic appends the one that it tried: no part of the name that was given.
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
    return f"{where}={first['input']!r}: {expected}"


def _part(model: type[BaseModel], path: tuple[int | str, ...]) -> type[BaseModel]:
    """The model at some place within a model's own fields; as far as it can be told."""
    for name in path:
        field = model.model_fields.get(str(name))
        model = next(iter(_models(field.annotation)), model) if field else model
    return model


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for each in get_args(annotation) for model in _models(each)]
