import pytest
import torch
from torch import nn

from lilliput.core import container
from lilliput.core.task import Task
from lilliput.graph import stored
from lilliput.measure.size import overhead
from lilliput.methods.quantization.post_training import Quantization
from lilliput.pipeline.recipe import Recipe, Step
from lilliput.pipeline.run import run


@pytest.mark.parametrize("activation_bits", [0, 8])
def test_a_tiny_4_bit_network_costs_little_more_than_its_payload(activation_bits):
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 50))
    assert sum(p.numel() for p in model.parameters()) == 1122
    x, y = torch.randn(200, 16, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 50
    task = Task.classification(train=(x, y), validation=(x, y))
    recipe = Recipe(steps=(Step(passes=(Quantization(weight_bits=4, activation_bits=activation_bits),)),))
    outcome = run(model, task, recipe)
    contents = container.loads(stored.dumps(outcome.artifact))
    assert contents.recipe
    assert contents.wiring
    assert container.graph_bytes(contents) < 10
    assert overhead(contents) <= 150
    weights = 4 * (16 * 16 + 16 * 50) // 8
    assert sum(len(s.data) for s in contents.streams["0.weight"] + contents.streams["2.weight"]) <= weights + 4 * 66
