"""What benchmarks of the published ResNet-20 share: data without labels, accuracy, latency beside ONNX Runtime fp32,
and the loop over rows that are kept in a file."""

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from lilliput.core.artifact import Artifact
from lilliput.core.method import Context, apply_checked_
from lilliput.core.task import Data
from lilliput.export import onnx
from lilliput.measure.latency import interleaved, session_runner
from lilliput.measure.runtime import predict, session
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.report.result import environment


def unlabelled(task, count, seed=0):
    """The task with `count` training images drawn with this seed, no label, and no test images."""
    train = task.data("train")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:count]
    data = Data(train.inputs[order], torch.zeros(count, dtype=torch.long), train.transform)
    return replace(task.without("test"), train=data, validation=data)


def answers(run, task):
    """bool [10000]: which test images are answered right."""
    with torch.inference_mode():
        return torch.cat([run(x).argmax(1) == y for x, y in task.data("test").batches(250)])


def compressed(model, task, passes):
    """The artifact after the passes, their notes, and CPU seconds."""
    started = time.process_time()
    net, context = Artifact.of(model, task.spec), Context.of(task, model)
    notes = []
    for method in passes:
        notes += apply_checked_(method, net, context).notes
    return net, notes, time.process_time() - started


def file_runner(path, image):
    """What times an ONNX file on one image, and what runs it on a batch of any size."""
    opened = session(path)
    runner = session_runner(opened, {opened.get_inputs()[0].name: image.numpy()}, threads=1)
    return runner, lambda x: torch.from_numpy(predict(opened, x.numpy()))


def exported_runner(net, image):
    """What times the exported network on one image, in ONNX Runtime on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        onnx.export(net, Path(folder) / "net.onnx", target="onnx-x86")
        return file_runner(Path(folder) / "net.onnx", image)[0]


def published_runner(model, task, image):
    return exported_runner(compressed(model, task, [FoldBatchNorm()])[0], image)


def times_faster(runner, published):
    """(milliseconds, ratio) in turn with the published network: the two alone, more would take each other's caches."""
    timings = interleaved({"published": published, "this": runner}, repeats=100, min_time_ms=5)
    return timings.latency("this").value, 1 / timings.ratio("this", "published").value


def keep_rows(results, rows, measure):
    """Each row of {name: passes} measured, written to the file `results`, and its numbers printed.

    With an argument on the command line only rows with that part in their name; the others stay in the file.
    """
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    found = json.loads(results.read_text()) if wanted and results.is_file() else {"rows": {}}
    for name, passes in rows.items():
        if wanted in name:
            row = found["rows"][name] = measure(passes)
            found["environment"] = environment()
            results.write_text(json.dumps(found, indent=1) + "\n")
            print(f"{name:56}", *(f"{k} {v:.6g}" for k, v in row.items() if isinstance(v, int | float)), flush=True)
