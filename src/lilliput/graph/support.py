"""What runs where: one table of operator words and back-ends, for the lowering, `check` and docs/support.md.

`page()` is the document. A word is one of `graph.operators`; calls that have none are known by their ATen name.
"""

from dataclasses import dataclass

from lilliput.graph.operators import POINTWISE
from lilliput.graph.trace import Node

BOTH = "8 and 16 bits"
NO = "no"
INT8, FLOAT = "int8", "float"


@dataclass(frozen=True, kw_only=True)
class Support:
    """`words` are handled alike: in ONNX files (`onnx`), and in the integer program and its interpreter (`program`).

    `onnx`: "int8" runs in integer kernels where its inputs have 8 bits, "float" in float32 between grids, "no" is
    refused. `program`: "8 and 16 bits" of activations, or "no". `c`: what C asks for besides. `calls` are ATen
    operations without word. What is refused has a `remedy`; `onnx_remedy` is that of ONNX alone.
    """

    words: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    what: str
    onnx: str
    program: str
    c: str = ""
    conditions: str = ""
    remedy: str = ""
    onnx_remedy: str = ""


def _functions(onnx: str) -> tuple[str, ...]:
    in_onnx = (
        "relu", "clamp", "sigmoid", "tanh", "elu", "gelu", "silu", "hard_swish", "hard_sigmoid", "leaky_relu",
    )  # fmt: skip
    others = (word for word in POINTWISE if word != "learned_function")
    return tuple(word for word in others if (word in in_onnx) == (onnx != NO))


_STATISTICS = "use BatchNorm, which folds into the layer before it or behind it"
_RECURRENT = "use Conv1d over time (causal, dilated), or run the recurrent part outside and lower the rest"
_ATTENTION = "mix places with Conv1d, Conv2d, or a linear layer between two transpositions (as MLP-Mixer does)"

