"""MBA against plain FedAsync on the excerpt of UCI-HAR, a few updates each.

python examples/simulate.py
"""

import sys

from coordinator.preparation import spec_of, split
from coordinator.simulation.simulate import Simulation, World
from edge_sdk import datasets
from edge_sdk.core.spec import TrainingSpec


def main() -> None:
    """Prints one line per method."""
    cut = split(datasets.select("uci_har"), seed=1)
    training = TrainingSpec(lr=0.05, epochs=1, batch_size=32)
    for method in ("fedasync", "mba"):
        spec = spec_of(cut.train, name="har", method=method, training=training)
        report = Simulation(spec, cut, World(devices=4, updates=16, seed=1, fraction=1.0)).run()
        alone = ", ".join(f"{m} only {100 * acc:.1f} %" for m, acc in report.acc_by_modality.items())
        sys.stdout.write(f"{method:<10} {100 * report.acc:.1f} % ({alone})\n")


if __name__ == "__main__":
    main()
