"""Graphs that lie: each is refused before anything is computed or allocated, or runs as it says."""

import time
import tracemalloc
from typing import Any

import pytest
import torch

from lil_files import file_of
from lilliput.core import container, wire
from lilliput.core.errors import ArtifactError
from lilliput.core.wiring import CODES
from lilliput.graph.stored import stored_artifact
from lilliput.graph.trace import graph_of

W: dict[str, tuple[int, ...]] = {
    "conv.weight": (4, 2, 3, 3),
    "conv.bias": (4,),
    "norm.weight": (4,),
    "norm.bias": (4,),
    "norm.running_mean": (4,),
    "norm.running_var": (4,),
    "fc.weight": (3, 8),
    "fc.bias": (3,),
    "slope.weight": (4,),
    "z.image": (1, 2, 6, 6),
}
AT = {name: i for i, name in enumerate(W)}


def node(word: str, *fields: Any) -> Any:
    return [CODES[word], *fields] if fields else CODES[word]


def contents_of(*nodes: Any, shape=(2, 6, 6), then=(), tensors=None, counters=(), payload=None):
    tensors = W if tensors is None else tensors
    entries = [[name, [], list(size)] for name, size in tensors.items()]
    count = sum(torch.Size(size).numel() for size in tensors.values())
    header = [bytes(8), [list(shape), "", [], [], []], entries, list(counters), [], [], [], [], [list(nodes), *then]]
    return container.loads(file_of(wire.dumps(header), bytes(4 * count) if payload is None else payload))


def loaded(*nodes: Any, **more: Any) -> Any:
    return stored_artifact(contents_of(*nodes, **more), "net.lil")


def functions(weight: tuple[int, ...], limit: tuple[int, ...] = (1,)) -> dict[str, Any]:
    """The tensors of a file with one learned function, and four values for it to read."""
    return {"tensors": {"f.weight": weight, "f.limit": limit}, "shape": (4,)}


RELU, CONV = node("relu"), node("conv", 0)


def test_a_good_graph_of_the_same_tensors_runs():
    net = loaded(CONV, node("batch_norm"), RELU, node("mean", 0, 1), node("prelu", 0, None, AT["slope.weight"]))
    assert net.module(torch.zeros(5, 2, 6, 6)).shape == (5, 4)
    assert [n.shape for n in graph_of(net).nodes][1:3] == [(1, 4, 6, 6), (1, 4, 6, 6)]


