"""The search of a study over its flags: every variant at every setting, judged on training rows that are held out.

Every variant gets the same budget: the whole grid, one seed. What is judged is the median accuracy of the last
versions, as in the tables; of equal settings the first of the grid is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coordinator.simulation.compare.runner import Result
from coordinator.simulation.compare.study import Flags, Form, Run, Study, Variant, chosen, flags_of, text
from edge_sdk.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Trial:
    """One variant at one setting."""

    label: str
    setting: Flags
    run: Run


@dataclass(frozen=True, slots=True)
class Found:
    """What the search says of one variant."""

    setting: Flags  # the best
    tried: tuple[tuple[Flags, float], ...]  # setting, median accuracy on the held-out rows in [0, 1]; NaN: diverged

    def words(self, label: str) -> str:
        """Returns all that was tried as one line."""
        trials = "; ".join(f"{_words(setting)}: {100 * acc:.1f} %" for setting, acc in self.tried)
        return f"{label}, tuned on held-out training rows: {trials}; taken: {_words(self.setting)}"


def trials(study: Study, *, form: Form = "", common: Flags | None = None) -> tuple[Trial, ...]:
    """Returns what the search runs; nothing for a study that does not search.

    Raises:
        ConfigError: the command line sets a flag that is searched over.
    """
    tune = study.tune
    if tune is None:
        return ()
    fixed = next((flag for flag in tune.grid if flag in (common or {})), None)
    if fixed is not None:
        flag = "--" + fixed.replace("_", "-")
        raise ConfigError(f"{flag} is given, but the study searches over {fixed}; leave the flag out, or [tune]")
    made = []
    for variant in chosen(study, form):
        for setting in tune.settings:
            flags = {**flags_of(study, variant, form, common), **setting, "validation": tune.validation}
            made.append(Trial(variant.label, setting, Run(variant.label, tune.seed, flags)))
    return tuple(made)


def best(done: Sequence[tuple[Trial, Result]]) -> dict[str, Found]:
    """Returns label → what the search found."""
    found: dict[str, Found] = {}
    for label in dict.fromkeys(trial.label for trial, _ in done):
        tried = tuple((t.setting, float(result["acc_median"])) for t, result in done if t.label == label)
        place = int(np.argmax([-np.inf if np.isnan(acc) else acc for _, acc in tried]))
        found[label] = Found(tried[place][0], tried)
    return found


def with_best(study: Study, found: Mapping[str, Found], *, form: Form = "", common: Flags | None = None) -> Study:
    """Returns the study with a second row for every variant whose best setting is another than it has.

    Args:
        study: what is compared.
        found: what the search says.
        form: as in `study.runs`.
        common: as in `study.runs`.
    """
    made: list[Variant] = []
    for variant in chosen(study, form):
        made.append(variant)
        setting = found[variant.label].setting
        if setting.items() <= flags_of(study, variant, form, common).items():
            continue
        made.append(
            Variant(
                label=f"{variant.label}, {_words(setting)}",
                simulate={**variant.simulate, **setting},
                quick={**variant.quick, **setting},
                full={**variant.full, **setting},
            )
        )
    notes = (*study.notes, *(one.words(label) for label, one in found.items()))
    return study.model_copy(update={"variants": tuple(made), "quick_only": (), "notes": notes})


def _words(setting: Flags) -> str:
    return ", ".join(f"{flag} = {text(value)}" for flag, value in setting.items())


__all__ = ["Found", "Trial", "best", "trials", "with_best"]
