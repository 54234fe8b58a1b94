# /// script
# dependencies = [
#   "torch==2.13.0", "torch-pruning==1.6.1", "numpy==2.4.6", "onnx==1.23.2", "onnxscript==0.7.2", "setuptools==80.9.0",
# ]
# ///
"""Torch-Pruning (DepGraph): half of the MACs by channels, nothing trained; "with BN": statistics taken anew.

"all groups" is the tool as its users call it. The other rows leave every channel alone that meets a shortcut. Taylor
needs a loss: the cross-entropy of the network's own answers, for there are no labels.
"""

# pyright: reportMissingImports=false

import time

import torch
from exchange import Made, Row, fold_, folder, images, network, reestimate_, run
from torch.nn import functional as F

SHARES = {0.5: "", 0.53: ", narrower"}


def widths_fixed(model, scope):
    if scope == "all":
        return [model.linear]
    blocks = [*model.layer1, *model.layer2, *model.layer3]
    return [model.conv1, model.linear, *(block.conv2 for block in blocks)]


def pruned(scope, criterion, share):
    import torch_pruning as tp

    model, calibration = network("network"), torch.from_numpy(images("calibration"))
    example = calibration[:1]
    before, _ = tp.utils.count_ops_and_params(model, example)
    importance = tp.importance.MagnitudeImportance(p=2) if criterion == "L2" else tp.importance.TaylorImportance()
    pruner = tp.pruner.BasePruner(
        model, example, importance=importance, pruning_ratio=share, global_pruning=criterion == "Taylor",
        ignored_layers=widths_fixed(model, scope), max_pruning_ratio=0.9,
    )  # fmt: skip
    if criterion == "Taylor":
        for batch in calibration.split(128):
            outputs = model(batch)
            F.cross_entropy(outputs, outputs.detach().argmax(1)).backward()
    pruner.step()
    model(example)
    after, _ = tp.utils.count_ops_and_params(model, example)
    return model, calibration, after / before


def exported(model, example):
    path = folder() / "exported.onnx"
    batch = torch.export.Dim("batch", min=2)
    torch.onnx.export(
        fold_(model).eval(), (example,), path, dynamo=True, external_data=False, dynamic_shapes=({0: batch},),
        verbose=False,
    )  # fmt: skip
    return path.read_bytes()


def made(scope, criterion, share, *, again):
    started = time.process_time()
    model, calibration, macs = pruned(scope, criterion, share)
    if again:
        reestimate_(model, calibration)
    facts = {"macs": macs, "cpu_s": round(time.process_time() - started, 2)}
    onnx = exported(model, calibration[:2])
    return Made(artifact=onnx, onnx=onnx, facts=facts)


def rows():
    yield Row(group="channels", name="L2, all groups", make=lambda: made("all", "L2", 0.3, again=True))
    for criterion in ("L2", "Taylor"):
        for share, words in SHARES.items():
            for again in (False, True):
                name = f"{criterion}, inner channels{words}{', with BN' if again else ''}"
                yield Row(
                    group="channels", name=name,
                    make=lambda c=criterion, s=share, a=again: made("inner", c, s, again=a),
                )  # fmt: skip


if __name__ == "__main__":
    run(list(rows()), ("torch-pruning", "torch", "onnx", "onnxscript"))