MISFITS: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "conv on a vector": ([CONV], {"shape": (2,)}, r"a value of shape \(1, 2\) where an image or a series should be"),
    "conv on a series": (
        [CONV],
        {"shape": (2, 6)},
        r"a weight of shape \(4, 2, 3, 3\) on a value of shape \(1, 2, 6\)",
    ),
    "conv on other channels": ([CONV], {"shape": (3, 6, 6)}, r"a weight of shape \(4, 2, 3, 3\) in 1 groups on"),
    "conv in groups": ([node("conv", 0, 1, 0, 1, 0, 1, 2)], {}, r"in 2 groups on"),
    "conv in uneven groups": ([node("conv", 0, 1, 0, 1, 0, 1, 3)], {"shape": (6, 6, 6)}, r"in 3 groups on"),
    "kernel beyond the image": (
        [node("conv", 0, 1, 0, 1, 0)],
        {"shape": (2, 2, 2)},
        r"[Kk]ernel size can't be greater",
    ),
    "stride of three dimensions": ([node("conv", 0, 1, 0, [1, 1, 1])], {}, r"\(1, 1, 1\) for 2 dimensions"),
    "pads of three dimensions": (
        [node("conv", 0, 1, 0, 1, [0] * 6)],
        {},
        r"pads \(0, 0, 0, 0, 0, 0\) for 2 dimensions",
    ),
    "output padding of a convolution": (
        [node("conv", 0, 1, 0, 1, 0, 1, 1, False, 1)],
        {},
        r"an output padding of a conv",
    ),
    "uneven pads of a transposed one": (
        [node("conv", 0, 1, 0, 1, [0, 1, 0, 1], 1, 1, True)],
        {"shape": (4, 6, 6)},
        r"a transposed convolution with uneven pads",
    ),
    "output padding beyond the stride": (
        [node("conv", 0, 1, [AT["conv.weight"] + 1], 1, 0, 1, 1, True, 3)],
        {"shape": (4, 6, 6)},
        r"output padding \(3, 3\) with stride \(1, 1\)",
    ),
    "conv without weight": ([node("conv", 0, 1, [0, 2])], {}, r"a weight of shape \(\) on a value of shape"),
    "bias of another shape": ([node("conv", 0, 1, [1, AT["fc.bias"] + 1])], {}, r"a bias of shape \(3,\) on a value"),
    "linear without weight": ([node("linear", 0, 1, [0, 2])], {}, r"linear without weight"),
    "linear on other features": (
        [node("linear", 0, 1, AT["fc.weight"])],
        {},
        r"a weight of shape \(3, 8\) on a value of",
    ),
    "linear with four dimensions": (
        [node("linear", 0, 1, [1])],
        {"shape": (3,)},
        r"a weight of shape \(4, 2, 3, 3\) on",
    ),
    "norm of other channels": (
        [node("batch_norm", 0, 1, AT["norm.weight"])],
        {},
        r"a weight of shape \(4,\) on a value of",
    ),
    "norm without statistics": ([CONV, node("batch_norm", 0, 1, [3, 4])], {}, r"batch_norm without mean and variance"),
    "norm of a vector": ([node("batch_norm", 0, 1, AT["norm.weight"])], {"shape": ()}, r"index out of range"),
    "norm of all": ([node("layer_norm", 0, 1, [], 4)], {}, r"4 dimensions of a value of shape"),
    "norm of nothing": ([node("layer_norm", 0, 1, [], 0)], {}, r"0 dimensions of a value of shape"),
    "norm by another weight": ([node("layer_norm", 0, 1, [3, 4])], {}, r"a weight of shape \(4,\) on a value of shape"),
    "functions of other channels": (
        [node("learned_function", "f")],
        functions((3, 9)),
        r"functions of shape \(3, 9\) on a value of shape \(1, 4\)",
    ),
    "functions in no table": ([node("learned_function", "f")], functions((4,)), r"functions of shape \(4,\) on"),
    "functions along the batch": ([node("learned_function", "f", 1, None, 0, 0)], functions((4, 9)), r"dimension 0 of"),
    "a point alone": ([node("learned_function", "f")], functions((4, 1)), r"1 numbers for a function of kind 'table'"),
    "functions of other numbers": (
        [node("learned_function", "f", 1, None, 2)],
        functions((4, 9)),
        r"9 numbers for a function of kind 'psa'",
    ),
    "points that are not those": (
        [node("learned_function", "f", 1, None, 0, 1, 8)],
        functions((4, 9)),
        r"8 points of 9 numbers",
    ),
    "more points than fit": (
        [node("learned_function", "f", 1, None, 1, 1, 1 << 30)],
        functions((4, 26)),
        r"with 1073741824 points",
    ),
    "functions without a limit": (
        [node("learned_function", "f", 1, [1])],
        functions((4, 9)),
        r"learned_function without weight and limit",
    ),
    "limits of other functions": (
        [node("learned_function", "f")],
        functions((4, 9), limit=(3,)),
        r"a limit of shape \(3,\) on a value of shape",
    ),
    "functions by floats": (
        [node("learned_function", "f", [1, -1])],
        functions((4, 9)),
        r"functions of channels by something else than a counter",
    ),
    "functions by a value": (
        [node("learned_function", "f", [1, 1])],
        functions((4, 9)),
        r"functions of channels by something else than a counter",
    ),
    "functions of fewer channels": (
        [node("learned_function", "f", [1, -3])],
        functions((2, 9)) | {"counters": [["f.owner", 4, [3], bytes(3)]]},
        r"a owner of shape \(3,\) on a value of shape \(1, 4\)",
    ),
    "functions that are not there": (
        [node("learned_function", "f", [1, -3])],
        functions((2, 9)) | {"counters": [["f.owner", 4, [4], bytes([0, 1, 2, 0])]]},
        r"channels with functions 0 to 2 of 2",
    ),
    "functions before the first": (
        [node("learned_function", "f", [1, -3])],
        functions((2, 9)) | {"counters": [["f.owner", 3, [4], bytes([0, 1, 255, 0])]]},
        r"channels with functions -1 to 1 of 2",
    ),
    "more points of channels than fit": (
        [node("learned_function", "f", [1, -3])],
        functions((2, 4096)) | {"counters": [["f.owner", 4, [16384], bytes(16384)]], "shape": (16384,)},
        r"16384 functions of kind 'table' with 4096 points",
    ),
    "slope of other channels": (
        [node("prelu", 0, 1, AT["slope.weight"])],
        {},
        r"a weight of shape \(4,\) on a value of",
    ),
    "slope without weight": ([node("prelu", 0, 1, [])], {}, r"prelu without weight"),
    "pool of a vector": ([node("max_pool", 0)], {"shape": (8,)}, r"where an image or a series should be"),
    "pool beyond the image": ([node("max_pool", 0, 1, 9)], {}, r"Output size is too small"),
    "pads beyond half of the kernel": ([node("max_pool", 0, 1, 2, 1, 2)], {}, r"pad should be at most half"),
    "pool with uneven pads": ([node("avg_pool", 0, 1, 3, False, 1, [0, 1, 0, 1])], {}, r"a pool with uneven pads"),
    "adaptive pool that does not divide": (
        [node("avg_pool", 0, 1, 4, True)],
        {},
        r"an adaptive pool of \(4, 4\) on \(6, 6\)",
    ),
    "adaptive pool with a stride": ([node("avg_pool", 0, 1, 3, True, 1)], {}, r"an adaptive pool of"),
    "adaptive pool with pads": ([node("avg_pool", 0, 1, 3, True, 3, 1)], {}, r"an adaptive pool of"),
    "reshape to another size": ([node("reshape", 0, 1, [2, 35])], {}, r"shape \(2, 35\) of a value of shape"),
    "clamp between two tensors": (
        [node("clamp", 0, 1, False, False), node("add", 0, [1, -1])],
        {},
        r"must match|broadcast",
    ),
    "sum of shapes that do not fit": ([CONV, node("add", 0, [1, 2])], {}, r"must match|broadcast"),
    "concat of ranks": ([node("mean", 0), node("concat", 0, [1, 2])], {}, r"[Nn]umber of dimensions"),
    "concat of the batch": ([node("concat", 0, [1, 1], 0)], {}, r"dimension 0 of a value of shape"),
    "concat of a dimension that is not there": ([node("concat", 0, [1, 1], 4)], {}, r"dimension 4 of a value of shape"),
    "slice beyond": ([node("slice", 0, 1, 1, 1, 0, 3)], {}, r"a slice from 0 to 3 of 2"),
    "slice of nothing": ([node("slice", 0, 1, 1, 1, 2)], {}, r"a slice from 2 to 2 of 2"),
    "select beyond": ([node("select", 0, 1, 1, 2)], {}, r"index 2 of 2"),
    "select of the batch": ([node("select", 0, 1, 0)], {}, r"dimension 0 of a value of shape"),
    "pads for the batch too": ([node("pad", 0, 1, [0] * 8)], {}, r"pads .* for 3 dimensions"),
    "mean over a dimension twice": ([node("mean", 0, 1, [2, 2])], {}, r"dimensions \(2, 2\) of a value of shape"),
    "mean over nothing": ([node("mean", 0)], {"shape": (2,)}, r"dimensions \(\) of a value of shape"),
    "mean beyond": ([node("mean", 0, 1, [2, 4])], {}, r"dimension 4 of a value of shape"),
    "permutation that is none": ([node("permute", 0, 1, [1, 1, 2])], {}, r"the order \(1, 1, 2\) of a value of shape"),
    "softmax of the batch": ([node("softmax", 0, 1, 0)], {}, r"dimension 0 of a value of shape"),
    "softmax of a vector": ([node("softmax", 0)], {"shape": ()}, r"dimension 0 of a value of shape"),
    "upsample of a vector": ([node("upsample_nearest", 0)], {"shape": (2,)}, r"where an image or a series should be"),
    "arithmetic with classes": ([node("argmax", 0), node("add_scalar", 0, 1, 1)], {}, r"add_scalar of integers"),
    "arithmetic with a counter": (
        [node("mul_scalar", 0, -1 - len(W), 2), node("add", 0, [1, 2])],
        {"counters": [["steps", 0, [1], bytes(8)]]},
        r"mul_scalar of integers",
    ),
    "two counters": (
        [node("add", 0, [-1 - len(W), -1 - len(W)])],
        {"counters": [["steps", 0, [1], bytes(8)]]},
        r"a value of torch.int64",
    ),
    "a counter alone": (
        [node("identity", 0, -1 - len(W))],
        {"counters": [["steps", 0, [2], bytes(16)]]},
        r"identity of integers",
    ),
    "one tensor of two outputs": ([RELU, RELU], {"then": ([0, 1],)}, r"a tensor of 2 outputs"),
    "zeros for values": (
        [node("slice", 0, 1, 1, 1 << 16, 1), node("slice", 0, 1, 1, 1, 0, 0)],
        {},
        r"a slice from 0 to 0",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_operations_that_do_not_fit_are_refused(case):
    nodes, more, text = MISFITS[case]
    with pytest.raises(ArtifactError, match=rf"^load net\.lil: the contents are not well formed \(.*{text}"):
        loaded(*nodes, **more)


HUGE: dict[str, list[Any]] = {
    "pads": [node("pad", 0, 1, [0, 0, 65536, 65536, 65536, 65536])],
    "pads again and again": [node("pad", 0, 1, 65536)] * 9,
    "upsample": [node("upsample_nearest", 0, 1, 8192)],
    "upsample again and again": [node("upsample_nearest", 0, 1, 2)] * 64,
    "concat": [node("concat", 0, [1] * 1024)] * 4,
    "broadcast": [
        node("upsample_nearest", 0, 1, [1 << 14, 1]),
        node("mean", 0, 1, [3], True),
        node("upsample_nearest", 0, 3, [1, 1 << 14]),
        node("mean", 0, 1, [2], True),
        node("add", 0, [1, 3]),
    ],
    "transposed convolution": [node("conv", 0, 1, [1], 65536, 0, 1, 1, True)],
}


@pytest.mark.parametrize("case", HUGE)
def test_values_that_are_too_large_are_refused_without_memory(case):
    shape = (4, 6, 6) if case == "transposed convolution" else (2, 6, 6)
    contents = contents_of(*HUGE[case], shape=shape)
    tracemalloc.start()
    with pytest.raises(ArtifactError, match=r"not well formed \(node .*: (a value of shape|.*)"):
        stored_artifact(contents)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


NAMES: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "a method": ({"forward.weight": (1,)}, "'forward.weight' as the name of a tensor"),
    "a class": ({"__class__": (1,)}, "'__class__' as the name of a tensor"),
    "a dictionary": ({"a._parameters": (1,)}, "'a._parameters' as the name of a tensor"),
    "the graph": ({"_graph.x": (1,)}, "'_graph.x' as the name of a tensor"),
    "an empty part": ({"a..b": (1,)}, "'a..b' as the name of a tensor"),
    "nothing": ({"": (1,)}, "'' as the name of a tensor"),
    "a tensor in a tensor": ({"a": (1,), "a.b": (1,)}, "'a.b' as the name of a tensor"),
    "a tensor that is a module": ({"a.b": (1,), "a": (1,)}, "'a' as the name of a tensor and of a module"),
    "a part in two places": (
        {"a.x": (1,), "b.x": (1,), "a.y": (1,)},
        "tensors that do not stand in the order of a module tree",
    ),
    "a part before its module": (
        {"a.b.x": (1,), "a.x": (1,)},
        "tensors that do not stand in the order of a module tree",
    ),
    "65 levels": ({"a." * 64 + "x": (1,)}, "as the name of a tensor"),
}


