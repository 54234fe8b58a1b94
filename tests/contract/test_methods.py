"""Every built-in method keeps the contract, alone and in every order."""

import itertools

import pytest
import torch

from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, Pass, apply_checked_
from lilliput.methods import BUILT_IN
from lilliput.methods.clustering.weight_clustering import WeightClustering
from lilliput.methods.consolidation.pruning import AcceptancePruning
from lilliput.methods.consolidation.sic import Sic
from lilliput.methods.learned_functions.replace_activations import ReplaceActivations
from lilliput.methods.learned_functions.share_functions import ShareFunctions
from lilliput.methods.normalization.batchnorm import FoldBatchNorm, ReestimateBatchNorm
from lilliput.methods.pruning.channel import ChannelPruning
from lilliput.methods.pruning.gradual import GradualPruning
from lilliput.methods.pruning.gradual_channels import GradualChannelPruning
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.pruning.narrow import Narrow
from lilliput.methods.quantization.aware_training import QuantizationAwareTraining
from lilliput.methods.quantization.bias_correction import BiasCorrection
from lilliput.methods.quantization.coarse import CoarseGrids
from lilliput.methods.quantization.equalization import CrossLayerEqualization
from lilliput.methods.quantization.mixed_precision import MixedPrecision
from lilliput.methods.quantization.post_training import Quantization
from lilliput.methods.second_order.pruning import SecondOrderPruning
from lilliput.methods.second_order.rate_distortion import RateDistortion
from lilliput.methods.self_compression.self_compression import SelfCompression
from lilliput.methods.tuning.distill import Distill
from lilliput.methods.tuning.fine_tune import FineTune
from lilliput.methods.weight_generation.generation import WeightGeneration
from lilliput.testing import TINY, check_artifact, check_method, tiny_model, tiny_task

