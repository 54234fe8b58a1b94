"""Plain int8 of the published ResNet-20: accuracy, file, latency against ONNX Runtime fp32 in the same process.

    LILLIPUT_TEST_DATA=folder python benchmarks/resnet20_int8.py

Folding and 8-bit quantization only: no training, 512 calibration images of the training set. Accuracy is that of the
ONNX file on the 10,000 test images, run by ONNX Runtime. Writes results/resnet20_int8.json.
"""

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from published_resnet20 import make

from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.method import Context, apply_checked_
from lilliput.export import onnx
from lilliput.export.onnx_check import check_with_runtime
from lilliput.measure.latency import interleaved, session_runner
from lilliput.measure.runtime import predict, session
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.quantization.post_training import Quantization
from lilliput.report.result import environment

RESULTS = Path(__file__).parent / "results" / "resnet20_int8.json"


def score(run, data):
    right = 0
    for x, y in data.batches(256):
        right += int((np.asarray(predict(run, x.numpy())).argmax(1) == y.numpy()).sum())
    return 100 * right / len(data)


def main():
    torch.set_num_threads(1)
    model, task = make()
    started = time.process_time()
    net = Artifact.of(model, task.spec)
    context = Context.of(task, model)
    for method in (FoldBatchNorm(), Quantization()):
        apply_checked_(method, net, context)
    seconds = time.process_time() - started
    with tempfile.TemporaryDirectory() as folder:
        paths = {"fp32": Path(folder) / "fp32.onnx", "int8": Path(folder) / "int8.onnx"}
        onnx.export(Artifact.of(model, task.spec), paths["fp32"], target="onnx-x86")
        onnx.export(net, paths["int8"], target="onnx-x86")
        runs = {name: session(path, threads=1) for name, path in paths.items()}
        test = task.data("test")
        found = {
            "compress_cpu_s": round(seconds, 2),
            "lil_bytes": len(container.dumps(net)),
            "int8_onnx_bytes": paths["int8"].stat().st_size,
            "fp32_onnx_bytes": paths["fp32"].stat().st_size,
            "fp32_accuracy": score(runs["fp32"], test),
            "int8_accuracy": score(runs["int8"], test),
        }
        report = check_with_runtime(paths["int8"], net, test.batch(torch.arange(1000))[0])
        found["equal_argmax_to_lil_of_1000"] = report.equal_argmax
        for batch in (1, 64):
            x = test.batch(torch.arange(batch))[0].numpy()
            runners = {n: session_runner(r, {r.get_inputs()[0].name: x}, threads=1) for n, r in runs.items()}
            timings = interleaved(runners, repeats=40, min_time_ms=5.0)
            for name in runs:
                found[f"{name}_ms_batch{batch}"] = round(timings.latency(name).value, 4)
            ratio = timings.ratio("int8", "fp32")
            found[f"latency_ratio_batch{batch}"] = round(ratio.value, 4)
            found[f"latency_ratio_batch{batch}_spread"] = [round(v, 4) for v in ratio.spread or ()]
    found["environment"] = environment()
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
