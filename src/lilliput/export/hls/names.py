"""What the constants of each operation are called in C: after the path of its module, or as published for a ResMLP."""

import re
from dataclasses import dataclass

from lilliput.core.errors import ExportError
from lilliput.core.program import Operation, Program

PLACES = {"embed": "embed_linear", "mean": "pool", "classifier": "classifier_linear"}
IN_BLOCKS = {
    ".token_norm": "token_mixer_affine_1",
    ".over_tokens": "token_mixer_linear",
    ".token_scale": "token_mixer_affine_2",
    "/add": "token_mixer_res_affine",
    ".channel_norm": "mlp_affine_1",
    ".first": "mlp_psa_1",
    ".expand": "mlp_linear_1",
    ".activation": "mlp_psa_2",
    ".project": "mlp_linear_2",
    "/add_1": "mlp_res_affine",
}
"""Places of `nn.models.resmlp`, and what PSA-Compress (ACM TRETS, https://doi.org/10.1145/3705926) calls them."""
MOVES = ("reshape", "transpose", "slice", "pad", "upsample")


@dataclass(frozen=True, kw_only=True)
class Names:
    """`of`: {operation: the name of its constants}. In a ResMLP tensors are [tokens][channels], as published."""

    of: dict[str, str]
    is_resmlp: bool = False

    @staticmethod
    def for_program(program: Program) -> "Names":
        """Raises `ExportError` where two operations would have one name."""
        own = [o.output for o in program if o.kind not in MOVES]
        published = {path: _published(path) for path in own}
        is_resmlp = all(published.values()) and _is_resmlp(program)
        names = published if is_resmlp else {path: c_name(path) for path in own}
        taken: dict[str, str] = {}
        for path, name in names.items():
            if name in taken:
                found = f"{taken[name]!r} and {path!r} would both be {name}"
                raise ExportError("export to HLS", found, "rename one of the two modules")
            taken[name] = path
        return Names(of=names, is_resmlp=is_resmlp)


def c_name(path: str) -> str:
    """The path with _ for what C does not take in names; `layer_` before those that begin with no letter."""
    text = re.sub(r"[^A-Za-z0-9_]", "_", path)
    return text if re.match(r"[A-Za-z]", text) else f"layer_{text}"


def _published(path: str) -> str:
    place = re.fullmatch(r"blocks\.([0-9]+)([./].*)", path)
    if place is None:
        return PLACES.get(path, "")
    known = IN_BLOCKS.get(place[2])
    return f"blocks_{int(place[1])}_{known}" if known else ""


def _is_resmlp(program: Program) -> bool:
    """Do the names mean what they mean in `nn.models.resmlp`? Patches come first, then [channels, tokens]."""
    operations = {o.output: o for o in program}
    first = program.operations[0]
    if first.output != "embed" or first.inputs != (program.input,) or not is_of_patches(first):
        return False
    channels, rows, columns = program.values["embed"].shape
    inside = [o for o in program if re.match(r"blocks\.[0-9]+/add", o.output)]
    as_tokens = all(program.values[o.output].shape == (channels, rows * columns) for o in inside)
    return as_tokens and "classifier" in operations and all(o.kind == "add" for o in inside)


def is_of_patches(o: Operation) -> bool:
    """A convolution that reads every pixel once: a linear layer of patches."""
    a = o.attributes
    whole = o.kind == "conv" and a["kernel"] == a["stride"] and len(a["kernel"]) == 2
    return whole and a["groups"] == 1 and not any(any(pad) for pad in a["pads"]) and set(a["dilation"]) == {1}