SETTINGS: dict[type[Pass], list[Pass]] = {
    FoldBatchNorm: [FoldBatchNorm()],
    ReestimateBatchNorm: [ReestimateBatchNorm(samples=64, batch_size=16)],
    ReplaceActivations: [
        ReplaceActivations(),
        ReplaceActivations(kind="table", points=9, share="layer", limit=3.0),
        ReplaceActivations(kind="psa", limit="batch_norm"),
        ReplaceActivations(kind="cubic", share="group", groups=2),
        ReplaceActivations(kind="bspline", init="paper"),
    ],
    ShareFunctions: [ShareFunctions(tables=2)],
    MagnitudePruning: [
        MagnitudePruning(),
        MagnitudePruning(sparsity=0.7, scope="layer"),
        MagnitudePruning(sparsity=0.3, scope="global"),
    ],
    GradualPruning: [
        GradualPruning(epochs=2, batch_size=16, every=1),
        GradualPruning(sparsity=0.5, scope="global", start=0.2, end=1.0, epochs=1, batch_size=16, keep="last"),
        GradualPruning(scope="uniform", epochs=1, batch_size=16),
    ],
    ChannelPruning: [
        ChannelPruning(amount=0.5),
        ChannelPruning(macs=0.8, criterion="second_order", most=0.8),
        ChannelPruning(criterion="l2", compensate=False),
        ChannelPruning(criterion="batchnorm", multiple=4, max_macs=2000),
        ChannelPruning(macs=0.9, lanes=4, most=1.0),
    ],
    GradualChannelPruning: [
        GradualChannelPruning(macs=0.8, rounds=2, epochs=1, batch_size=16),
        GradualChannelPruning(max_macs=2000, rounds=1, epochs=1, batch_size=16, criterion="l2", compensate=False),
    ],
    Narrow: [Narrow(), Narrow(factor=0.6, criterion="l2", compensate=False)],
    WeightClustering: [
        WeightClustering(),
        WeightClustering(n_clusters=3, per="channel"),
        WeightClustering(n_clusters=1, per="neuron"),
    ],
    Sic: [
        Sic(),
        Sic(mode="exact", strict=True),
        Sic(error_budget=0.1, held_out=0.0, weighting="none", refit=False, drop_dead=False, finish=True),
    ],
    AcceptancePruning: [
        AcceptancePruning(),
        AcceptancePruning(strategy="per_layer_binary_search", include_bias=True),
        AcceptancePruning(strategy="per_neuron_binary_values", max_passes=2),
    ],
    WeightGeneration: [
        WeightGeneration(),
        WeightGeneration(values=5, share="layer", importance="none", weight_per="tensor", generations=50),
        WeightGeneration(solver="free", values=9, weight_bits=6),
        WeightGeneration(solver="exact", share="layer", importance="none"),
        WeightGeneration(share="layer", max_loss=0.5, values=6, samples=16),
    ],
    FineTune: [FineTune(epochs=2, batch_size=16)],
    Distill: [Distill(epochs=2, batch_size=16)],
    SelfCompression: [
        SelfCompression(epochs=2, batch_size=16, rounds=2),
        SelfCompression(steps=6, batch_size=16, rounds=2, size="bits", gamma=1.0, ramp=0.5, per=2, settle=0.0),
        SelfCompression(steps=6, batch_size=16, rounds=1, per="tensor", max_bytes=4000, start_bits=3.5),
        SelfCompression(steps=6, batch_size=16, rounds=2, max_drop=50.0),
    ],
    Quantization: [
        Quantization(),
        Quantization(
            weight_bits=4, weight_per="tensor", symmetric=False, weight_range="mse", activation_range="percentile"
        ),
        Quantization(weight_bits=2, activation_bits=0),
        Quantization(weight_bits=10, activation_bits=16),
        Quantization(weight_bits=5, signed=True, activation_range="min_max", overrides={"[3-5h]*": {"weight_bits": 8}}),
        Quantization(weight_bits=3, weight_range="output", rounding="output", size_weight=0.01),
        Quantization(weight_bits=6, weight_range="output", weight_per="tensor", symmetric=False, activation_bits=0),
        Quantization(requantization="power_of_two"),
    ],
    CoarseGrids: [CoarseGrids(), CoarseGrids(step=1.0, weight_bits=2, bias_bits=0)],
    QuantizationAwareTraining: [
        QuantizationAwareTraining(epochs=2, batch_size=16),
        QuantizationAwareTraining(epochs=1, batch_size=16, weight_bits=2, activation_bits=0, weight_per="tensor"),
        QuantizationAwareTraining(epochs=1, batch_size=16, weight_bits=10, activation_bits=12, keep="last"),
        QuantizationAwareTraining(epochs=1, batch_size=16, weight_bits=8, requantization="power_of_two"),
    ],
    BiasCorrection: [BiasCorrection(), BiasCorrection(match="mean")],
    CrossLayerEqualization: [CrossLayerEqualization()],
    SecondOrderPruning: [SecondOrderPruning(), SecondOrderPruning(sparsity=0.7, scope="layer", samples=32)],
    RateDistortion: [
        RateDistortion(price=1e-4),
        RateDistortion(max_bytes=100_000, bias_bits=0),
        RateDistortion(weight_bits=3, samples=32),
        RateDistortion(price=1e-4, learned_steps=3),
    ],
    MixedPrecision: [MixedPrecision(average_bits=20.0, choices=(2, 8), size_weights=(0.0,), samples=8)],
}
FILLERS = (MagnitudePruning(sparsity=0.4, scope="layer"), WeightClustering(n_clusters=4), Quantization())
CHANNEL_FILLERS = (
    MagnitudePruning(sparsity=0.4, scope="layer"),
    WeightClustering(n_clusters=4, per="channel"),
    Quantization(weight_bits=6),
)
OTHERS = [other for _, *others in SETTINGS.values() for other in others]
MANIFOLD = ("shared", "grouped", "residual")
"""What methods stumble over is in these: shared weights, groups, branches, norms, additions."""
REST = (FoldBatchNorm(), ReestimateBatchNorm(samples=64, batch_size=16), FineTune(epochs=1, batch_size=16))


