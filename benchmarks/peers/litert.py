# /// script
# dependencies = [
#   "torch==2.13.0", "litert-torch==0.10.0", "ai-edge-quantizer==0.10.0", "ai-edge-litert==2.3.0", "numpy==2.4.6",
# ]
# [tool.lilliput]
# test_images = true
# ///
"""LiteRT: litert-torch converts, ai-edge-quantizer quantizes by its own recipes, the interpreter answers."""

# pyright: reportMissingImports=false

import functools

import numpy as np
import torch
from exchange import Made, Row, folder, images, network, run


@functools.cache
def converted():
    import litert_torch

    path = folder() / "float.tflite"
    litert_torch.convert(network(), (torch.from_numpy(images("calibration")[:1]),)).export(str(path))
    return str(path)


def made(recipe):
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer import recipe as recipes

    tool = quantizer.Quantizer(converted(), getattr(recipes, recipe)())
    calibration = None
    if tool.need_calibration:
        samples = [{"args_0": image[None]} for image in images("calibration")]
        calibration = tool.calibrate({"serving_default": samples}, num_threads=1)
    data = bytes(tool.quantize(calibration).quantized_model)
    return Made(artifact=data, logits=lambda: answers(data))


def answers(data):
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_content=data, num_threads=1)
    runner.allocate_tensors()
    given, wanted = runner.get_input_details()[0], runner.get_output_details()[0]
    found = []
    for image in images("test"):
        runner.set_tensor(given["index"], quantized(image[None], given))
        runner.invoke()
        found.append(runner.get_tensor(wanted["index"])[0])
    return np.stack(found).astype(np.float32)


def quantized(image, given):
    """Recipes may make the input int8."""
    if given["dtype"] == np.float32:
        return image
    scale, zero = given["quantization"]
    return np.clip(np.round(image / scale) + zero, -128, 127).astype(given["dtype"])


if __name__ == "__main__":
    converted()  # no row's time: what is compared is quantization
    rows = [
        Row(group="small", name="int4 weights, float activations", make=lambda: made("weight_only_wi4_afp32")),
        Row(group="near-lossless", name="int8 weights, float activations", make=lambda: made("weight_only_wi8_afp32")),
        Row(group="near-lossless", name="int8 weights and activations", make=lambda: made("static_wi8_ai8")),
    ]
    run(rows, ("litert-torch", "ai-edge-quantizer", "ai-edge-litert", "torch"))
