"""Generated C on an emulated Cortex-M4: golden vectors, counted instructions, stack."""

import re
import shutil
import subprocess

import pytest

from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.method import Context, apply_checked_
from lilliput.export.c import project
from lilliput.graph.lower import lower
from lilliput.methods.consolidation.sic import Sic
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.post_training import Quantization
from lilliput.zoo.registry import open_model
from lowered import calibrated_on, quantized, quantized_tiny

TOOLS = ("arm-none-eabi-gcc", "qemu-system-arm", "make")
pytestmark = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in TOOLS), reason=f"needs {', '.join(TOOLS)}: apt install them"
)


def emulated(program, folder, **limits):
    """{what is counted: number}."""
    project.write(program, folder, **limits)
    done = subprocess.run(["make", "emulate"], cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: int(value) for name, value in re.findall(r"^(\w+) (\d+)$", done.stdout + done.stderr, re.MULTILINE)}


@pytest.mark.parametrize("name", ["linear", "conv1d", "residual", "grouped"])
def test_tiny_networks_compute_the_same_on_an_emulated_cortex_m4(name, tmp_path):
    found = emulated(lower(quantized_tiny(name, Quantization(signed=True))), tmp_path)
    assert (found["vectors"], found["differ"]) == (11, 0)


def test_digits_run_within_64_kb_of_flash_and_16_kb_of_ram(tmp_path):
    model, task = open_model("digits-cnn")
    program = lower(quantized(model, task, Quantization(signed=True)))
    found = emulated(program, tmp_path, flash=64_000, ram=16_000)
    assert found["differ"] == 0
    assert found["stack"] < 1024
    assert 461_000 < found["instructions"] < 3 * 461_000  # 461 k multiplications
    assert found == emulated(program, tmp_path, flash=64_000, ram=16_000)  # counting is exact


def test_consolidated_pruned_and_quantized_weights_compute_the_same_and_get_smaller_each_time(tmp_path):
    model, task = open_model("digits-cnn")
    sic, prune = Sic(error_budget=0.01), MagnitudePruning(sparsity=0.75)

    def after(net, *passes):
        net = net.copy()
        for method in passes:
            apply_checked_(method, net, Context.of(task, model))
        return net

    consolidated = after(Artifact.of(model, task.spec), FoldBatchNorm(), sic)
    pruned = after(consolidated, prune)
    eight, six = (Quantization(weight_bits=bits, activation_bits=0) for bits in (8, 6))
    nets = [consolidated, after(consolidated, eight), after(consolidated, six), after(pruned, six)]
    sizes = [len(container.dumps(net, strip=True)) for net in nets]
    assert sizes == sorted(set(sizes), reverse=True)
    found = emulated(lower(after(pruned, Quantization(weight_bits=6, signed=True))), tmp_path)
    assert (found["vectors"], found["differ"]) == (11, 0)


def test_the_published_resnet_20_runs_on_an_emulated_cortex_m4(published_data, tmp_path):
    weights = published_data / "models" / "resnet20_cifar10.safetensors"
    model, task = open_model("resnet20", weights=weights, data_root=published_data)
    images = next(iter(task.data("test").batches(20)))[0]
    found = emulated(lower(quantized(model, calibrated_on(images), Quantization(signed=True))), tmp_path)
    assert (found["vectors"], found["differ"]) == (11, 0)
