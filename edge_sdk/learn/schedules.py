"""Learning rates that change from round to round in another way than the federation's `lr_decay`."""

from __future__ import annotations

from pydantic import Field

from edge_sdk.core.errors import ConfigError
from edge_sdk.core.spec import Model, TrainingSpec


def linear(number: int, lr: float, *, least: float, after: int, rounds: int) -> float:
    """Returns lr − (lr − least) · number / rounds after round `after`, lr until then; `least` from `rounds` on."""
    return lr if number <= after else lr - (lr - least) * min(1.0, number / rounds)


class LinearDecay(Model):
    """Options of a method whose learning rate falls on a line, late in its run."""

    lr_min: float = Field(default=0.0, ge=0)  # where it ends; 0: no such decay
    lr_after: int = Field(default=80, ge=0)  # rounds before it begins
    lr_rounds: int = Field(default=180, ge=1)  # T, the round in which lr_min is reached

    def lr_scale(self, number: int, training: TrainingSpec) -> float:
        """Returns what the federation's learning rate is multiplied with in this round.

        Raises:
            ConfigError: the rate falls already, or begins below its end.
        """
        if not self.lr_min:
            return 1.0
        if training.lr_decay != 1.0 or training.lr < self.lr_min:
            raise ConfigError(
                f"method.config.lr_min = {self.lr_min:g}: a linear decay ends below training.lr and takes the place of "
                f"training.lr_decay; found lr = {training.lr:g}, lr_decay = {training.lr_decay:g}: "
                "set lr_decay to 1, or leave lr_min out"
            )
        after, rounds = self.lr_after, self.lr_rounds
        return linear(number, training.lr, least=self.lr_min, after=after, rounds=rounds) / training.lr


__all__ = ["LinearDecay", "linear"]
