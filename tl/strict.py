"""The base of every record and setting: frozen, unknown keys refused, mistakes told in one line.

pydantic validates; this turns its several-line report into one `ConfigError` that names the first
wrong field, its value and what was expected.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator

from tl.errors import ConfigError, nearest


class Strict(BaseModel):
    """A frozen model that accepts known keys only.

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

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated anew."""
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})


def _first_mistake(model: type[BaseModel], error: ValidationError) -> str:
    # A misspelt key shows up twice, as unknown and as missing: the former says what to mend.
    mistakes = error.errors(include_url=False)
    first = next((mistake for mistake in mistakes if mistake["type"] == "extra_forbidden"), mistakes[0])
    where = ".".join(str(part) for part in first["loc"]) or model.__name__
    if first["type"] == "extra_forbidden":
        close = nearest(str(first["loc"][-1]), model.model_fields)
        known = f"nearest valid key: {close[0]!r}" if close else f"valid keys: {', '.join(model.model_fields)}"
        return f"{where}: unknown key; {known}"
    if first["type"] == "missing":
        return f"{where}: missing"
    expected = first["msg"][0].lower() + first["msg"][1:]
    return f"{where}={first['input']!r}: {expected}"
