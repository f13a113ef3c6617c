"""torchcfm's exact minibatch coupling; answers the protocol of bench/interleave.py.

The argument is the file of both batches that bench/coupling.py wrote.
"""

import sys
import time

import torch
from torchcfm.optimal_transport import OTPlanSampler

torch.set_num_threads(1)
x0, x1 = torch.load(sys.argv[1])
sampler = OTPlanSampler(method="exact")

for line in sys.stdin:
    began = time.perf_counter()
    for _ in range(int(line)):
        sampler.sample_plan(x0, x1)
    print(time.perf_counter() - began, flush=True)
