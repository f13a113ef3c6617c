"""A flow as a scikit-learn estimator: densities, samples and a search. Run: python examples/estimator.py"""

from __future__ import annotations

import argparse

from sklearn.datasets import make_moons
from sklearn.model_selection import train_test_split

import advect


def main(steps: int) -> None:
    """Fit two labelled moons; print the held-out log-density with and without the label, and samples of each."""
    x, y = make_moons(4000, noise=0.07, random_state=0)
    x_train, x_test, y_train, y_test = train_test_split(x, y, random_state=0)
    model = advect.FlowModel(steps=steps, density_steps=20, random_state=0).fit(x_train, y_train)
    print(f"held-out log-density {model.score(x_test):.3f}, given the label {model.score(x_test, y_test):.3f}")
    for label in model.classes_:
        centre = model.sample(500, label).mean(0)
        print(
            f"moon {label}: samples around {centre.round(2)}, data around {x_test[y_test == label].mean(0).round(2)}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    main(parser.parse_args().steps)
