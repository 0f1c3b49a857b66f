"""The base of every record and setting: frozen, unknown keys refused, mistakes told in one line.

pydantic validates; this turns its several-line report into one `ConfigError` that names the first
wrong field, its value and what was expected.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Self, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tl.errors import ConfigError, nearest


class Strict(BaseModel):
    """A frozen model that accepts known keys and values of the right type only: no `true` or `"3"` for a number.

    Raises `ConfigError` where pydantic would raise `ValidationError`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @model_validator(mode="wrap")
    @classmethod
    def _one_line(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            raise ConfigError(_first_mistake(cls, error)) from error

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, _SUSPECTS) and _is_lookalike(value, cls.model_fields[info.field_name or ""].annotation):
            raise ValueError("must be a number")
        return value

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated anew."""
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})


def _is_lookalike(value: Any, annotation: Any) -> bool:
    """Whether `value`, or an element of it, is `true` or text where `annotation` asks for a number."""
    wanted, inner = _asked(annotation)
    if isinstance(value, bool | str):
        return bool(wanted & {int, float}) and type(value) not in wanted
    if isinstance(value, list | tuple):
        return any(_is_lookalike(element, inner) for element in value if isinstance(element, _SUSPECTS))
    return False


_SUSPECTS = (bool, str, list, tuple)
"""Anything else is left to pydantic; a record has thousands of plain numbers."""


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
        close = nearest(str(first["loc"][-1]), model.model_fields)
        known = f"nearest valid key: {close[0]!r}" if close else f"valid keys: {', '.join(model.model_fields)}"
        return f"{where}: unknown key; {known}"
    if first["type"] == "missing":
        return f"{where}: missing"
    message = first["msg"].removeprefix("Value error, ")
    expected = message[0].lower() + message[1:]
    return f"{where}={first['input']!r}: {expected}"
