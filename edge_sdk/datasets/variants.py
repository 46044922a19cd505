"""What a user writes after the colon of a data set's name: `NAME:FORM,key=value,key=value`.

Every loader declares its own record; the word without `=` is its field `form`.

    class Options(VariantOptions):
        form: Literal["pair", "triple"] = "pair"
        n: int | None = Field(default=None, ge=1)

    read("synthetic", "triple,n=500", Options)  →  Options(form="triple", n=500)
"""

from __future__ import annotations

from typing import TypeVar

from edge_sdk.core.config import parse
from edge_sdk.core.errors import ConfigError, DataError
from edge_sdk.core.spec import Model

C = TypeVar("C", bound="VariantOptions")


class VariantOptions(Model):
    """Base of what a loader lets a user choose; a set without forms has no field `form`."""


def read(dataset: str, variant: str, kind: type[C]) -> C:
    """Returns the options that a variant's text gives.

    Args:
        dataset: the set's name, for errors.
        variant: FORM,key=value,key=value; the form first, everything optional.
        kind: the record of the loader.

    Raises:
        DataError: no such form or key, a key twice, or a value that does not fit; names what there is.
    """
    values: dict[str, str] = {}
    for number, part in enumerate(filter(None, variant.split(","))):
        key, equals, value = part.partition("=")
        if not equals and number == 0:
            key, value = "form", key
        elif not (equals and key and value):
            raise DataError(f"{dataset}:{variant}: expected KEY=VALUE, found {part!r}")
        if key in values:
            raise DataError(f"{dataset}:{variant}: {key} is given twice")
        values[key] = value
    known = ", ".join(kind.model_fields) or "none"
    if unknown := [key for key in values if key not in kind.model_fields]:
        what = f"variant {values['form']!r}" if unknown[0] == "form" else f"option {unknown[0]!r}"
        raise DataError(f"{dataset}:{variant}: {dataset} has no {what}; its options are {known}")
    try:
        return parse(values, kind, f"{dataset}:{variant}")
    except ConfigError as error:
        raise DataError(str(error)) from error


__all__ = ["VariantOptions", "read"]
