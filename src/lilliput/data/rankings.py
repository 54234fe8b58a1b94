"""Which samples come first, by each of the methods that a safety set is made with.

A ranking gives a number for every sample and their order. A method that a network has nothing for gives the reason
instead.
"""

import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from lilliput.core.device import device_of, each_tensor, moved
from lilliput.core.errors import DataError, MissingExtraError, UnsupportedError
from lilliput.core.guard import evaluate
from lilliput.core.progress import Progress
from lilliput.core.task import Batch, Data, Role, Task
from lilliput.graph.inside import Inside, embedding, last_convolution, pooled, structure
from lilliput.graph.trace import Graph

ITERATIONS = 30
"""Of k-means, at most."""
NEED_CLASSES = ("grad_cam", "margin")


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """`values` float64 [n], and `order` int64 [n]: the numbers of the samples, the first to be taken first."""

    values: Tensor
    order: Tensor

    @staticmethod
    def of(values: Tensor, *, largest: bool = False) -> "Ranking":
        """By value; of equal ones the earlier sample comes first."""
        return Ranking(values=values.double(), order=torch.argsort(values, descending=largest, stable=True))


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """A network and the samples of some roles, one role after the other; `labels` int64 [n] are their classes, if any.

    `groups` int64 [n] are the classes counted from 0, or all 0; -1 is not to be taken: an anomaly, which a training
    on normal samples must not learn.
    """

    task: Task
    model: nn.Module
    parts: Mapping[Role, Data]
    outputs: Tensor
    labels: Tensor | None
    groups: Tensor
    seed: int
    batch_size: int
    progress: Progress

    @staticmethod
    def of(task: Task, model: nn.Module, roles: tuple[Role, ...], seed: int, batch: int, progress: Progress) -> "View":
        place = device_of(model) or torch.device("cpu")
        parts: dict[Role, Data] = {role: task.data(role) for role in roles}
        found = [evaluate(model, task, data, r, None, batch, place, progress) for r, data in parts.items()]
        outputs = torch.cat([f.outputs for f in found if f.outputs is not None])
        labels = [f.targets for f in found if f.targets is not None]
        classes = _classes(task, outputs, torch.cat(labels) if len(labels) == len(found) else None)
        return View(
            task=task,
            model=model,
            parts=parts,
            outputs=outputs,
            labels=classes,
            groups=_normal(task, parts.values(), batch) if classes is None else classes.unique(return_inverse=True)[1],
            seed=seed,
            batch_size=batch,
            progress=progress,
        )

    def __len__(self) -> int:
        return len(self.outputs)

    @cached_property
    def inside(self) -> tuple[Graph, Mapping[str, Tensor]] | str:
        """Graph and tensors, or why there are none."""
        try:
            return structure(self.model, self.task.spec)
        except UnsupportedError as error:
            return error.found

    def batches(self, title: str) -> Generator[tuple[int, Batch]]:
        """Number of its first sample, and the batch, where the model is."""
        place, start = device_of(self.model) or torch.device("cpu"), 0
        with self.progress.task(title, len(self)) as advance:
            for data in self.parts.values():
                for batch in data.batches(self.batch_size):
                    yield start, moved(batch, place)
                    start += len(batch[0])
                    advance(len(batch[0]))


def margin(view: View, _wanted: int) -> Ranking:
    """The difference of the two largest probabilities, the smallest first."""
    largest = view.outputs.double().softmax(1).topk(2, dim=1).values
    return Ranking.of(largest[:, 0] - largest[:, 1])


def grad_cam(view: View, _wanted: int) -> Ranking | str:
    """Where the last convolution speaks for the answer: the sum of the map, scaled to [0, 1], the largest first.

    Source: Selvaraju et al. (2017), as captum's LayerGradCam computes it, for the class that the network answers. A
    map that is the same everywhere counts 0.
    """
    if isinstance(view.inside, str):
        return view.inside
    graph, state = view.inside
    name = last_convolution(graph)
    if name is None:
        return "the network has no convolution with more than one place"
    try:
        from captum.attr import LayerGradCam
    except ImportError as error:
        do = "pip install 'lilliput[safety]', or name other methods"
        raise MissingExtraError("a safety set by grad_cam", "captum is not installed", do) from error
    net, values = Inside(graph, state, name), torch.zeros(len(view), dtype=torch.float64)

    for start, (x, y) in view.batches("Grad-CAM"):

        def answer(inputs: Tensor, y: Any = y) -> Tensor:
            return view.task.forward(net, (inputs, y))

        rows = slice(start, start + len(x))
        with torch.enable_grad():
            maps: Any = LayerGradCam(answer, net.place).attribute(
                x.clone().requires_grad_(), target=view.outputs[rows].argmax(1).to(x.device), relu_attributions=True
            )
        flat = maps.detach().cpu().double().flatten(1)
        flat = flat - flat.amin(1, keepdim=True)
        values[rows] = (flat / flat.amax(1, keepdim=True).clamp(min=1e-300)).sum(1)
    return Ranking.of(values, largest=True)