TABLE: tuple[Support, ...] = (
    Support(
        words=("conv",),
        what="Conv1d, Conv2d: strides, dilation, groups, any padding; ConvTranspose1d, ConvTranspose2d",
        onnx=INT8,
        program=BOTH,
        conditions="weights of 2 to 16 bits; sums proved to fit into 32 bits. ONNX: transposed ones, weights of more "
        "than 8 bits and a last convolution run in float32. Shared weights also as product of sums (`grouped_sum`), "
        "except in transposed ones",
    ),
    Support(
        words=("linear",),
        what="Linear, over the last dimension",
        onnx=INT8,
        program=BOTH,
        conditions="as for convolutions; shared weights also as product of sums",
    ),
    Support(
        words=("batch_norm",),
        what="BatchNorm",
        onnx=FLOAT,
        program=NO,
        conditions="folded into the layer before it or behind it, it is gone; `rest: layer` of `fold_batchnorm` makes "
        "a layer of one that cannot be folded",
        remedy="put fold_batchnorm with rest: layer into the recipe",
    ),
    Support(
        words=("add", "sub"),
        what="sum and difference of two values",
        onnx=INT8,
        program=BOTH,
        c="of one shape",
        remedy="follow it by a layer: what feeds only the output stays in accumulators",
    ),
    Support(
        words=("mul",),
        what="product of two values, element by element",
        onnx=INT8,
        program=BOTH,
        c="of one shape",
        remedy="follow it by a layer: what feeds only the output stays in accumulators",
    ),
    Support(words=("concat",), what="torch.cat", onnx=INT8, program=BOTH, remedy="follow it by a layer"),
    Support(
        words=("avg_pool",),
        what="AvgPool1d, AvgPool2d; adaptive ones whose sizes divide",
        onnx=INT8,
        program=BOTH,
        conditions="every window has one count",
        remedy="use count_include_pad=True, and no ceil_mode whose last window reaches over the padding",
    ),
    Support(
        words=("mean",),
        what="mean over dimensions",
        onnx=INT8,
        program=BOTH,
        c="over neighbouring dimensions",
        remedy="follow it by a layer: what feeds only the output stays in accumulators",
    ),
    Support(
        words=("max_pool",), what="MaxPool1d, MaxPool2d; adaptive ones whose sizes divide", onnx=INT8, program=BOTH
    ),
    Support(
        words=("amax",),
        what="amax, max(dim).values: maximum over dimensions",
        onnx=NO,
        program=BOTH,
        c="over neighbouring dimensions",
        onnx_remedy="use MaxPool or AdaptiveMaxPool",
    ),
    Support(
        words=("flatten", "reshape", "permute", "slice", "select", "pad", "identity", "upsample_nearest"),
        what="views, transpositions, slices, constant padding (ZeroPad2d, ConstantPad2d), nearest upsampling by whole "
        "factors, dropout",
        onnx=INT8,
        program=BOTH,
        c="at most 4 dimensions",
    ),
    Support(
        words=_functions(FLOAT),
        what="functions of one value",
        onnx=FLOAT,
        program=BOTH,
        conditions="8 bits: a table; 16 bits: 257 points with lines between them, relu and clamp exactly. A relu or "
        "clamp behind a layer, sum or product costs nothing",
    ),
    Support(
        words=_functions(NO),
        what="functions of one value; PReLU also with a slope for each channel",
        onnx=NO,
        program=BOTH,
        conditions="the same",
        onnx_remedy="use another activation, such as ReLU, GELU or Hardswish",
    ),
    Support(
        words=("learned_function",),
        what="`ll.LearnedActivation`: a function of one value that learns, for the layer or for each channel",
        onnx=INT8,
        program=BOTH,
        conditions="2^k + 1 points with lines between them, where these stand on codes; else a table for 8 bits, 257 "
        "points for 16. ONNX: Gather on 8 bits, else lines between points in float32",
    ),
    Support(
        words=("add_scalar", "sub_scalar", "mul_scalar"),
        what="sums and products with a number",
        onnx=FLOAT,
        program=BOTH,
        conditions="the same",
    ),
    Support(
        words=("argmax",),
        what="argmax over a dimension",
        onnx=NO,
        program=BOTH,
        conditions="as the last operation; of equal values the lowest index",
        remedy="make argmax the last operation",
        onnx_remedy="end the network before it",
    ),
    Support(
        words=("softmax", "log_softmax"),
        what="softmax, log-softmax",
        onnx=FLOAT,
        program=NO,
        conditions="at the end they are left out and named in `Program.tail`",
        remedy="end the network before it, for the order of its outputs is the same; inside, use sigmoid",
    ),
    Support(words=("layer_norm",), what="LayerNorm", onnx=FLOAT, program=NO, remedy=_STATISTICS),
    Support(
        calls=("group_norm", "instance_norm", "rms_norm"),
        what="GroupNorm, InstanceNorm, RMSNorm",
        onnx=NO,
        program=NO,
        remedy=_STATISTICS,
    ),
    Support(
        calls=("gru", "lstm", "rnn_tanh", "rnn_relu", "gru_cell", "lstm_cell", "rnn_tanh_cell", "rnn_relu_cell"),
        what="GRU, LSTM, RNN and their cells",
        onnx=NO,
        program=NO,
        remedy=_RECURRENT,
    ),
    Support(
        calls=("scaled_dot_product_attention", "matmul", "bmm", "mm", "baddbmm", "einsum"),
        what="attention; products of two activations over a shared dimension",
        onnx=NO,
        program=NO,
        remedy=_ATTENTION,
    ),
    Support(
        calls=("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d"),
        what="adaptive pooling whose sizes do not divide",
        onnx=NO,
        program=NO,
        remedy="choose an output size that divides the input's: windows of different sizes have no common count",
    ),
    Support(
        calls=("embedding", "embedding_bag"),
        what="Embedding",
        onnx=NO,
        program=NO,
        remedy="look rows up before the network, and give them to it as its input",
    ),
    Support(
        calls=(
            "upsample_bilinear2d",
            "upsample_linear1d",
            "upsample_bicubic2d",
            "upsample_nearest1d",
            "upsample_nearest2d",
        ),
        what="other upsampling",
        onnx=NO,
        program=NO,
        remedy="use nearest upsampling by whole factors, or ConvTranspose2d",
    ),
    Support(
        calls=("conv3d", "conv_transpose3d", "max_pool3d", "avg_pool3d"),
        what="three-dimensional layers",
        onnx=NO,
        program=NO,
        remedy="split the third dimension into channels and use two-dimensional layers",
    ),
    Support(
        calls=("pad",),
        what="reflecting, replicating, circular and negative padding",
        onnx=NO,
        program=NO,
        remedy="pad with a constant; cut with a slice",
    ),
    Support(
        calls=("div", "maximum", "minimum", "where", "cumsum"),
        what="quotients, maxima and choices between two values; running sums",
        onnx=NO,
        program=NO,
        remedy="write it with sums, products and functions of one value",
    ),
)
"""All rows. What is in none of them is refused everywhere, with `OTHERWISE`."""

