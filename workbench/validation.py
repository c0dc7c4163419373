"""What pydantic finds wrong with an input, as one line for the person who wrote it: where, what was given, what is allowed.

Names of fields are those that the input has: labels that pydantic adds for the branches of a union are left out, what it
says of several branches of one value is one statement, and a name that is nearly right is answered with the right one.
"""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from workbench.limits import WORD
from workbench.names import near, unknown

_SHOWN = 60
"""Characters of a given value that are repeated."""
_RANGE = ("less_than", "less_than_equal", "greater_than", "greater_than_equal")


def no_truth(value: object) -> object:
    """What is no truth value, which Python counts as a number: for keys, which JSON has as texts."""
    if isinstance(value, bool):
        raise ValueError(f"must be a number, not {str(value).lower()}")
    return value


def number_only(value: object) -> object:
    """A number, and neither a text nor a truth value that pydantic takes for one."""
    if isinstance(value, str):
        raise ValueError(f"must be a number, not the text {ascii(value)[:_SHOWN]}")
    return no_truth(value)


def whole_only(value: object) -> object:
    """A whole number, also of NumPy; not 1.0, which stands for something measured."""
    if isinstance(value, float):
        raise ValueError(f"must be a whole number, not {value!r}")
    return number_only(value)


def truth_only(value: object) -> object:
    """True or false, also of NumPy, and neither 1 nor a word that pydantic takes for it."""
    if not isinstance(value, bool) and type(value).__name__ not in ("bool", "bool_"):
        raise ValueError(f"must be true or false, not {ascii(value)[:_SHOWN]}")
    return value


def each_once(values: tuple[str, ...]) -> tuple[str, ...]:
    """Names of which none is there twice."""
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{value} is there twice")
    return values


class _Place(NamedTuple):
    """Where an error is: the keys of the input that lead there, and the model that has (or lacks) the last of them."""

    keys: tuple[str, ...]
    owner: type[BaseModel] | None
    kinds: list[Any]


def _branches(kind: Any) -> list[Any]:
    """The types that a value of ``kind`` may have, without what only constrains them."""
    if isinstance(kind, str) or kind is None:
        return []
    if get_origin(kind) is Annotated:
        return _branches(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return [one for part in get_args(kind) for one in _branches(part)]
    return [kind]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _tagged(models: list[type[BaseModel]], tag: str) -> type[BaseModel] | None:
    """The model of a union that a label means: by the value of a field that tells them apart, or by its name."""
    for model in models:
        tags = [get_args(field.annotation) for field in model.model_fields.values()
                if get_origin(field.annotation) is Literal]  # fmt: skip
        if model.__name__ == tag or (tag,) in tags:
            return model
    return None


def _place(model: type[BaseModel], location: tuple[int | str, ...]) -> _Place:
    """Follow pydantic's location through the types, and keep what is a key of the input."""
    keys: list[str] = []
    owner: type[BaseModel] | None = None
    kinds: list[Any] = [model]
    for part in location:
        models = [kind for kind in kinds if _is_model(kind)]
        mappings = [kind for kind in kinds if get_origin(kind) is dict]
        sequences = [kind for kind in kinds if get_origin(kind) in (tuple, list)]
        if part == "[key]":
            continue
        if len(models) > 1 and (chosen := _tagged(models, str(part))) is not None:
            keys.append(str(part))  # the operation's name, which says more than its number
            kinds = [chosen]
        elif len(models) == 1 and isinstance(part, str):
            owner = models[0]
            keys.append(part)
            field = owner.model_fields.get(part)
            kinds = _branches(field.annotation) if field is not None else []
        elif mappings:
            owner = None
            keys.append(str(part))
            kinds = _branches(get_args(mappings[0])[1])
        elif sequences and isinstance(part, int):
            owner = None
            keys.append(str(part))
            inside = [one for one in get_args(sequences[0]) if one is not Ellipsis]
            kinds = _branches(inside[part if part < len(inside) else 0]) if inside else []
        elif not kinds:  # below what is typed
            keys.append(str(part))
    return _Place(tuple(ascii(key)[1:-1][:_SHOWN] for key in keys), owner, kinds)


def _allowed(kinds: list[Any]) -> list[str]:
    """Texts that a value may be, where it is one of a few."""
    return [
        value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind) if isinstance(value, str)
    ]


def _tags(kinds: list[Any], field: str) -> list[str]:
    """The values of the field by which the models of a union are told apart."""
    return [tag for kind in kinds if _is_model(kind) for tag in get_args(kind.model_fields[field].annotation)]


def _given(value: object, message: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return ""
    if isinstance(value, int) and abs(value) >= WORD:
        return f" (given: a number of {value.bit_length()} bits)"
    return f" (given: {repr(value)[:_SHOWN]})" if repr(value)[:30] not in message else ""


def _statement(detail: Any, place: _Place, others: list[Any]) -> str:
    """What one error says, with what is allowed."""
    kind, context = detail["type"], detail.get("ctx") or {}
    if kind == "extra_forbidden" and place.owner is not None:
        fields = list(place.owner.model_fields)
        return f"there is no such field; {near(place.keys[-1], fields)}allowed are {', '.join(fields)}"
    if kind == "union_tag_invalid":
        return unknown(str(context["tag"]), [tag.strip("' ") for tag in context["expected_tags"].split(",")])
    if kind == "union_tag_not_found":
        return f"Field required; there are {', '.join(_tags(place.kinds, context['discriminator'].strip(chr(39))))}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "must be a mapping of fields" + _given(detail.get("input"), "")
    message = " ".join(detail["msg"].removeprefix("Value error, ").split())
    given = detail.get("input")
    if kind == "literal_error":
        if others:
            message += " or an integer" + " of 64 bits" * any(other["type"] in _RANGE for other in others)
        if isinstance(given, str) and (hint := near(given, _allowed(place.kinds))):
            message += f"; {hint.strip()}"
    return message + _given(given, message)


def first_line(error: ValidationError, model: type[BaseModel], field: str = "") -> str:
    """One line for the first thing that is wrong: where (below ``field``), what was given, what is allowed."""
    details: list[Any] = list(error.errors(include_url=False))
    placed: dict[tuple[str, ...], list[tuple[Any, _Place]]] = {}
    for detail in details:
        place = _place(model, detail["loc"])
        placed.setdefault(place.keys, []).append((detail, place))
    keys, found = next(iter(placed.items()))
    detail, place = next((one for one in found if one[0]["type"] == "literal_error"), found[0])
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        keys = (*keys, str((detail.get("ctx") or {}).get("discriminator", "")).strip("'"))
    said = _statement(detail, place, [other for other, _ in found if other is not detail])
    where = ".".join([field] * bool(field) + [key for key in keys if key])
    more = f" (and {len(placed) - 1} more)" if len(placed) > 1 else ""
    return f"{where}: {said}{more}" if where else f"{said}{more}"
