"""What is compared: a TOML file, or a few flags, as a list of runs of `edge-coordinator simulate`.

    title = "UTD-MHAD, acc against gyro"
    reference = "Concat"                      # whose time to accuracy is 1.0; default: the first
    seeds = [1, 2, 3]
    simulate = { dataset = "utd_mhad", devices = 16, updates = 2000 }    # flags of simulate, for every run
    quick = { updates = 60, devices = 4 }     # replace them with --quick
    full = { updates = 20000 }                # replace them with --full: the paper's own protocol
    notes = ["what was reduced, and why"]

    [[variants]]
    label = "Concat"
    simulate = { method = "fed_concat_async" }

    [published.Concat]                        # numbers of the paper, in percent, shown beside ours
    acc = 93.78

A run is named by its label, its seed and a digest of its flags: a comparison that was stopped goes on where it was, and
a changed flag runs anew.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from edge_sdk.core.config import load_toml
from edge_sdk.core.errors import ConfigError
from edge_sdk.core.spec import Model

Flags = Mapping[str, Any]
Form = Literal["", "quick", "full"]


class Variant(Model):
    """One row of the table."""

    label: str = Field(min_length=1)
    simulate: dict[str, Any] = Field(default_factory=dict)
    quick: dict[str, Any] = Field(default_factory=dict)
    full: dict[str, Any] = Field(default_factory=dict)


class Study(Model):
    """A comparison."""

    title: str
    variants: tuple[Variant, ...] = Field(min_length=1)
    reference: str = ""  # label; "": the first
    seeds: tuple[int, ...] = Field(default=(1, 2, 3), min_length=1)
    simulate: dict[str, Any] = Field(default_factory=dict)
    quick: dict[str, Any] = Field(default_factory=dict)
    quick_seeds: tuple[int, ...] = Field(default=(1,), min_length=1)
    quick_only: tuple[str, ...] = ()  # labels of the variants that the small form runs; (): all
    full: dict[str, Any] = Field(default_factory=dict)
    published: dict[str, dict[str, float]] = Field(default_factory=dict)  # label → {"acc": percent, modality: percent}
    notes: tuple[str, ...] = ()
    share: float = Field(default=0.95, gt=0, le=1)  # time to this share of the reference's accuracy

    @property
    def base(self) -> str:
        """Label of the reference."""
        return self.reference or self.variants[0].label


@dataclass(frozen=True, slots=True)
class Run:
    """One run of `edge-coordinator simulate`."""

    label: str
    seed: int
    flags: Flags

    @property
    def name(self) -> str:
        """Its file name without suffix."""
        text = json.dumps([self.label, self.seed, self.flags], sort_keys=True, default=str)
        digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
        return f"{re.sub(r'[^A-Za-z0-9]+', '_', self.label).strip('_')}-{self.seed}-{digest}"

    @property
    def arguments(self) -> list[str]:
        """The flags as a command line."""
        words: list[str] = []
        for key, value in self.flags.items():
            flag = "--" + key.replace("_", "-")
            if isinstance(value, Mapping):
                words += [word for name, v in value.items() for word in (flag, f"{name}={_text(v)}")]
            elif value is True:
                words.append(flag)
            elif value is not False:
                words += [flag, _text(value)]
        return [*words, "--seed", str(self.seed)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def read(path: Path) -> Study:
    """Returns the study that a file describes.

    Raises:
        ConfigError: names file, section and key of what is wrong.
    """
    study = load_toml(path, Study)
    labels = [v.label for v in study.variants]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise ConfigError(f"{path}: two variants are called {twice!r}; give each a label of its own")
    for what, named in (("reference", (study.base,)), ("quick_only", study.quick_only)):
        unknown = [label for label in named if label not in labels]
        if unknown:
            raise ConfigError(f"{path}: {what} {unknown[0]!r} is no variant; there are {', '.join(labels)}")
    return study


def runs(study: Study, *, form: Form = "", common: Flags | None = None) -> tuple[Run, ...]:
    """Returns all runs, seed by seed, so that a comparison that is stopped early has whole columns.

    Args:
        study: what is compared.
        form: "quick", the small form; "full", the paper's own protocol; "": as the study stands.
        common: flags of the command line; they win over the file's.
    """
    found = []
    small = form == "quick" and study.quick_only
    chosen = [v for v in study.variants if not small or v.label in study.quick_only]
    for seed in study.quick_seeds if form == "quick" else study.seeds:
        for variant in chosen:
            flags = {**study.simulate, **variant.simulate}
            changes: dict[str, tuple[Flags, ...]] = {
                "quick": (study.quick, variant.quick), "full": (study.full, variant.full),
            }  # fmt: skip
            for change in changes.get(form, ()):
                flags |= change
            found.append(Run(variant.label, seed, {**flags, **(common or {})}))
    return tuple(found)


__all__ = ["Flags", "Form", "Run", "Study", "Variant", "read", "runs"]