@pytest.mark.parametrize("case", NAMES)
def test_names_that_no_module_can_have_are_refused(case):
    tensors, text = NAMES[case]
    with pytest.raises(ArtifactError) as error:
        loaded(RELU, tensors=tensors)
    assert text in str(error.value)
    assert "not well formed" in str(error.value)


def test_modules_are_counted_before_they_are_made():
    tensors = {".".join(f"{i:x}{level:x}" for level in range(60)): (1,) for i in range(1000)}
    contents = contents_of(RELU, tensors=tensors)
    started = time.process_time()
    with pytest.raises(ArtifactError, match="as the name of a tensor"):
        stored_artifact(contents)
    assert time.process_time() - started < 2


def test_statistics_are_plain():
    header = [bytes(8), [[4, 2], "", [], [], []], [], [], [], [], [], [], [[node("batch_norm")]]]
    header[2] = [["n.running_mean", [4, 0, 9, 8], [4]], ["n.running_var", [], [4]]]
    contents = container.loads(file_of(wire.dumps(header), b"\x80" + bytes(4) + bytes(16)))
    with pytest.raises(ArtifactError, match=r"'n\.running_mean' is no parameter, and not plain"):
        stored_artifact(contents)


def test_the_longest_graph_takes_seconds():
    words = ["relu", "identity", "tanh", "abs"]
    contents = contents_of(*[node(words[i % 4]) for i in range(1 << 14)])
    started = time.process_time()
    assert len(graph_of(stored_artifact(contents)).nodes) == (1 << 14) + 1
    assert time.process_time() - started < 20  # about 1
