"""Networks of the zoo on an emulated Cortex-M4: eleven golden vectors each, no difference."""

import re
import shutil
import subprocess

import pytest

from lilliput.export.c import project
from lilliput.graph.lower import lower
from zoo_networks import random_network

TOOLS = ("arm-none-eabi-gcc", "qemu-system-arm", "make")
pytestmark = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in TOOLS), reason=f"needs {', '.join(TOOLS)}: apt install them"
)


@pytest.mark.parametrize("name", ["autoencoder-ad", "lenet5", "ds-cnn", "resnet8-mlperf"])
def test_a_network_of_the_zoo_computes_the_same_on_an_emulated_cortex_m4(name, tmp_path):
    project.write(lower(random_network(name)), tmp_path)
    done = subprocess.run(["make", "emulate"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = dict(re.findall(r"^(\w+) (\d+)$", done.stdout + done.stderr, re.MULTILINE))
    assert (found["vectors"], found["differ"]) == ("11", "0")
