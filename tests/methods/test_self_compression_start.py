"""Self-compression of a network that is on grids already: it goes on from there."""

import pytest
import torch

import lilliput as ll
from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, apply_checked_
from lilliput.testing import tiny_model, tiny_task

TASK = tiny_task()


def rounded():
    """A network after rounding to 4 bits, what may be used, and its file's bytes."""
    model = tiny_model("residual")
    net, context = Artifact.of(model, TASK.spec), Context.of(TASK, model)
    for method in (ll.FoldBatchNorm(), ll.Quantization(weight_bits=4, activation_bits=0)):
        apply_checked_(method, net, context)
    return net, context


def scales(net):
    return torch.cat([e.grid.scale for n, e in net.encodings.items() if e.grid is not None and n.endswith("weight")])


@pytest.mark.parametrize(("exponents", "levels"), [("whole", 1), ("short", 8)])
def test_scales_end_as_asked(exponents, levels):
    net, context = rounded()
    method = ll.SelfCompression(steps=40, rounds=2, batch_size=16, exponents=exponents)
    apply_checked_(method, net, context)
    mantissa = torch.frexp(scales(net)).mantissa * levels
    assert torch.equal(mantissa, (mantissa * 2).round() / 2)
    assert len(mantissa.unique()) == 1 or exponents == "short"


def test_without_a_price_and_steps_the_integers_of_the_grids_stay():
    net, context = rounded()
    before = {n: e.values.clone() for n, e in net.encodings.items() if n.endswith("weight")}
    steady = {"gamma": 0.0, "bit_rate": 0.0, "step_rate": 1e-9, "settle": 0.0, "exponents": "short"}
    apply_checked_(ll.SelfCompression(steps=2, rounds=1, batch_size=16, **steady), net, context)
    after = {n: e.values for n, e in net.encodings.items() if n in before}
    changed = sum(int((after[n] != v).sum()) for n, v in before.items() if after[n].shape == v.shape)
    assert changed <= 0.15 * sum(v.numel() for v in before.values())  # rounding of the scales moves a few


def test_a_limit_is_kept_from_a_rounded_start():
    net, context = rounded()
    limit = len(container.dumps(net, strip=True)) * 3 // 4
    method = ll.SelfCompression(steps=80, rounds=2, batch_size=16, exponents="short", max_bytes=limit)
    apply_checked_(method, net, context)
    assert len(container.dumps(net, strip=True)) <= limit


def test_unknown_exponents_are_refused():
    with pytest.raises(RecipeError, match="exponents"):
        ll.SelfCompression(exponents="real")
