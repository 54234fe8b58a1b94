"""The methods that come with Lilliput. A new one is a file in a family's folder and a line here."""

from lilliput.core.method import Pass
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

BUILT_IN: tuple[type[Pass], ...] = (
    FoldBatchNorm,
    ReestimateBatchNorm,
    ReplaceActivations,
    ShareFunctions,
    MagnitudePruning,
    GradualPruning,
    ChannelPruning,
    GradualChannelPruning,
    Narrow,
    WeightClustering,
    WeightGeneration,
    Sic,
    AcceptancePruning,
    FineTune,
    Distill,
    CrossLayerEqualization,
    BiasCorrection,
    SecondOrderPruning,
    RateDistortion,
    MixedPrecision,
    CoarseGrids,
    Quantization,
    QuantizationAwareTraining,
    SelfCompression,
)