def loss(view: View, _wanted: int) -> Ranking:
    """The loss of the task for each sample alone, the largest first."""
    values = torch.zeros(len(view), dtype=torch.float64)
    for start, batch in view.batches("loss"):
        target = moved(view.task.target(batch), torch.device("cpu"))
        for i in range(len(batch[0])):
            at = slice(i, i + 1)
            one = each_tensor(target, lambda t, at=at: t[at])
            values[start + i] = float(view.task.loss(view.outputs[start + i : start + i + 1], one))
    if not bool(torch.isfinite(values).all()):
        number = int(torch.nonzero(~torch.isfinite(values))[0])
        raise DataError("loss of the task", f"NaN or infinity on sample {number}", "mend the loss, or its targets")
    return Ranking.of(values, largest=True)


def diversity(view: View, wanted: int) -> Ranking | str:
    """Distances to the centre of one's cluster, of `wanted` clusters of pooled embeddings of all samples.

    The nearest samples of all clusters come first, then the second nearest; where there are classes, the nearest of
    its own. Among these the cluster comes first that has most samples of the class.
    """
    if isinstance(view.inside, str):
        return view.inside
    graph, state = view.inside
    found = embedding(graph)
    if found is None:
        return "the network has no layer"
    points = _embeddings(view, graph, state, *found)
    clusters, distances = _kmeans(points, wanted, view.seed)
    both = clusters * (int(view.groups.max()) + 2) + view.groups + 1
    _, group, count = both.unique(return_inverse=True, return_counts=True)
    nearest = torch.argsort(distances, stable=True)
    nearest = nearest[torch.argsort(group[nearest], stable=True)]  # by group, the nearest of each first
    first = torch.cumsum(count, 0) - count
    place = torch.empty_like(group)
    place[nearest] = torch.arange(len(group)) - first[group[nearest]]
    order = torch.argsort(distances, stable=True)
    for key in (-count[group], place):  # the last key counts most
        order = order[torch.argsort(key[order], stable=True)]
    return Ranking(values=distances, order=order)


def random(view: View, _wanted: int) -> Ranking:
    """Drawn; the value is the place in the drawn order."""
    order = torch.randperm(len(view), generator=torch.Generator().manual_seed(view.seed))
    return Ranking(values=torch.argsort(order).double(), order=order)


RANKINGS: Mapping[str, Callable[[View, int], Ranking | str]] = {
    "grad_cam": grad_cam,
    "margin": margin,
    "loss": loss,
    "diversity": diversity,
    "random": random,
}


def _classes(task: Task, outputs: Tensor, targets: Tensor | None) -> Tensor | None:
    """int64 [n] where each sample has one, and the outputs are a row of numbers for each class."""
    if targets is None or targets.is_floating_point() or task.kind == "regression":
        return None
    one = targets.numel() == len(outputs) and outputs.dim() == 2 and outputs.shape[1] > 1
    return targets.reshape(-1).long() if one else None


def _normal(task: Task, parts: Iterable[Data], batch: int) -> Tensor:
    """int64 [n]: 0, but -1 for what a task of anomalies calls one."""
    if task.kind != "anomaly":
        return torch.zeros(sum(map(len, parts)), dtype=torch.int64)
    labels = [task.target(b)[1].reshape(-1) for data in parts for b in data.batches(batch)]
    return -(torch.cat(labels) > 0).long()


def _embeddings(view: View, graph: Graph, state: Mapping[str, Tensor], name: str, axis: int) -> Tensor:
    """float64 [n, d]."""
    net, kept = Inside(graph, state, name), list[Tensor]()
    handle = net.place.register_forward_hook(lambda _m, _i, value: kept.append(pooled(value, axis).cpu().double()))
    with torch.no_grad():
        for _, batch in view.batches("embeddings"):
            view.task.forward(net, batch)
    handle.remove()
    return torch.cat(kept)


def _kmeans(points: Tensor, wanted: int, seed: int) -> tuple[Tensor, Tensor]:
    """int64 [n] and float64 [n]: the cluster of each point and how far it is from its centre.

    On one thread: sums of several threads are rounded in the order in which these come.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    clusters = min(wanted, len(torch.unique(points, dim=0)))
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # points so near each other that clusters stay empty
        found = KMeans(clusters, n_init=cast(Any, 1), max_iter=ITERATIONS, random_state=seed).fit(points.numpy())
    names = torch.from_numpy(found.labels_).long()
    return names, (points - torch.from_numpy(found.cluster_centers_)[names]).norm(dim=1)
