"""The toy loop with torchcfm's matcher and MLP; answers the protocol of bench/interleave.py.

``plain`` is the loop of its two-dimensional examples: Adam and nothing else. ``same`` does what advect's engine
does at each step, with PyTorch's own tools, as its image examples do: warm-up, AdamW, clipping, EMA.
"""

import sys
import time

import torch
from sklearn.datasets import make_moons
from torchcfm.conditional_flow_matching import ConditionalFlowMatcher
from torchcfm.models.models import MLP

same = sys.argv[1] == "same"
torch.set_num_threads(1)
torch.manual_seed(0)
pool = torch.tensor(make_moons(10_000, noise=0.05, random_state=0)[0], dtype=torch.float32)
model = MLP(dim=2, w=256, time_varying=True)
average = MLP(dim=2, w=256, time_varying=True)
average.load_state_dict(model.state_dict())
optimizer = (torch.optim.AdamW if same else torch.optim.Adam)(model.parameters(), lr=1e-3)
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 100))
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
    if same:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if same:
        schedule.step()
        weights = model.state_dict()
        for name, value in average.state_dict().items():
            value.copy_(value * 0.999 + weights[name] * 0.001)


for line in sys.stdin:
    began = time.perf_counter()
    for _ in range(int(line)):
        step()
    print(time.perf_counter() - began, flush=True)
