# /// script
# dependencies = ["torch==2.13.0", "torchvision==0.28.0", "aimet-torch==2.42.0", "numpy==2.4.6"]
# [tool.lilliput]
# test_images = true
# ///
"""AIMET: AdaRound to 4-bit weights, 400 steps a layer, with float and with 8-bit activations.

AIMET simulates and writes no small file. The file here is ours, in its favour: integers of 4 bits, two in a byte,
scales of channels and biases in float16; "w4" is judged by what is decoded from it.
"""

# pyright: reportMissingImports=false

import functools
import json

import numpy as np
import torch
from exchange import Made, Row, folder, images, network, run, without_compiled_torchvision

STEPS = 400
BATCH = 64


@functools.cache
def rounded():
    """The prepared network with its weights on their grids, and {weight: scales [channels]}."""
    without_compiled_torchvision()
    from aimet_torch.adaround.adaround_weight import Adaround, AdaroundParameters
    from aimet_torch.model_preparer import prepare_model

    torch.manual_seed(0)
    calibration = torch.from_numpy(images("calibration"))
    model = prepare_model(network()).eval()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(calibration), batch_size=BATCH)
    settings = AdaroundParameters(
        loader, len(loader), default_num_iterations=STEPS, forward_fn=lambda net, batch: net(batch[0])
    )
    found = Adaround.apply_adaround(model, calibration[:1], settings, str(folder()), "w4", default_param_bw=4)
    return found.eval(), scales()


def scales():
    path = next(folder().glob("w4*.encodings"))
    entries = json.loads(path.read_text())
    entries = entries.get("param_encodings", entries)
    return {name: np.array([channel["scale"] for channel in entry], np.float64) for name, entry in entries.items()}


def packed(state, grids):
    """The file, and the weights that it holds."""
    parts, found = [], {}
    for name, values in state.items():
        if name not in grids:
            parts.append(values.astype(np.float16))
            found[name] = parts[-1].astype(np.float32)
            continue
        scale = grids[name].astype(np.float16)
        column = scale.astype(np.float32).reshape(-1, *[1] * (values.ndim - 1))
        integers = np.round(values / column).clip(-8, 7).astype(np.int8)
        flat = (integers.reshape(-1) + 8).astype(np.uint8)
        parts += [scale, flat[::2] * 16 + flat[1::2]]
        found[name] = integers.astype(np.float32) * column
    return b"".join(part.tobytes() for part in parts), found


def weights_only():
    model, grids = rounded()
    data, weights = packed({name: value.detach().numpy() for name, value in model.state_dict().items()}, grids)
    return Made(artifact=data, weights=weights)


def with_activations():
    from aimet_torch.quantsim import QuantizationSimModel

    model, grids = rounded()
    data, _ = packed({name: value.detach().numpy() for name, value in model.state_dict().items()}, grids)
    calibration = torch.from_numpy(images("calibration"))
    sim = QuantizationSimModel(model, calibration[:1], default_param_bw=4, default_output_bw=8)
    sim.set_and_freeze_param_encodings(str(next(folder().glob("w4*.encodings"))))
    with torch.no_grad():
        sim.compute_encodings(lambda net, _: [net(batch) for batch in calibration.split(BATCH)], None)

    @torch.no_grad()
    def logits():
        return torch.cat([sim.model(batch) for batch in torch.from_numpy(images("test")).split(250)]).numpy()

    return Made(artifact=data, logits=logits)


if __name__ == "__main__":
    rows = [
        Row(group="4-bit", name="AdaRound w4", make=weights_only),
        Row(group="4-bit", name="AdaRound w4, on from there to a8", make=with_activations),
    ]
    run(rows, ("aimet-torch", "torch", "numpy"))
