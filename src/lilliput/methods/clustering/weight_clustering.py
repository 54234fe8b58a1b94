"""Weight clustering: the weights of a group share a few values.

Trained-quantization stage of Deep Compression, Han et al. (2016), https://arxiv.org/abs/1510.00149, section 3, with the
exact optimum on a line (Wang and Song, 2011, "Ckmeans.1d.dp") in place of Lloyd's iterations.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Encoding, Sharing
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, Pass, PassResult, check_choice, check_range
from lilliput.graph.layers import output_axis
from lilliput.ops.clustering_rows import optimal_1d_rows


@dataclass(frozen=True, kw_only=True)
class WeightClustering(Pass):
    """At most `n_clusters` shared values for each layer, or for each output channel (`per="channel"`).

    "neuron" is SIC's word for the same rows: the incoming weights of one output. Zeros that a mask made stay zero and
    take no cluster. On weights that are already on a grid, the integers are clustered and the centroids rounded to it.
    """

    name: ClassVar[str] = "weight_clustering"
    summary: ClassVar[str] = "let weights share a few values (exact one-dimensional k-means)"
    citations: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/1510.00149",)

    n_clusters: int = 16
    per: str = "layer"

    def __post_init__(self) -> None:
        check_range("weight_clustering n_clusters", self.n_clusters, 1, 65535)
        check_choice("weight_clustering per", self.per, ("layer", "channel", "neuron"))
        super().__post_init__()

    def apply_(self, net: Artifact, context: Context) -> PassResult:
        chosen, skipped = self.pick(net)
        changed: dict[str, str] = {}
        with context.progress.task("cluster weights", len(chosen)) as advance:
            for path, weight in chosen.items():
                own = self.for_layer(path)
                axis = None if own.per == "layer" else output_axis(net.module.get_submodule(path))
                before = net.encoding(weight)
                after = cluster(before, own.n_clusters, axis)
                if torch.equal(before.decode(), after.decode()) and before.sharing is not None:
                    skipped[path] = f"it has no more than {own.n_clusters} values already"
                else:
                    net.encode_(weight, after)
                    changed[path] = after.describe()
                advance(1)
        return PassResult(changed=changed, skipped=skipped)


def cluster(encoding: Encoding, n_clusters: int, axis: int | None) -> Encoding:
    """The same mask and grid, and tables of at most `n_clusters` values for the tensor or for each slice of `axis`."""
    grid, mask = encoding.grid, encoding.mask
    source = encoding.decode() if grid is None else encoding.integers()

    def rows(tensor: torch.Tensor) -> np.ndarray:
        return (tensor.unsqueeze(0) if axis is None else tensor.movedim(axis, 0)).flatten(1).cpu().numpy()

    try:
        found = optimal_1d_rows(rows(source), n_clusters, mask=None if mask is None else rows(mask))
    except ValueError as error:
        raise RecipeError("weight_clustering", str(error), "use fewer clusters, or per: channel") from error
    found.centroids[found.sizes == 0, 0] = 0.0  # a slice without entries has a table, too
    centroids = torch.from_numpy(found.centroids[~np.isnan(found.centroids)])
    table = torch.floor(centroids + 0.5).long() if grid is not None else centroids.float()
    labels = torch.from_numpy(found.labels)
    placed = labels.reshape(source.shape)
    if axis is not None:
        placed = labels.reshape(source.movedim(axis, 0).shape).movedim(0, axis)
    sizes = torch.from_numpy(np.maximum(found.sizes, 1))
    sharing = Sharing(indices=placed.contiguous().to(source.device), sizes=sizes.to(source.device), axis=axis)
    return encoding.with_sharing(sharing, table.to(source.device))
