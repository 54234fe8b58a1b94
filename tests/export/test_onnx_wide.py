"""More than 8 bits in ONNX: a file that agrees (float32 between 16-bit grids), or an error that names the operation."""

import pytest
import torch

from lilliput.core.errors import ExportError
from lilliput.export.onnx import build
from lilliput.export.onnx_check import check_layers, check_with_runtime
from lilliput.methods.quantization.post_training import Quantization
from lilliput.testing import TINY, tiny_task
from lowered import quantized_tiny, task_of
from program_networks import NETS, SHAPE, quantized_network

TARGETS = ("onnx-x86", "onnx-arm")


def inputs(task):
    return torch.cat([b[0] for b in task.data("validation").batches(64)])


@pytest.mark.parametrize("settings", [{"activation_bits": 16}, {"weight_bits": 12}])
@pytest.mark.parametrize("name", TINY)
def test_wide_networks_agree(name, settings):
    task = tiny_task()
    net, x = quantized_tiny(name, Quantization(**settings)), inputs(task)
    for target in TARGETS:
        model = build(net, target=target)
        assert check_with_runtime(model, net, x, classes=False).drift < 1e-3
        if name != "conv1d":  # its tanh is a line between points in ours, and itself in ONNX Runtime
            check_layers(model, net, x)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("name", NETS)
def test_operations_agree_or_are_refused_by_name(name, bits):
    task = task_of(SHAPE)
    net, x = quantized_network(name, Quantization(activation_bits=bits)), inputs(task)
    if name in ("adaptive max", "padding", "called twice", "learned functions", "learned functions of tokens"):
        assert check_with_runtime(build(net, target="onnx-x86"), net, x, classes=False).drift < 1e-2
    else:
        with pytest.raises(ExportError, match=r"ONNX export of '.+': aten\.\w+\.\w+ .*no form here"):
            build(net, target="onnx-x86")
