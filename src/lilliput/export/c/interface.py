"""What stands around the core in C: `net.h`, and `net_io.c`, which turns numbers into codes and outputs into answers.

`graph.answers` gives the same answers in Python, to the last bit: both compute in float64, in the same order, and round
to float32 at the same places. Only `net_io.c` has floats, and the library only where a network ends in softmax.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lilliput.core.artifact import InputSpec
from lilliput.core.errors import ExportError
from lilliput.core.program import Program, Value
from lilliput.export.c.text import filled

PIXEL_RANK = 3
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class Interface:
    """`labels` of the classes; `mean` and `std` of each channel of an image whose raw values are 0..1.

    A `threshold` says that the network rebuilds its input, and above which mean squared error a sample is an anomaly.
    """

    labels: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    threshold: float | None = None

    @staticmethod
    def of(spec: InputSpec, threshold: float | None = None) -> "Interface":
        return Interface(labels=spec.labels, mean=spec.mean, std=spec.std, threshold=threshold)


HEADER = """/* @NOTE */
#ifndef @U_H
#define @U_H
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef @X @N_in_t;
typedef @Y @N_out_t;

#define @U_INPUTS @INPUTS /* @IN_SHAPE */
#define @U_OUTPUTS @OUTPUTS /* @OUT_SHAPE */
#define @U_ARENA_BYTES @ARENA

/* One sample. Integers only; the arena is static: not for two threads at once. */
void @N_run(const @N_in_t *in, @N_out_t *out);

/* Places in the arena for who has none: @N_run(@N_input(), @N_output()). A run writes over its input. */
@N_in_t *@N_input(void);
@N_out_t *@N_output(void);

/* The rest is in @N_io.c, for those who have floats. */

/* floor(x / scale + 1/2) + zero point, saturated; NaN counts as 0. */
void @N_quantize_input(const float *x, @N_in_t *in);
void @N_dequantize_output(const @N_out_t *out, float *y);
extern const char *const @N_labels[]; /* @N_label_count of them, and 0 */
extern const int @N_label_count;
@MORE
#ifdef __cplusplus
}
#endif
#endif
"""

IO = """/* @NOTE */
#include "@N.h"
@LIBRARY
static const @S @N_scales[@COUNT] = {@SCALES};
const char *const @N_labels[] = {@LABELS0};
const int @N_label_count = @LABEL_COUNT;

static @N_in_t @N_code(float x) {
  const double v = (double)x / @IN_SCALE + 0.5;
  int32_t q = v > 1e9 ? 1000000000 : v < -1e9 ? -1000000000 : v == v ? (int32_t)v : 0;
  if ((double)q > v) q--;
  q += @IN_ZERO;
  return (@N_in_t)(q < @LOW ? @LOW : q > @HIGH ? @HIGH : q);
}

static float @N_real(const @N_out_t *out, int i) {
  return (float)(((double)out[i] - @OUT_ZERO) * (double)@N_scales[@AT]);
}

void @N_quantize_input(const float *x, @N_in_t *in) {
  for (int i = 0; i < @U_INPUTS; i++) in[i] = @N_code(x[i]);
}

void @N_dequantize_output(const @N_out_t *out, float *y) {
  for (int i = 0; i < @U_OUTPUTS; i++) y[i] = @N_real(out, i);
}
"""

PIXELS = (
    """
/* Raw pixels, channel after channel: input = (pixel / 255 - mean) / std. */
extern const float @N_mean[@CHANNELS], @N_std[@CHANNELS];
void @N_quantize_pixels(const uint8_t *pixels, @N_in_t *in);
""",
    """
const float @N_mean[@CHANNELS] = {@MEAN};
const float @N_std[@CHANNELS] = {@STD};

void @N_quantize_pixels(const uint8_t *pixels, @N_in_t *in) {
  for (int i = 0; i < @U_INPUTS; i++) {
    const int c = i / @PLANE;
    in[i] = @N_code(((float)pixels[i] / 255.0f - @N_mean[c]) / @N_std[c]);
  }
}
""",
)

CLASSIFY = (
    """
/* The class with the largest output; of equal ones the first. */
#define @U_CLASSES @CLASSES
int @N_classify(const @N_out_t *out);
""",
    """
int @N_classify(const @N_out_t *out) {
  int best = 0;
  for (int i = 1; i < @U_CLASSES; i++)
    if (@N_real(out, i) > @N_real(out, best)) best = i;
  return best;
}
""",
)

CLASSIFY_AT = (
    """
