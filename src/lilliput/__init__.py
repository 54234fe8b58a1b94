"""Lilliput makes neural networks small enough for the device they must run on, and proves what it says.

import lilliput as ll

task = ll.Task.classification(train=..., validation=..., test=...)
result = ll.compress(model, task, max_drop="0.5pt")
print(result.table())
result.save("net.lil")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lilliput.auto.analyse import analyse as analyse
    from lilliput.auto.check import check as check
    from lilliput.auto.compress import apply as apply
    from lilliput.auto.compress import compress as compress
    from lilliput.auto.compress import default_recipe as default_recipe
    from lilliput.auto.load import load as load
    from lilliput.auto.unlabelled import unlabelled as unlabelled
    from lilliput.core.artifact import Artifact as Artifact
    from lilliput.core.artifact import InputSpec as InputSpec
    from lilliput.core.cost import CostTable as CostTable
    from lilliput.core.cost import Measurement as Measurement
    from lilliput.core.encoding import Encoding as Encoding
    from lilliput.core.encoding import Grid as Grid
    from lilliput.core.encoding import Sharing as Sharing
    from lilliput.core.errors import ArtifactError as ArtifactError
    from lilliput.core.errors import DataError as DataError
    from lilliput.core.errors import ExportError as ExportError
    from lilliput.core.errors import LilliputError as LilliputError
    from lilliput.core.errors import RecipeError as RecipeError
    from lilliput.core.errors import UsageError as UsageError
    from lilliput.core.errors import VerificationError as VerificationError
    from lilliput.core.guard import MaxDrop as MaxDrop
    from lilliput.core.guard import MinAgreement as MinAgreement
    from lilliput.core.learned_activation import LearnedActivation as LearnedActivation
    from lilliput.core.method import Context as Context
    from lilliput.core.method import Pass as Pass
    from lilliput.core.method import PassResult as PassResult
    from lilliput.core.progress import Progress as Progress
    from lilliput.core.score import Score as Score
    from lilliput.core.target import Target as Target
    from lilliput.core.task import Data as Data
    from lilliput.core.task import Task as Task
    from lilliput.data.safety import SafetySet as SafetySet
    from lilliput.data.safety import safety_set as safety_set
    from lilliput.graph.product_of_sums import product_of_sums as product_of_sums
    from lilliput.methods.clustering.weight_clustering import WeightClustering as WeightClustering
    from lilliput.methods.consolidation.pruning import AcceptancePruning as AcceptancePruning
    from lilliput.methods.consolidation.sic import Sic as Sic
    from lilliput.methods.learned_functions.replace_activations import ReplaceActivations as ReplaceActivations
    from lilliput.methods.learned_functions.share_functions import ShareFunctions as ShareFunctions
    from lilliput.methods.normalization.batchnorm import FoldBatchNorm as FoldBatchNorm
    from lilliput.methods.normalization.batchnorm import ReestimateBatchNorm as ReestimateBatchNorm
    from lilliput.methods.pruning.channel import ChannelPruning as ChannelPruning
    from lilliput.methods.pruning.gradual import GradualPruning as GradualPruning
    from lilliput.methods.pruning.gradual_channels import GradualChannelPruning as GradualChannelPruning
    from lilliput.methods.pruning.magnitude import MagnitudePruning as MagnitudePruning
    from lilliput.methods.pruning.narrow import Narrow as Narrow
    from lilliput.methods.quantization.aware_training import QuantizationAwareTraining as QuantizationAwareTraining
    from lilliput.methods.quantization.bias_correction import BiasCorrection as BiasCorrection
    from lilliput.methods.quantization.coarse import CoarseGrids as CoarseGrids
    from lilliput.methods.quantization.equalization import CrossLayerEqualization as CrossLayerEqualization
    from lilliput.methods.quantization.mixed_precision import MixedPrecision as MixedPrecision
    from lilliput.methods.quantization.post_training import Quantization as Quantization
    from lilliput.methods.second_order.pruning import SecondOrderPruning as SecondOrderPruning
    from lilliput.methods.second_order.rate_distortion import RateDistortion as RateDistortion
    from lilliput.methods.self_compression.self_compression import SelfCompression as SelfCompression
    from lilliput.methods.tuning.distill import Distill as Distill
    from lilliput.methods.tuning.fine_tune import FineTune as FineTune
    from lilliput.methods.weight_generation.generation import WeightGeneration as WeightGeneration
    from lilliput.pipeline.recipe import Recipe as Recipe
    from lilliput.pipeline.recipe import Step as Step
    from lilliput.report.result import Result as Result

_HOMES = {
    "lilliput.auto.analyse": ("analyse",),
    "lilliput.auto.check": ("check",),
    "lilliput.auto.load": ("load",),
    "lilliput.auto.compress": ("apply", "compress", "default_recipe"),
    "lilliput.auto.unlabelled": ("unlabelled",),
    "lilliput.core.artifact": ("Artifact", "InputSpec"),
    "lilliput.core.cost": ("CostTable", "Measurement"),
    "lilliput.core.encoding": ("Encoding", "Grid", "Sharing"),
    "lilliput.core.errors": (
        "ArtifactError",
        "DataError",
        "ExportError",
        "LilliputError",
        "RecipeError",
        "UsageError",
        "VerificationError",
    ),
    "lilliput.core.guard": ("MaxDrop", "MinAgreement"),
    "lilliput.core.learned_activation": ("LearnedActivation",),
    "lilliput.core.method": ("Context", "Pass", "PassResult"),
    "lilliput.core.progress": ("Progress",),
    "lilliput.core.score": ("Score",),
    "lilliput.core.target": ("Target",),
    "lilliput.core.task": ("Data", "Task"),
    "lilliput.data.safety": ("SafetySet", "safety_set"),
    "lilliput.graph.product_of_sums": ("product_of_sums",),
    "lilliput.methods.clustering.weight_clustering": ("WeightClustering",),
    "lilliput.methods.weight_generation.generation": ("WeightGeneration",),
    "lilliput.methods.consolidation.pruning": ("AcceptancePruning",),
    "lilliput.methods.consolidation.sic": ("Sic",),
    "lilliput.methods.learned_functions.replace_activations": ("ReplaceActivations",),
    "lilliput.methods.learned_functions.share_functions": ("ShareFunctions",),
    "lilliput.methods.normalization.batchnorm": ("FoldBatchNorm", "ReestimateBatchNorm"),
    "lilliput.methods.pruning.channel": ("ChannelPruning",),
    "lilliput.methods.pruning.gradual": ("GradualPruning",),
    "lilliput.methods.pruning.gradual_channels": ("GradualChannelPruning",),
    "lilliput.methods.pruning.magnitude": ("MagnitudePruning",),
    "lilliput.methods.pruning.narrow": ("Narrow",),
    "lilliput.methods.quantization.aware_training": ("QuantizationAwareTraining",),
    "lilliput.methods.quantization.bias_correction": ("BiasCorrection",),
    "lilliput.methods.quantization.coarse": ("CoarseGrids",),
    "lilliput.methods.quantization.equalization": ("CrossLayerEqualization",),
    "lilliput.methods.quantization.mixed_precision": ("MixedPrecision",),
    "lilliput.methods.quantization.post_training": ("Quantization",),
    "lilliput.methods.second_order.pruning": ("SecondOrderPruning",),
    "lilliput.methods.second_order.rate_distortion": ("RateDistortion",),
    "lilliput.methods.self_compression.self_compression": ("SelfCompression",),
    "lilliput.methods.tuning.distill": ("Distill",),
    "lilliput.methods.tuning.fine_tune": ("FineTune",),
    "lilliput.pipeline.recipe": ("Recipe", "Step"),
    "lilliput.report.result": ("Result",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__version__ = "0.1.0"
__all__ = ["__version__", *sorted(_HOME_OF)]  # noqa: PLE0604 # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Names load when they are first used: `import lilliput` stays about as fast as `import torch`."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'lilliput' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
