"""One training step of another library's network; answers the protocol of bench/interleave.py.

python train_step.py NETWORK [--autocast] [--device cuda] [--compile] [--dropout P] [--clock cpu]
    [--count] [--batch N]

A step is what these libraries' own image examples do, on PyTorch's tools: a point of the straight path, forward,
backward, clipping, AdamW, and an average of the weights. ``--autocast`` adds bfloat16 autocast and channels_last.
``--count`` prints the network's parameters and the floating-point operations of its step instead, as
torch.utils.flop_counter counts them.
"""

import argparse
import sys
import time
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


class Torchcfm(nn.Module):
    """torchcfm's U-Net as its CIFAR-10 example has it, with 64 channels for 128."""

    shape = (3, 32, 32)

    def __init__(self, dropout: float) -> None:
        super().__init__()
        from torchcfm.models.unet.unet import UNetModelWrapper

        self.net = UNetModelWrapper(
            dim=self.shape,
            num_channels=64,
            num_res_blocks=2,
            channel_mult=(1, 2, 2, 2),
            attention_resolutions="16",
            num_heads=4,
            num_head_channels=64,
            dropout=dropout,
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(t, x)


class Diffusers(nn.Module):
    """diffusers' UNet2DModel with the same levels, blocks and attention."""

    shape = (3, 32, 32)

    def __init__(self, dropout: float) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        self.net = UNet2DModel(
            sample_size=32,
            block_out_channels=(64, 128, 128, 128),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=64,
            dropout=dropout,
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x, 1000 * t).sample


class DenoisingDiffusionPytorch(nn.Module):
    """denoising-diffusion-pytorch's Unet, its own attention in every level, sized for the same arithmetic."""

    shape = (3, 32, 32)

    def __init__(self, dropout: float) -> None:
        super().__init__()
        for name in ("torchvision", "torchvision.transforms", "pytorch_fid", "accelerate", "ema_pytorch"):
            sys.modules.setdefault(name, MagicMock())  # its trainers need these, its network does not
        for name in ("pytorch_fid.inception", "pytorch_fid.fid_score"):
            sys.modules.setdefault(name, MagicMock())
        from denoising_diffusion_pytorch import Unet

        self.net = Unet(72, dim_mults=(1, 2, 2, 4), dropout=dropout)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x, 1000 * t)


class DiffusersDiT(nn.Module):
    """diffusers' DiT at the size of DiT-S/2, without class."""

    shape = (4, 32, 32)

    def __init__(self, dropout: float) -> None:
        super().__init__()
        from diffusers import DiTTransformer2DModel

        self.net = DiTTransformer2DModel(
            num_attention_heads=6,
            attention_head_dim=64,
            in_channels=4,
            out_channels=4,
            num_layers=12,
            sample_size=32,
            patch_size=2,
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x, 1000 * t, torch.zeros(len(x), dtype=torch.long, device=x.device)).sample


NETWORKS = {
    "torchcfm": Torchcfm,
    "diffusers": Diffusers,
    "ddp": DenoisingDiffusionPytorch,
    "diffusers-dit": DiffusersDiT,
}


def count(net: nn.Module, batch: int) -> str:
    """Parameters, and operations of a forward and backward pass with attention's products counted too."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        net(torch.randn(batch, *net.shape), torch.rand(batch)).sum().backward()
    return f"{sum(p.numel() for p in net.parameters())} {counter.get_total_flops()}"


class Training:
    """The network, its average and its optimiser, and steps with them."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.device, self.autocast, self.batch = args.device, args.autocast, args.batch
        kind = NETWORKS[args.network]
        self.net, self.average = kind(args.dropout).to(self.device), kind(args.dropout).to(self.device)
        self.average.load_state_dict(self.net.state_dict())
        if args.autocast:
            self.net = self.net.to(memory_format=torch.channels_last)
        self.run = torch.compile(self.net) if args.compile else self.net
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-4)
        self.data = torch.randn(1024, *kind.shape)

    def step(self) -> None:
        x1 = self.data[torch.randint(0, len(self.data), (self.batch,))].to(self.device)
        x0, t = torch.randn_like(x1), torch.rand(len(x1), device=self.device)
        time_ = t[:, None, None, None]
        x_t, u_t = time_ * x1 + (1 - time_) * x0, x1 - x0
        if self.autocast:
            x_t = x_t.to(memory_format=torch.channels_last)
        self.optimizer.zero_grad()
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.autocast):
            v_t = self.run(x_t, t)
        torch.mean((v_t.float() - u_t) ** 2).backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        weights = self.net.state_dict()
        for name, value in self.average.state_dict().items():
            value.copy_(value * 0.9999 + weights[name] * 0.0001)

    def work(self, n: int) -> None:
        for _ in range(n):
            self.step()
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize()


parser = argparse.ArgumentParser()
parser.add_argument("network", choices=NETWORKS)
parser.add_argument("--autocast", action="store_true")
parser.add_argument("--device", default="cpu")
parser.add_argument("--compile", action="store_true")
parser.add_argument("--dropout", type=float, default=0.1)
parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
parser.add_argument("--batch", type=int, default=32)
parser.add_argument("--count", action="store_true")
args = parser.parse_args()
if args.count:
    print(count(NETWORKS[args.network](args.dropout), args.batch))
    sys.exit()
training = Training(args)
now = time.process_time if args.clock == "cpu" else time.perf_counter
for line in sys.stdin:
    began = now()
    training.work(int(line))
    print(now() - began, flush=True)
