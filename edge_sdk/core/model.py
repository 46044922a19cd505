"""The bases of all configuration records and of the spec's parts."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """Base of every configuration record: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class SpecModel(Model):
    """Base of the spec's parts: as a configuration record, and no number that JSON does not know."""

    model_config = ConfigDict(allow_inf_nan=False)


__all__ = ["Model", "SpecModel"]
