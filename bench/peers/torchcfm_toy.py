"""The toy loop as a user of torchcfm writes it; answers the protocol of bench/interleave.py."""

import sys
import time

import torch
from sklearn.datasets import make_moons
from torchcfm.conditional_flow_matching import ConditionalFlowMatcher
from torchcfm.models.models import MLP

torch.set_num_threads(1)
torch.manual_seed(0)
pool = torch.tensor(make_moons(10_000, noise=0.05, random_state=0)[0], dtype=torch.float32)
model = MLP(dim=2, w=256, time_varying=True)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
matcher = ConditionalFlowMatcher(sigma=0.0)
print(sum(p.numel() for p in model.parameters()), "parameters", file=sys.stderr)


def step() -> None:
    optimizer.zero_grad()
    x1 = pool[torch.randint(0, len(pool), (256,))]
    x0 = torch.randn_like(x1)
    t, xt, ut = matcher.sample_location_and_conditional_flow(x0, x1)
    vt = model(torch.cat([xt, t[:, None]], dim=-1))
    loss = torch.mean((vt - ut) ** 2)
    loss.backward()
    optimizer.step()


for line in sys.stdin:
    began = time.perf_counter()
    for _ in range(int(line)):
        step()
    print(time.perf_counter() - began, flush=True)