/* The class with the largest output at a place; of equal ones the first. */
#define @U_CLASSES @CLASSES
#define @U_PLACES @PLACES /* @PLACES_SHAPE */
int @N_classify_at(const @N_out_t *out, int place);
""",
    """
int @N_classify_at(const @N_out_t *out, int place) {
  int best = 0;
  for (int i = 1; i < @U_CLASSES; i++)
    if (@N_real(out, i * @U_PLACES + place) > @N_real(out, best * @U_PLACES + place)) best = i;
  return best;
}
""",
)

SOFTMAX = (
    """
/* The softmax that ends the network. */
void @N_probabilities(const @N_out_t *out, float *y);
""",
    """
void @N_probabilities(const @N_out_t *out, float *y) {
  const float most = @N_real(out, @N_classify(out));
  float sum = 0;
  for (int i = 0; i < @U_OUTPUTS; i++) sum += y[i] = expf(@N_real(out, i) - most);
  for (int i = 0; i < @U_OUTPUTS; i++) y[i] /= sum;
}
""",
)

LOG_SOFTMAX = (
    """
/* The log-softmax that ends the network. */
void @N_log_probabilities(const @N_out_t *out, float *y);
""",
    """
void @N_log_probabilities(const @N_out_t *out, float *y) {
  const float most = @N_real(out, @N_classify(out));
  float sum = 0;
  for (int i = 0; i < @U_OUTPUTS; i++) sum += expf(@N_real(out, i) - most);
  for (int i = 0; i < @U_OUTPUTS; i++) y[i] = @N_real(out, i) - most - logf(sum);
}
""",
)

ANOMALY = (
    """
/* The mean squared error with which the network rebuilds its input, and above which a sample is an anomaly. */
extern const float @N_threshold;
float @N_score(const @N_in_t *in, const @N_out_t *out);
int @N_is_anomaly(const @N_in_t *in, const @N_out_t *out);
""",
    """
const float @N_threshold = @THRESHOLD;

float @N_score(const @N_in_t *in, const @N_out_t *out) {
  double sum = 0;
  for (int i = 0; i < @U_OUTPUTS; i++) {
    const double error = (double)@N_real(out, i) - (float)(((double)in[i] - @IN_ZERO) * @IN_SCALE);
    sum += error * error;
  }
  return (float)(sum / @U_OUTPUTS);
}

