"""Searches side by side that pass on what they found: the same for any number of processes.

A round takes each island so many generations further, which depends on its state alone. Then each looks at the island
before it in a ring, as that was at the end of the round, and takes its circuit over if it is better.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing import get_context

from lilliput.ops.cartesian_goal import Goal
from lilliput.ops.cartesian_search import Settings, advance
from lilliput.ops.cartesian_state import State

Order = tuple[int, ...]


def order(state: State, other: State) -> Order:
    """Smaller is better, compared with the other's: by error if one of them has yet to reach its threshold."""
    if state.error > state.threshold or other.error > other.threshold:
        return (state.error,)
    return state.energy, state.error, state.delay, state.gates


def migrated(states: Sequence[State]) -> list[State]:
    """A step of the ring. Islands that are ready stay as they are, but pass on."""
    found: list[State] = []
    for i, state in enumerate(states):
        other = states[i - 1]
        if not state.ready and order(other, state) < order(state, other):
            measures = {"error": other.error, "energy": other.energy, "delay": other.delay, "gates": other.gates}
            found.append(replace(state, circuit=other.circuit, stalled=0, **measures))
        else:
            found.append(state)
    return found


def best(states: Sequence[State]) -> State:
    """The first of those that no other is better than."""
    found = states[0]
    for state in states[1:]:
        if order(state, found) < order(found, state):
            found = state
    return found


def spawned(processes: int) -> Executor:
    """Processes that start afresh: a caller's threads and locks do not come along."""
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"))


def islands(
    goal: Goal,
    settings: Settings,
    states: Sequence[State],
    *,
    rounds: int,
    generations: int,
    processes: int = 1,
    watch: Callable[[list[State]], bool] | None = None,
) -> list[State]:
    """The islands after `rounds`, or when all are ready, or when `watch`, which sees each round's end, says True.

    With more than one process a script needs the usual `if __name__ == "__main__":`.
    """
    now = list(states)
    with ExitStack() as stack:
        pool = stack.enter_context(spawned(min(processes, len(now)))) if processes > 1 and len(now) > 1 else None
        run = map if pool is None else pool.map
        for _ in range(rounds):
            count = len(now)
            now = migrated(list(run(advance, [goal] * count, [settings] * count, now, [generations] * count)))
            if all(state.ready for state in now) or (watch is not None and watch(now)):
                break
    return now
