"""Write what torchcfm and flow_matching compute on given inputs; bench/compare_numbers.py holds advect against it.

python bench/peers/peer_numbers.py INPUTS.npz OUTPUTS.npz      with the Python of make bench-peers
"""

import sys

import numpy as np
import torch
from flow_matching.path import AffineProbPath
from flow_matching.path.scheduler import (
    CondOTScheduler,
    CosineScheduler,
    LinearVPScheduler,
    PolynomialConvexScheduler,
    VPScheduler,
)
from torchcfm.conditional_flow_matching import (
    ConditionalFlowMatcher,
    SchrodingerBridgeConditionalFlowMatcher,
    TargetConditionalFlowMatcher,
    VariancePreservingConditionalFlowMatcher,
)
from torchcfm.optimal_transport import OTPlanSampler

inputs = {name: torch.tensor(value) for name, value in np.load(sys.argv[1]).items()}
x0, x1, t, eps = (inputs[name] for name in ("x0", "x1", "t", "eps"))
out: dict[str, torch.Tensor] = {}

for name, matcher in {
    "torchcfm cond-ot": ConditionalFlowMatcher(sigma=0.1),
    "torchcfm lipman": TargetConditionalFlowMatcher(sigma=0.1),
    "torchcfm trigonometric": VariancePreservingConditionalFlowMatcher(sigma=0.1),
    "torchcfm bridge": SchrodingerBridgeConditionalFlowMatcher(sigma=0.5),
}.items():
    x_t = matcher.sample_xt(x0, x1, t, eps)
    out[f"{name}: x_t"], out[f"{name}: u_t"] = x_t, matcher.compute_conditional_flow(x0, x1, t, x_t)

for name, scheduler in {
    "flow_matching cond-ot": CondOTScheduler(),
    "flow_matching trigonometric": CosineScheduler(),
    "flow_matching vp linear": LinearVPScheduler(),
    "flow_matching ddpm": VPScheduler(),
    "flow_matching polynomial": PolynomialConvexScheduler(2),
}.items():
    point = AffineProbPath(scheduler).sample(x_0=x0, x_1=x1, t=t)
    out[f"{name}: x_t"], out[f"{name}: u_t"] = point.x_t, point.dx_t

plan = OTPlanSampler(method="exact").get_map(x0.flatten(1), x1.flatten(1))
cost = ((x0.flatten(1)[:, None] - x1.flatten(1)[None]) ** 2).sum(2).numpy()
out["torchcfm exact transport: cost"] = torch.tensor((plan * cost).sum() * len(x0))
np.savez(sys.argv[2], **{name: value.numpy() for name, value in out.items()})
