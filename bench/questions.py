"""Questions to one flow trained with ``--mask random`` on a mixture, against its exact conditionals.

    python bench/questions.py --seeds 2 --steps 8000

A row a question: which entries are given, the accuracy of a classifier (trees, fitted to half of the rows) at telling
2,000 draws of the flow from 2,000 of the exact conditional law (1/2 is best), and the mean absolute error of the
conditional log-density. The last rows are plain samples of that flow, and of one trained as long without a mask; and
the seconds of 1,000 questions beside those of 1,000 plain samples.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from interleave import machine
from torch import Tensor

from advect.core.types import Batch, DataSpec, Entries
from advect.data.transforms import Identity
from advect.losses import FlowMatching
from advect.masks import RandomMask
from advect.metrics.classifier_two_sample import two_sample_test
from advect.model.flow import Flow
from advect.networks import MLP
from advect.networks.base import WithGiven
from advect.training.ema import EMA

D, K, DRAWS = 4, 5, 2000


class Mixture:
    """Five Gaussians in four dimensions with full covariances, overall of mean 0 and deviation about 1."""

    def __init__(self) -> None:
        rng = np.random.default_rng(7)
        self.means = torch.tensor(rng.normal(0, 0.9, (K, D)))
        roots = torch.tensor(rng.normal(0, 0.25, (K, D, D)))
        self.covs = roots @ roots.mT + 0.01 * torch.eye(D)
        self.weights = torch.tensor(rng.dirichlet(np.full(K, 3.0)))

    def given(self, a: list[int], value: Tensor) -> Mixture:
        """The law of the other entries where those of ``a`` have this value."""
        b = [i for i in range(D) if i not in a]
        gain = self.covs[:, b][:, :, a] @ torch.linalg.inv(self.covs[:, a][:, :, a])
        marginal = torch.distributions.MultivariateNormal(self.means[:, a], self.covs[:, a][:, :, a])
        law = object.__new__(Mixture)
        law.weights = (self.weights.log() + marginal.log_prob(value)).softmax(0)
        law.means = self.means[:, b] + (gain @ (value - self.means[:, a])[:, :, None])[:, :, 0]
        law.covs = self.covs[:, b][:, :, b] - gain @ self.covs[:, a][:, :, b]
        return law

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], 1, generator=generator, dtype=torch.float64)
        return self.means[which] + (torch.linalg.cholesky(self.covs)[which] @ noise)[:, :, 0]

    def log_prob(self, x: Tensor) -> Tensor:
        each = torch.distributions.MultivariateNormal(self.means, self.covs).log_prob(x[:, None].double())
        return (self.weights.log() + each).logsumexp(1)


def train(law: Mixture, steps: int, seed: int, *, masked: bool) -> Flow:
    """A flow by an MLP of 256 units, Adam with a cosine, averaged."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = MLP(D, width=256, depth=5, inputs=3 if masked else 1)
        net = WithGiven(net, "vector") if masked else net
    loss = FlowMatching(mask=RandomMask(entries=Entries(torch.arange(D))) if masked else None)
    params = dict(net.named_parameters())
    ema, optimizer = EMA(params, 0.999), torch.optim.Adam(params.values(), 2e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x1 = law.sample(1024, generator).float()
        optimizer.zero_grad()
        loss(net, Batch(x1), generator).mean().backward()
        optimizer.step()
        rate.step()
        ema.update()
    net.load_state_dict(ema.shadow)
    return Flow(net.eval(), DataSpec((D,), "vector", {}), Identity(), masked=masked)


def ask(flow: Flow, law: Mixture, a: list[int], seed: int) -> tuple[float, float]:
    """Accuracy of the classifier, and error of the log-density, of a question with a value of the data."""
    generator = torch.Generator().manual_seed(1000 + seed)
    value = law.sample(1, generator)[0, a]
    exact = law.given(a, value)
    b = [i for i in range(D) if i not in a]
    given = torch.full((D,), torch.nan, dtype=torch.float64)
    given[a] = value
    drawn = flow.sample(DRAWS, given=given, seed=seed, steps=50).x
    found = two_sample_test(drawn[:, b], exact.sample(DRAWS, generator).float(), seed=seed).accuracy
    x = torch.zeros(200, D)
    x[:, a], x[:, b] = value.float(), exact.sample(200, generator).float()
    error = flow.log_prob(x, given=~given.isnan()).double() - exact.log_prob(x[:, b])
    return found, error.abs().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--seeds", type=int, default=2)
    a = parser.parse_args()
    torch.set_num_threads(1)
    law = Mixture()
    print(machine(), f"{a.steps:,} steps, {a.seeds} seeds, one thread", sep="\n")
    print("| given | classifier, by seed | mean abs. error of log p, nats |\n|---|---|---|")
    flows = [train(law, a.steps, seed, masked=True) for seed in range(a.seeds)]
    for known in ([0], [3], [0, 1], [1, 3], [0, 1, 2]):
        rows = [ask(flow, law, known, seed) for seed, flow in enumerate(flows)]
        print(
            f"| {known} | {', '.join(f'{r[0]:.3f}' for r in rows)} | {np.mean([r[1] for r in rows]):.3f} |", flush=True
        )
    plain = [train(law, a.steps, seed, masked=False) for seed in range(a.seeds)]
    for name, made in (("nothing, masked", flows), ("nothing, no mask", plain)):
        truth = law.sample(DRAWS, torch.Generator().manual_seed(5)).float()
        found = [two_sample_test(f.sample(DRAWS, seed=9).x, truth, seed=i).accuracy for i, f in enumerate(made)]
        x = truth[:200]
        error = np.mean([(f.log_prob(x).double() - law.log_prob(x)).abs().mean().item() for f in made])
        print(f"| {name} | {', '.join(f'{v:.3f}' for v in found)} | {error:.3f} |", flush=True)
    given = torch.full((1000, D), torch.nan)
    given[:, 0] = law.sample(1000, torch.Generator().manual_seed(3))[:, 0].float()
    for name, question in (("1,000 questions", given), ("1,000 plain samples", None)):
        began = time.process_time()
        flows[0].sample(1000, given=question)
        print(f"| {name} | {time.process_time() - began:.2f} CPU-seconds | |", flush=True)


if __name__ == "__main__":
    main()
