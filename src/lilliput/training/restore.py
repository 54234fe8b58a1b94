"""Leaving a network, and the randomness of the process, as they were found."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lilliput.core.artifact import Artifact


@contextmanager
def restoring(net: Artifact, generator: torch.Generator) -> Iterator[None]:
    """Modes, device and gradients as before in any case; on failure also values, encodings and the generator."""
    module = net.module
    modes = {m: m.training for m in module.modules()}
    homes = {p.device for p in module.parameters()}
    values = {n: p.detach().clone() for n, p in module.named_parameters()}
    buffers = {n: b.detach().clone() for n, b in module.named_buffers()}
    encodings, state = dict(net.encodings), generator.get_state()
    done = False
    try:
        yield
        done = True
    finally:
        if len(homes) == 1:
            module.to(homes.pop())
        for m, training in modes.items():
            m.training = training
        for parameter in module.parameters():
            parameter.grad = None
        if not done:
            put_(module.get_parameter, values)
            put_(module.get_buffer, buffers)
            net.encodings = encodings
            generator.set_state(state)


@contextmanager
def seeded_apart(device: torch.device) -> Iterator[None]:
    """What is drawn from torch's own generators in here is not missed outside."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def put_(owner: Callable[[str], Tensor], values: dict[str, Tensor]) -> None:
    """Copy values into the tensors of these names."""
    with torch.no_grad():
        for name, value in values.items():
            owner(name).copy_(value)
