"""The consolidated network as product of sums, beside the dense one."""

from typing import Any

import torch

from lilliput.core.artifact import Artifact
from lilliput.data.select import AcceptanceSet
from lilliput.graph.product_of_sums import product_of_sums
from lilliput.graph.trace import Graph
from lilliput.measure.macs import count_macs, of_layers
from lilliput.methods.consolidation.engine import Judge

COUNTS = ("multiplies", "product_of_sums_multiplies", "effective_additions")
BATCH = 250


def as_product_of_sums(net: Artifact, graph: Graph, samples: AcceptanceSet, judge: Judge) -> dict[str, Any]:
    """Operations of the layers; how far outputs differ on these samples, and on how many the answer is as good."""
    module, place = product_of_sums(net, graph), net.device
    table = of_layers(count_macs(graph, net), graph)
    differ, largest, same = 0.0, 0.0, 0
    for start in range(0, len(samples), BATCH):
        part = slice(start, min(start + BATCH, len(samples)))
        with torch.no_grad():
            dense, sums = (m(samples.inputs[part].to(place)).cpu() for m in (net.module, module))
        differ, largest = max(differ, float((dense - sums).abs().max())), max(largest, float(dense.abs().max()))
        same += int((judge(dense, samples, part) == judge(sums, samples, part)).sum())
    counts = {name: int(table.total(name).value) for name in COUNTS}
    return counts | {"samples": len(samples), "same": same, "largest_difference": differ, "largest_output": largest}
