"""NAME:FORM,key=value: what is read, and what every mistake is called."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import Field

from edge_sdk.core.errors import DataError
from edge_sdk.datasets.variants import VariantOptions, read


class Options(VariantOptions):
    form: Literal["pair", "triple"] = "pair"
    n: int | None = Field(default=None, ge=1)
    share: float = Field(default=0.5, gt=0)
    whole: bool = False


class Plain(VariantOptions):
    n: int = 3


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", Options()),
        ("triple", Options(form="triple")),
        ("n=6000,share=0.02", Options(n=6000, share=0.02)),
        ("triple,whole=true,n=5", Options(form="triple", whole=True, n=5)),
    ],
)
def test_reads_form_and_values(text: str, options: Options) -> None:
    assert read("digits", text, Options) == options


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("quad", Options, "digits:quad:form: Input should be 'pair' or 'triple', found 'quad'"),
        ("quad", Plain, "digits has no variant 'quad'; its options are n"),
        ("size=3", Options, "digits has no option 'size'; its options are form, n, share, whole"),
        ("n=3,pair", Options, "expected KEY=VALUE, found 'pair'"),
        ("n=", Options, "expected KEY=VALUE, found 'n='"),
        ("=3", Options, "expected KEY=VALUE, found '=3'"),
        ("n=3,n=4", Options, "n is given twice"),
        ("n=many", Options, "digits:n=many:n: .*found 'many'"),
        ("n=0", Options, "n: Input should be greater than or equal to 1, found '0'"),
        ("share=-1", Options, "share: Input should be greater than 0"),
        ("whole=perhaps", Options, "whole: "),
    ],
)
def test_every_mistake_is_named(text: str, kind: type[VariantOptions], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read("digits", text, kind)
