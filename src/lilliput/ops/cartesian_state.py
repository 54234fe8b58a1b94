"""Where a search over Cartesian circuits stands, and its bytes."""

import io
from dataclasses import asdict, dataclass
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from lilliput.ops.cartesian import Circuit, Shape

Bools = npt.NDArray[np.bool_]
NUMBERS = ("generation", "stalled", "stage", "threshold", "tried", "neutral", "error", "energy", "delay", "gates")
SHAPE = ("inputs", "outputs", "rows", "columns", "levels_back", "bits")


@dataclass(frozen=True, kw_only=True)
class State:
    """All that a search knows: enough to go on. `locked`: genes that stay, of nodes [nodes, 3] and of outputs."""

    circuit: Circuit
    locked: tuple[Bools, Bools]
    random: npt.NDArray[np.uint64]
    generation: int = 0
    stalled: int = 0
    stage: int = 0
    threshold: int = 0
    tried: int = 0
    neutral: int = 0
    error: int
    energy: int
    delay: int
    gates: int

    @property
    def ready(self) -> bool:
        """Patience is at an end, or there is no other stage."""
        return self.stage == 2

    def packed(self) -> bytes:
        """All of it, as a .npz file without pickles."""
        shape = asdict(self.circuit.shape)
        file = io.BytesIO()
        np.savez_compressed(
            file,
            shape=np.array([shape[name] for name in SHAPE], dtype=np.int64),
            nodes=self.circuit.nodes,
            outputs=self.circuit.outputs,
            locked_nodes=self.locked[0],
            locked_outputs=self.locked[1],
            random=self.random,
            numbers=np.array([getattr(self, name) for name in NUMBERS], dtype=np.int64),
        )
        return file.getvalue()


def unpacked(data: bytes) -> State:
    """The state of `State.packed`. ValueError if it is none."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            shape = Shape(**dict(zip(SHAPE, found["shape"].tolist(), strict=True)))
            circuit = Circuit(shape=shape, nodes=found["nodes"], outputs=found["outputs"])
            locked = found["locked_nodes"], found["locked_outputs"]
            numbers = dict(zip(NUMBERS, found["numbers"].tolist(), strict=True))
            state = State(circuit=circuit, locked=locked, random=found["random"], **numbers)
    except (BadZipFile, KeyError, EOFError, OSError, TypeError) as wrong:
        raise ValueError("this is not the state of a search over circuits") from wrong
    if [x.shape for x in locked] != [circuit.nodes.shape, circuit.outputs.shape] or state.random.shape != (4,):
        raise ValueError("this state of a search over circuits does not fit together")
    return state
