"""The pair in PyTorch: a CIFAR ResNet as users write it, and a plain training loop."""

import math
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarking.comparison import MOMENTUM, RATE, SHARE, TEMPERATURE, Peer
from benchmarking.pair import Pair
from kdjax.models.weights.torch import cifar_resnet_to_torch


class Block(nn.Module):
    """Two 3 × 3 convolutions with BatchNorm, and a shortcut."""

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or before != width:
            self.downsample = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + shortcut)


class ResNet(nn.Module):
    """A stem, three stages of so many blocks, the mean over positions, a linear layer."""

    def __init__(self, blocks: int, channels: tuple[int, int, int, int], classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        stages = []
        for before, width, stride in zip(channels[:-1], channels[1:], (1, 2, 2), strict=True):
            rest = [Block(width, width, 1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(Block(before, width, stride), *rest))
        self.layer1, self.layer2, self.layer3 = stages
        self.fc = nn.Linear(channels[-1], classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


def copied(params, state) -> ResNet:
    """A network with weights of kdjax; sizes are read off them."""
    weights = cifar_resnet_to_torch(params, state)
    widths = [
        weights[f"{name}.weight"].shape[0] for name in ("conv1", "layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1")
    ]
    blocks = len({name.split(".")[1] for name in weights if name.startswith("layer1.")})
    network = ResNet(blocks, tuple(widths), weights["fc.bias"].shape[0])
    network.load_state_dict({name: torch.tensor(np.asarray(value)) for name, value in weights.items()})
    return network


def kd_loss(student, teacher, labels):
    """Cross-entropy, and the divergence from the teacher at a temperature."""
    soft = F.kl_div(F.log_softmax(student / TEMPERATURE, 1), F.softmax(teacher / TEMPERATURE, 1), reduction="batchmean")
    return (1 - SHARE) * F.cross_entropy(student, labels) + SHARE * TEMPERATURE**2 * soft


def torchdistill_loss() -> Callable:
    """The same by torchdistill. Raises ImportError where that is not installed."""
    from torchdistill.losses.mid_level import KDLoss

    criterion = KDLoss("logits", "output", "logits", "output", TEMPERATURE, alpha=1 - SHARE, beta=SHARE)

    def loss(student, teacher, labels):
        return criterion({"logits": {"output": student}}, {"logits": {"output": teacher}}, labels)

    return loss


def torch_peer(pair: Pair, name: str, *, loss: Callable = kd_loss, tuned: bool = False) -> Peer:
    """A loop of forward, loss, backward, step.

    Args:
      pair: whose weights it begins with.
      name: for the table.
      loss: `student logits, teacher logits, labels -> scalar`.
      tuned: whether to compile both networks and keep images channels last.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    form = torch.channels_last if tuned else torch.contiguous_format
    first = pair.host_batch()
    example = first.inputs, first.labels
    short = pair.setting.precision == "bfloat16"
    begin = pair.state()
    weights = begin.params["student"], begin.state["student"]

    def fresh():
        teacher, student = copied(pair.variables.params, pair.variables.state), copied(*weights)
        teacher, student = (network.to(device, memory_format=form) for network in (teacher, student))
        teacher.eval().requires_grad_(False)
        optimizer = torch.optim.SGD(student.parameters(), lr=RATE, momentum=MOMENTUM)
        if tuned:
            teacher, student = torch.compile(teacher), torch.compile(student)
        return teacher, student.train(), optimizer

    def step(networks, images, labels):
        teacher, student, optimizer = networks
        images = torch.from_numpy(images.transpose(0, 3, 1, 2)).to(device, memory_format=form, non_blocking=True)
        labels = torch.from_numpy(labels).long().to(device, non_blocking=True)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=short):
            with torch.no_grad():
                taught = teacher(images)
            said = student(images)
        value = loss(said.float(), taught.float(), labels)
        value.backward()
        optimizer.step()
        return value

    def losses(images, labels, count):
        networks = fresh()
        return [step(networks, images, labels).item() for _ in range(count)]

    kept = fresh()
    threads = "" if device.type != "cpu" else f", threads: {_fastest_threads(lambda: step(fresh(), *example).item())}"

    def train(batches):
        for images, labels in batches:
            value = step(kept, images, labels)
        return value

    plain = [copied(pair.variables.params, pair.variables.state), copied(*weights)]
    return Peer(name, tuple(map(_parameters, plain)), tuple(_operations(n, pair.setting.size) for n in plain), losses,
                train, lambda value: value.item(), f"PyTorch {torch.__version__} on {device.type}{threads}")  # fmt: skip


def _fastest_threads(run: Callable[[], float]) -> int:
    """Sets how many threads PyTorch computes with: all cores or one, whichever is faster. Where a batch is small or cores are
    busy, one may be, by far."""
    taken = {}
    for count in {torch.get_num_threads(), 1}:
        torch.set_num_threads(count)
        run()
        began = time.perf_counter()
        for _ in range(3):
            run()
        taken[count] = time.perf_counter() - began
    best = min(taken, key=taken.get)
    torch.set_num_threads(best)
    return best


def _parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _operations(network: nn.Module, size: int) -> int:
    """Multiplications in convolutions and linear layers of one image, by what these give."""
    total = 0

    def count(module, _, out):
        nonlocal total
        total += out.numel() * math.prod(module.weight.shape[1:])

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, size, size))
    return total
