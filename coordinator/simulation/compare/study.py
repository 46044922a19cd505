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

    [tune]                                    # the same search for every variant, before the seeds are run
    seed = 101
    validation = 0.2                          # of the training rows, held out: the test rows are not looked at
    grid = { lr = [0.05, 0.1, 0.2] }          # flags and what they are set to, every combination

A run is named by its label, its seed and a digest of its flags: a comparison that was stopped goes on where it was, and
a changed flag runs anew. A study that tunes shows every variant as it stands and, where the search found other flags,
a second time with them.
"""

from __future__ import annotations

import hashlib
import itertools
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


class Tune(Model):
    """A search over flags, with the same budget for every variant."""

    grid: dict[str, tuple[Any, ...]] = Field(min_length=1)  # flag → values
    validation: float = Field(default=0.2, gt=0, lt=1)  # share of the training rows on which settings are judged
    seed: int = Field(default=101, ge=0)

    @property
    def settings(self) -> tuple[Flags, ...]:
        """Every combination, in the order of the grid."""
        return tuple(dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values()))


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
    balance: tuple[str, ...] = ()  # labels of the variants that the plot of rates and imbalance shows; (): all
    published: dict[str, dict[str, float]] = Field(default_factory=dict)  # label → {"acc": percent, modality: percent}
    notes: tuple[str, ...] = ()
    tune: Tune | None = None
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
        whole = json.dumps([self.label, self.seed, self.flags], sort_keys=True, default=str)
        digest = hashlib.blake2b(whole.encode(), digest_size=4).hexdigest()
        return f"{re.sub(r'[^A-Za-z0-9]+', '_', self.label).strip('_')}-{self.seed}-{digest}"

    @property
    def arguments(self) -> list[str]:
        """The flags as a command line."""
        words: list[str] = []
        for key, value in self.flags.items():
            flag = "--" + key.replace("_", "-")
            if isinstance(value, Mapping):
                words += [word for name, v in value.items() for word in (flag, f"{name}={text(v)}")]
            elif value is True:
                words.append(flag)
            elif value is not False:
                words += [flag, text(value)]
        return [*words, "--seed", str(self.seed)]


def text(value: Any) -> str:
    """Returns a flag's value as the command line has it."""
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
    for what, named in (("reference", (study.base,)), ("quick_only", study.quick_only), ("balance", study.balance)):
        unknown = [label for label in named if label not in labels]
        if unknown:
            raise ConfigError(f"{path}: {what} {unknown[0]!r} is no variant; there are {', '.join(labels)}")
    empty = next((flag for flag, values in (study.tune.grid if study.tune else {}).items() if not values), None)
    if empty is not None:
        raise ConfigError(f"{path}: [tune] grid: {empty} has no value to try")
    return study


def runs(study: Study, *, form: Form = "", common: Flags | None = None) -> tuple[Run, ...]:
    """Returns all runs, seed by seed, so that a comparison that is stopped early has whole columns.

    Args:
        study: what is compared.
        form: "quick", the small form; "full", the paper's own protocol; "": as the study stands.
        common: flags of the command line; they win over the file's.
    """
    return tuple(
        Run(variant.label, seed, flags_of(study, variant, form, common))
        for seed in (study.quick_seeds if form == "quick" else study.seeds)
        for variant in chosen(study, form)
    )


def chosen(study: Study, form: Form) -> list[Variant]:
    """Returns the variants that a form runs."""
    small = form == "quick" and study.quick_only
    return [v for v in study.variants if not small or v.label in study.quick_only]


def flags_of(study: Study, variant: Variant, form: Form, common: Flags | None) -> dict[str, Any]:
    """Returns the flags of a variant's runs: the study's, its own, the form's, the command line's; the last win."""
    flags = {**study.simulate, **variant.simulate}
    changes: dict[str, tuple[Flags, ...]] = {
        "quick": (study.quick, variant.quick), "full": (study.full, variant.full),
    }  # fmt: skip
    for change in changes.get(form, ()):
        flags |= change
    return {**flags, **(common or {})}


__all__ = [
    "Flags",
    "Form",
    "Run",
    "Study",
    "Tune",
    "Variant",
    "chosen",
    "flags_of",
    "read",
    "runs",
    "text",
]