int @N_is_anomaly(const @N_in_t *in, const @N_out_t *out) { return @N_score(in, out) > @N_threshold; }
""",
)


def files(program: Program, name: str, arena: int, interface: Interface) -> dict[str, str]:
    """The texts of `net.h` and `net_io.c`. Raises `ExportError` for an interface that does not fit the program."""
    x, y = program.values[program.input], program.values[program.outputs[0]]
    scales = list(y.scale)
    kind = "float" if all(float(np.float32(s)) == s for s in scales) else "double"
    parts = _parts(program, interface)
    marks = {
        **_numbers(x, y),
        "@ARENA": str(arena),
        "@MORE": "".join(header for header, _ in parts),
        "@LIBRARY": "#include <math.h>\n" if any("expf(" in code for _, code in parts) else "",
        "@AT": _scale_of(y, "i"),
        "@SCALES": _list([c_float(s) if kind == "float" else repr(float(s)) for s in scales]),
        "@COUNT": str(len(scales)),
        "@S": kind,
        "@LABELS0": "".join(f"{string(label)}, " for label in interface.labels) + "0",
        "@LABEL_COUNT": str(len(interface.labels)),
        **_meaning(x, interface),
        "@U": name.upper(),
        "@N": name,
        "@X": c_type(x),
        "@Y": c_type(y),
    }
    header = filled(HEADER.replace("@MORE", marks.pop("@MORE")), marks)
    return {f"{name}.h": header, f"{name}_io.c": filled(IO + "".join(code for _, code in parts), marks)}


def answer(program: Program, interface: Interface) -> str:
    """What the outputs are: "anomaly", "class" or "classes" (one for each place), or "numbers"."""
    y = program.values[program.outputs[0]]
    decided = any(o.kind == "argmax" and o.output == y.name for o in program)
    if interface.threshold is not None:
        return "anomaly"
    if decided or not y.shape or y.shape[0] == 1:
        return "numbers"
    return "class" if len(y.shape) == 1 else "classes"


def _parts(program: Program, interface: Interface) -> list[tuple[str, str]]:
    """Which functions this network has."""
    parts: list[tuple[str, str]] = []
    x = program.values[program.input]
    if interface.mean and len(x.shape) == PIXEL_RANK:
        _check_pixels(x, interface)
        parts.append(PIXELS)
    if interface.threshold is not None:
        _check_anomaly(program, interface.threshold)
    kind = answer(program, interface)
    parts += {"anomaly": [ANOMALY], "class": [CLASSIFY], "classes": [CLASSIFY_AT]}.get(kind, [])
    if kind == "class":
        parts += {"softmax": [SOFTMAX], "log_softmax": [LOG_SOFTMAX]}.get(program.tail, [])
    return parts


def _check_pixels(x: Value, interface: Interface) -> None:
    if {len(interface.mean), len(interface.std)} - {1, x.shape[0]}:
        found = f"{len(interface.mean)} means and {len(interface.std)} deviations for an input of shape {x.shape}"
        raise ExportError("export to C", found, "give one of each for every channel")
    if not all(abs(v) <= LARGEST for v in (*interface.mean, *interface.std)) or 0 in np.array(
        interface.std, np.float32
    ):
        found = f"means {interface.mean} and deviations {interface.std}"
        raise ExportError("export to C", found, "give numbers that float32 can hold and be divided by")


def _check_anomaly(program: Program, threshold: float) -> None:
    x, y = program.values[program.input], program.values[program.outputs[0]]
    if math.prod(x.shape) != math.prod(y.shape) or program.tail:
        found = f"a threshold, and a network of {math.prod(x.shape)} inputs and {math.prod(y.shape)} outputs"
        raise ExportError("export to C", found, "leave the threshold out: only networks that rebuild their input score")
    if not abs(threshold) <= LARGEST:  # nor NaN
        raise ExportError("export to C", f"a threshold of {threshold}", "give a number that float32 can hold")


def _numbers(x: Value, y: Value) -> dict[str, str]:
    return {
        "@INPUTS": str(math.prod(x.shape)),
        "@OUTPUTS": str(math.prod(y.shape)),
        "@IN_SHAPE": _shape(x.shape),
        "@OUT_SHAPE": _shape(y.shape),
        "@IN_SCALE": repr(float(x.scale[0])),
        "@IN_ZERO": _signed(x.zero_point),
        "@OUT_ZERO": _signed(y.zero_point),
        "@LOW": str(x.low),
        "@HIGH": str(x.high),
        "@CLASSES": str(y.shape[0]) if y.shape else "1",
        "@PLACES_SHAPE": _shape(y.shape[1:]),
        "@PLACES": str(math.prod(y.shape[1:])),
    }


def _meaning(x: Value, interface: Interface) -> dict[str, str]:
    channels = x.shape[0] if x.shape else 1
    mean, std = (v if len(v) == channels else v * channels for v in (interface.mean, interface.std))
    return {
        "@CHANNELS": str(channels),
        "@PLANE": str(math.prod(x.shape[1:])),
        "@MEAN": _list([c_float(v) for v in mean]),
        "@STD": _list([c_float(v) for v in std]),
        "@THRESHOLD": "0" if interface.threshold is None else c_float(interface.threshold),
    }


def c_type(value: Value) -> str:
    return f"{'' if value.signed else 'u'}int{value.bits}_t" if value.bits < 32 else "int32_t"


def c_float(value: float) -> str:
    """A literal that is exactly this number's float32."""
    return repr(float(np.float32(value))) + "f"


def string(text: str) -> str:
    return '"' + "".join(c if c.isascii() and c.isprintable() and c not in '"\\?' else "_" for c in text) + '"'


def _scale_of(y: Value, i: str) -> str:
    """Which scale output `i` has."""
    if len(y.scale) in (1, math.prod(y.shape)):
        return "0" if len(y.scale) == 1 else i
    per = math.prod(y.shape[y.channel + 1 :])
    return f"{i if per == 1 else f'{i} / {per}'} % {len(y.scale)}"


def _signed(value: int) -> str:
    return f"({value})" if value < 0 else str(value)


def _shape(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes)) or "one number"


def _list(items: Sequence[str]) -> str:
    lines = [", ".join(items[i : i + 8]) for i in range(0, len(items), 8)]
    return ("\n  " if len(lines) > 1 else "") + ",\n  ".join(lines)
