"""A device that is none: "fake". Its tensors are in the memory of the CPU, but torch takes them for another device's.

Python's own back-end of torch (PrivateUse1): every operation on such tensors comes to `_compute`, which refuses tensors
of two devices, as CUDA does, and computes the rest on the CPU. So results are those of the CPU, bit by bit, and what
forgets to move a tensor fails. Memory changes its device by a word in its DLPack description.

Registering a device cannot be undone: use it in a process of its own.
"""

import ctypes
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

CPU, OTHER = 1, 12  # of DLPack
aten = torch.ops.aten
MIXES = {"aten::_copy_from", "aten::_copy_from_and_resize", "aten::_to_copy", "aten::copy_", "aten::index.Tensor"}
MIXES |= {"aten::index_put_", "aten::_index_put_impl_", "aten::index_put"}  # CUDA takes indices of the CPU
SAME: dict[Any, Any] = {aten.convolution_overrideable.default: aten.convolution.default}


class _Description(ctypes.Structure):
    """The beginning of a DLTensor."""

    _fields_ = (("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32))


def _as(tensor: torch.Tensor, kind: int) -> torch.Tensor:
    """The same memory, taken for another device's."""
    capsule = torch._C._to_dlpack(tensor.detach())
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    _Description.from_address(pointer(capsule, b"dltensor")).device_type = kind
    return torch._C._from_dlpack(capsule)


def _moved(tensor: torch.Tensor, kind: int) -> torch.Tensor:
    if tensor.dtype == torch.bool:  # DLPack and bool: through bytes
        return _as(tensor.view(torch.uint8), kind).view(torch.bool)
    return _as(tensor, kind)


def _is_fake(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.device.type == "fake"


def _compute(op: Any, *args: Any, **kwargs: Any) -> Any:
    flat, spec = tree_flatten((args, kwargs))
    name = str(op._schema.name) + (f".{op._overloadname}" if op._overloadname not in ("default", "") else "")
    tensors = [x for x in flat if isinstance(x, torch.Tensor)]
    strangers = [x for x in tensors if not _is_fake(x) and not (x.dim() == 0 and torch.Tag.pointwise in op.tags)]
    if strangers and len(strangers) < len(tensors) and name.partition(".")[0] not in MIXES and name not in MIXES:
        raise RuntimeError(f"{name}: tensors of two devices, cpu {tuple(strangers[0].shape)} and fake")
    back: list[tuple[torch.Tensor, torch.Tensor]] = []

    def lower(x: Any) -> Any:
        if _is_fake(x):
            alias = _moved(x, CPU)
            back.append((alias, x))
            return alias
        return torch.device("cpu") if isinstance(x, torch.device) else x

    wanted = next((x for x in flat if isinstance(x, torch.device)), None)
    place = wanted is None or wanted.type == "fake"
    grown = {a.name: kwargs[a.name] for a in op._schema.arguments if a.is_out and not kwargs[a.name].numel()}
    low_args, low_kwargs = tree_unflatten([lower(x) for x in flat], spec)
    low_kwargs |= {key: torch.empty(0, dtype=out.dtype) for key, out in grown.items()}  # memory of others cannot grow
    if name.startswith("aten::_copy_from"):
        low_args[1].copy_(low_args[0])
        return args[1]
    if op is aten.convolution_backward_overrideable.default:
        grad, x, weight, *rest, mask = low_args
        bias = [weight.shape[1] * rest[-1] if rest[3] else weight.shape[0]]
        result = aten.convolution_backward(grad, x, weight, bias, *rest, mask)
    else:
        result = SAME.get(op, op)(*low_args, **low_kwargs)
    for key, out in grown.items():
        out.data = _moved(low_kwargs[key], OTHER)
        back.append((low_kwargs[key], out))

    def raise_(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        for alias, original in back:
            if x is alias:
                return original
        return _moved(x, OTHER) if place else x

    return tree_map(raise_, result)


def install() -> None:
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend("fake")
    library = torch.library.Library("_", "IMPL")
    library.fallback(_compute, "PrivateUse1")
    convolutions = torch.library.Library("aten", "IMPL")
    for op in (aten.convolution_overrideable.default, aten.convolution_backward_overrideable.default):
        convolutions.impl(op, partial(_compute, op), "PrivateUse1")  # torch's own only say that there are none
    _KEEP.extend((library, convolutions))
    torch.nn.Module._apply = _tied(torch.nn.Module._apply)
    for cls in (torch.Tensor, torch.nn.Parameter):
        cls.__deepcopy__ = _deepcopy(cls.__deepcopy__)


def _deepcopy(real: Any) -> Any:
    def deepcopy(tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
        """torch copies storages, for which a back-end in Python has no allocator."""
        if not _is_fake(tensor):
            return real(tensor, memo)
        if id(tensor) not in memo:
            copy = tensor.detach().clone()
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            memo[id(tensor)] = torch.nn.Parameter(copy, tensor.requires_grad) if is_parameter else copy
        return memo[id(tensor)]

    return deepcopy


def _tied(real: Any) -> Any:
    depth = 0

    def apply(module: torch.nn.Module, fn: Any, recurse: bool = True) -> torch.nn.Module:
        """Back-ends in Python get new parameters where CUDA moves what is in them: tied ones must stay tied."""
        nonlocal depth
        slots = [(m, name, p) for m in module.modules() for name, p in m._parameters.items() if p is not None]
        depth += 1
        try:
            result = real(module, fn, recurse)
        finally:
            depth -= 1
        if depth == 0:
            first: dict[int, Any] = {}
            for owner, name, before in slots:
                owner._parameters[name] = first.setdefault(id(before), owner._parameters[name])
        return result

    return apply


_KEEP: list[Any] = []