def test_every_built_in_method_is_listed_here() -> None:
    assert set(SETTINGS) == set(BUILT_IN)


def named(method: Pass) -> str:
    return f"{method.name}-{len(method.settings())}"


@pytest.mark.parametrize("method", [first for first, *_ in SETTINGS.values()], ids=named)
def test_method_keeps_the_contract(method: Pass) -> None:
    results = check_method(method)
    assert set(results) == set(TINY)


@pytest.mark.parametrize("method", OTHERS, ids=named)
def test_method_keeps_the_contract_with_other_settings(method: Pass) -> None:
    results = check_method(method, MANIFOLD)
    assert set(results) == set(MANIFOLD)


@pytest.mark.slow
@pytest.mark.parametrize("method", OTHERS, ids=named)
def test_method_keeps_the_contract_with_other_settings_on_plainer_networks(method: Pass) -> None:
    plainer = tuple(name for name in TINY if name not in MANIFOLD)
    results = check_method(method, plainer)
    assert set(results) == set(plainer)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("fillers", [FILLERS, CHANNEL_FILLERS], ids=["layer", "channel"])
def test_slot_fillers_in_every_order_fill_the_same_slots(fillers: tuple[Pass, ...], name: str) -> None:
    model, task = tiny_model(name), tiny_task()
    original = Artifact.of(model, task.spec)
    stored: set[tuple[tuple[str, bool, bool, int], ...]] = set()
    for order in itertools.permutations(fillers):
        net = original.copy()
        context = Context.of(task, model)
        for method in (FoldBatchNorm(), *order):
            apply_checked_(method, net, context)
        check_artifact(net, model, " > ".join(m.name for m in order), retrace=not stored)
        weights = {n: e for n, e in net.encodings.items() if n.endswith("weight")}
        stored.add(
            tuple(
                (n, e.mask is not None, e.sharing is not None, int(e.grid.bit_width.max()) if e.grid else 0)
                for n, e in sorted(weights.items())
            )
        )
        assert all(e.mask is not None and e.sharing is not None and e.grid is not None for e in weights.values())
        for e in weights.values():
            assert e.mask is not None
            assert int((~e.mask).sum()) == round(0.4 * e.mask.numel())
    assert len(stored) == 1


@pytest.mark.parametrize("name", ["batch_norm", "conv1d", "residual"])
@pytest.mark.parametrize("pair", list(itertools.permutations(REST, 2)), ids=lambda p: f"{p[0].name}>{p[1].name}")
def test_the_other_methods_work_in_every_order(pair: tuple[Pass, Pass], name: str) -> None:
    """`check_method` tries every method before and after those that fill slots; these are the pairs without them."""
    model, task = tiny_model(name), tiny_task()
    net, context = Artifact.of(model, task.spec), Context.of(task, model)
    for method in pair:
        apply_checked_(method, net, context)
    check_artifact(net, model, f"{pair[0].name} > {pair[1].name}")


@pytest.mark.parametrize("name", ["residual", "shared", "grouped"])
def test_fine_tuning_after_quantization_is_refused_with_a_remedy(name: str) -> None:
    model, task = tiny_model(name), tiny_task()
    net, context = Artifact.of(model, task.spec), Context.of(task, model)
    apply_checked_(Quantization(), net, context)
    before = container.dumps(net)
    with pytest.raises(RecipeError, match="put fine_tune before quantization"):
        apply_checked_(FineTune(epochs=1, batch_size=16), net, context)
    assert container.dumps(net) == before


def test_results_do_not_depend_on_the_global_generator() -> None:
    model, task = tiny_model("residual"), tiny_task()
    files: list[bytes] = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        net = Artifact.of(model, task.spec)
        apply_checked_(FineTune(epochs=1, batch_size=16), net, Context.of(task, model))
        files.append(container.dumps(net))
    assert files[0] == files[1]
