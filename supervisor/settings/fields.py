"""A struct's fields with what their `Meta` says, merged: the view that checks, printing and documentation share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, get_args, get_origin

import msgspec


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A type without its annotations, and these merged (an outer one wins).

    Attributes:
        bare: The type itself.
        ge: Least value, or None.
        le: Greatest value, or None.
        pattern: Regular expression that a string matches, or None.
        min_length: Least length of a string, list or table, or None.
        max_length: Most length of a string, list or table, or None.
        description: The explanation.
        extra: Unit, form and the like, by name.
    """

    bare: Any
    ge: float | None = None
    le: float | None = None
    pattern: str | None = None
    min_length: int | None = None
    max_length: int | None = None
    description: str = ""
    extra: Mapping[str, Any] = {}

    @property
    def unit(self) -> str:
        """Unit of the number, or empty."""
        return str(self.extra.get("unit", ""))

    @property
    def item(self) -> Shape:
        """The shape of a list's items or of a table's values."""
        arguments = get_args(self.bare)
        return shape(arguments[1] if get_origin(self.bare) is dict else arguments[0])

    @property
    def table(self) -> type[msgspec.Struct] | None:
        """The struct, where this is a table with known keys."""
        return self.bare if isinstance(self.bare, type) and issubclass(self.bare, msgspec.Struct) else None

    @property
    def tables(self) -> type[msgspec.Struct] | None:
        """The struct of the values, where this is a table of such tables."""
        return self.item.table if get_origin(self.bare) is dict else None


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One field of a settings struct; `default` is a value of its own for each caller."""

    name: str
    shape: Shape
    default: Any


def shape(annotation: Any) -> Shape:
    """Return the shape of an annotation such as ``Annotated[int, Meta(ge=1)]``."""
    if get_origin(annotation) is not Annotated:
        return Shape(bare=annotation)
    bare, *metas = get_args(annotation)
    merged: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for meta in metas:
        if not isinstance(meta, msgspec.Meta):
            continue
        for name in ("ge", "le", "pattern", "min_length", "max_length", "description"):
            value = getattr(meta, name)
            if value is not None:
                merged[name] = value
        extra.update(meta.extra or {})
    return Shape(bare=bare, extra=extra, **merged)


def settings_of(struct: type[msgspec.Struct]) -> dict[str, Setting]:
    """Return the settings of a struct by name, in their order; internal fields are left out."""
    return {
        name: Setting(
            name=name,
            shape=form,
            default=info.default_factory() if info.default is msgspec.NODEFAULT else info.default,
        )
        for name, (form, info) in _fields(struct).items()
    }


@cache
def _fields(struct: type[msgspec.Struct]) -> dict[str, tuple[Shape, msgspec.structs.FieldInfo]]:
    found = {info.name: (shape(info.type), info) for info in msgspec.structs.fields(struct)}
    return {name: pair for name, pair in found.items() if not pair[0].extra.get("internal")}
