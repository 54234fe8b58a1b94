"""The most memory that tensors took at any time during one forward, measured in the running network.

Counted are the storages that torch's operations make and keep, and the input; not parameters, and not what a kernel
takes and gives back inside one operation. A process's resident memory would show torch itself, and only ever grows.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lilliput.core.cost import Measurement
from lilliput.core.device import device_of


def peak_tensor_bytes(module: nn.Module, x: Tensor) -> Measurement:
    """One forward in evaluation mode without gradients; the module is left in the modes it had."""
    modes = {m: m.training for m in module.modules()}
    x = x.to(device_of(module) or x.device)
    own = [*module.parameters(), *module.buffers()]
    module.eval()
    try:
        with torch.no_grad(), _Watch(own, x) as watch:
            module(x)
    finally:
        for m, training in modes.items():
            m.training = training
    note = f"tensors alive during one forward, batch {len(x)}; without parameters and kernel scratch"
    return Measurement("peak_tensor_bytes", watch.peak, "B", "measured", note=note)


class _Watch(TorchDispatchMode):
    """Knows each storage by a weak reference and looks after each operation which ones are left."""

    def __init__(self, ignored: Iterable[Tensor], x: Tensor) -> None:
        super().__init__()
        self.ignored = {StorageWeakRef(t.untyped_storage()) for t in ignored}
        self.alive: dict[StorageWeakRef, int] = {}
        self.peak = 0
        self._add(x)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.alive = {storage: size for storage, size in self.alive.items() if not storage.expired()}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)
        if reference not in self.ignored:
            self.alive[reference] = storage.nbytes()
            self.peak = max(self.peak, sum(self.alive.values()))