OTHERWISE = "replace it by an operation of docs/support.md"
REMEDIES = {
    "its sums may need more than 32 bits": "use fewer weight or activation bits, or fewer inputs a layer",
    "its weight or bias has no integer grid": "give each layer a bias of its own, and quantize it",
    "its bias is on another scale than its sums": "quantize the network again",
    "its input is not calibrated": "quantize with activation_bits: 8 or 16",
    "it reads a parameter that belongs to no layer": "use a layer: a 1x1 convolution with groups scales and shifts "
    "channels",
}
"""Of reasons that do not depend on the operation."""


def row_of(node: Node) -> Support | None:
    """By its word; else by its ATen name."""
    name = node.target.split(".")[1].rstrip("_") if node.target.startswith("aten.") else ""
    known = (row for row in TABLE if node.op in row.words)
    return next(known, next((row for row in TABLE if name in row.calls), None))


def remedy(node: Node, reason: str = "") -> str:
    """What to do about a node that has no integer form, for `reason`."""
    row = row_of(node)
    return REMEDIES.get(reason) or (row.remedy if row is not None else "") or OTHERWISE


def page() -> str:
    """docs/support.md."""
    lines = [HEAD, "| operation | words | ONNX | program | C | conditions |", "|---|---|---|---|---|---|"]
    for row in TABLE:
        if row.words:
            words = ", ".join(f"`{w}`" for w in row.words)
            c = f"the same, {row.c}" if row.c else "the same" if row.program != NO else NO
            lines.append(f"| {row.what} | {words} | {row.onnx} | {row.program} | {c} | {row.conditions} |")
    lines += [MIDDLE, "| operation | refused | do |", "|---|---|---|"]
    for row in TABLE:
        integers = "as integers" if row.program == NO else "as integers, where a condition does not hold"
        for where, do in ((integers, row.remedy), ("in ONNX", row.onnx_remedy)):
            if do:
                lines.append(f"| {row.what} | {where} | {do} |")
    lines += [f"| anything else | as integers and in ONNX | {OTHERWISE} |", TAIL]
    return "\n".join(lines)


HEAD = """# What runs where

One table for everything that asks: `lilliput check`, the lowering to the [integer program](program.md), and this page,
which is made from it (`python -m lilliput.graph.support` prints it).

- *ONNX*: `int8` runs in integer kernels where its inputs have 8 bits, and in float32 with 16; `float` runs in float32
  between grids; `no` is refused.
- *program*: the integer program and its interpreter, with activations of 2 to 8 or 9 to 16 bits; *C*: the code made
  from it. Both give the integers of `IntegerNet`. [HLS headers](learned-functions.md#for-fpga-designs) hold the
  constants of every program.
"""

MIDDLE = """
## Refused, and what to do

The error names the operation, its line in your file, and this:
"""

TAIL = """
`ll.check(model, task).not_integer` lists what of a network has no integer form, with its line in your file and what to
do.
"""

if __name__ == "__main__":
    print(page(), end="")  # noqa: T201 - asked for by name
