"""What a Cortex-M4 will need, planned without a compiler, is what the compiler and the emulator find."""

import shutil
import subprocess

import pytest
import torch
from torch import nn

from lilliput.core.learned_activation import LearnedActivation
from lilliput.export.c.kernel_sizes import KERNELS
from lilliput.export.c.plan import plan
from lilliput.export.c.writer import Writer
from lilliput.graph.lower import lower
from lilliput.methods.quantization.post_training import Quantization
from lilliput.testing import TINY
from lilliput.zoo.registry import ZOO
from lowered import calibrated_on, quantized, quantized_tiny

GCC = shutil.which("arm-none-eabi-gcc")
needs_gcc = pytest.mark.skipif(GCC is None, reason="arm-none-eabi-gcc is not installed")
COMMAND = "arm-none-eabi-gcc -mcpu=cortex-m4 -mthumb -std=c99 -O2 -ffunction-sections -fdata-sections -c net.c -o net.o"


def zoo_program(name, bits):
    entry = ZOO[name]
    torch.manual_seed(0)
    model = entry.model().eval()
    task = calibrated_on(torch.randn((32, *entry.shape)))
    return lower(quantized(model, task, Quantization(signed=True, weight_bits=bits)))


def sizes(program, folder):
    """(flash, RAM without the stack) by arm-none-eabi-size."""
    for name, text in Writer(program).files().items():
        (folder / name).write_text(text)
    subprocess.run(COMMAND.split(), cwd=folder, check=True)
    done = subprocess.run(["arm-none-eabi-size", "net.o"], cwd=folder, capture_output=True, text=True, check=True)
    text, data, bss = (int(number) for number in done.stdout.splitlines()[1].split()[:3])
    return text + data, data + bss


@needs_gcc
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["digits-cnn", "lenet5", "resnet8", "digits-masks", "japanese-vowels", "seed-cnn"])
def test_planned_flash_is_within_two_percent_and_planned_arena_exact(name, bits, tmp_path):
    program = zoo_program(name, bits)
    planned, (flash, ram) = plan(program), sizes(program, tmp_path)
    assert planned.flash == pytest.approx(flash, rel=0.02)
    assert planned.arena == ram


@needs_gcc
@pytest.mark.parametrize("name", list(TINY))
def test_the_smallest_networks_are_planned_within_a_few_bytes(name, tmp_path):
    program = lower(quantized_tiny(name, Quantization(signed=True)))
    planned, (flash, ram) = plan(program), sizes(program, tmp_path)
    assert abs(planned.flash - flash) <= max(64, 0.02 * flash)
    assert planned.arena == ram


def test_parts_of_a_plan_add_up():
    planned = plan(zoo_program("digits-cnn", 8))
    assert planned.flash == planned.tables + planned.code
    assert planned.ram == planned.arena + planned.stack
    assert (planned.inputs, planned.outputs) == (64, 40)
    assert planned.inputs + planned.outputs <= planned.arena


@pytest.mark.parametrize(("tables", "entries"), [("full", 256), ("points", 33)])
@pytest.mark.parametrize(("share", "functions"), [("layer", 1), ("channel", 4)])
def test_tables_of_functions_are_counted_as_part_of_all_tables(share, functions, tables, entries):
    def planned(act):
        model = nn.Sequential(nn.Linear(6, 4), act, nn.Linear(4, 3))
        method = Quantization(signed=True, tables=tables)
        return plan(lower(quantized(model, calibrated_on(torch.randn(32, 6)), method)))

    torch.manual_seed(0)
    learned = LearnedActivation(4, kind="lerp_psa", share=share, init="paper")
    found, plain = planned(learned), planned(nn.ReLU())
    assert plain.functions == 0
    assert found.functions == entries * functions
    assert found.tables >= plain.tables + found.functions


def test_every_kernel_has_a_size():
    for bits in (12, 8, 4):
        for name in TINY:
            program = lower(quantized_tiny(name, Quantization(signed=True, weight_bits=bits)))
            assert set(Writer(program).keys.values()) <= set(KERNELS)
