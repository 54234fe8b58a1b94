"""A character transformer on generated names: its linear layers compress themselves.

    python benchmarks/names_transformer.py

4,000 names from a made grammar of syllables (no data needed), next-character cross-entropy in nats; the last 500 are
the test, read once for each network. Bytes are those of the `.lil` file without recipe and graph. One thread, about two
minutes. Writes results/names_transformer.json.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import lilliput as ll
from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.method import Context, apply_checked_
from lilliput.core.score import Score
from lilliput.core.task import Task
from lilliput.report.result import environment
from lilliput.training.fit import fit
from lilliput.training.settings import FitSettings

RESULTS = Path(__file__).parent / "results" / "names_transformer.json"
SYLLABLES = "an be cor da el fi ga ha il jo ka lu mi no or pe ra si to ur va wen ya zo".split()  # noqa: SIM905
CONTEXT, LETTERS = 16, 27
SHARES, DROPS = (8, 12, 16), ("0.5%", "2%", "5%")


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        n, t, width = x.shape
        parts = self.qkv(self.norm1(x)).chunk(3, -1)
        q, k, v = (p.reshape(n, t, self.heads, width // self.heads).transpose(1, 2) for p in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, t, width)
        x = x + self.out(y)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class NamesTransformer(nn.Module):
    def __init__(self, *, width=64, blocks=2, heads=4):
        super().__init__()
        self.embed = nn.Linear(LETTERS, width, bias=False)
        self.place = nn.Parameter(torch.randn(CONTEXT, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, LETTERS)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.embed(x) + self.place)))


def names(count, generator):
    """Two to four syllables, each one of five that may follow the one before."""

    def draw(below):
        return int(torch.randint(0, below, (), generator=generator))

    found = []
    for _ in range(count):
        at, name = draw(len(SYLLABLES)), ""
        for _ in range(2 + draw(3)):
            name += SYLLABLES[at]
            at = (at * 7 + draw(5)) % len(SYLLABLES)
        found.append(name[: CONTEXT - 1])
    return found


def coded(words):
    """One-hot inputs [n, t, letters], the letters that follow [n, t]; -1 after the end."""
    x = torch.zeros(len(words), CONTEXT, dtype=torch.int64)
    y = torch.full((len(words), CONTEXT), -1)
    for i, word in enumerate(words):
        text = torch.tensor([0, *(ord(c) - ord("a") + 1 for c in word), 0])
        x[i, : len(text) - 1], y[i, : len(text) - 1] = text[:-1], text[1:]
    return F.one_hot(x, LETTERS).float(), y


def statistics(outputs, targets):
    each = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none")
    return torch.stack([each.reshape(targets.shape).sum(1), (targets >= 0).sum(1).float()], 1)


def make():
    x, y = coded(names(4000, torch.Generator().manual_seed(0)))
    task = Task(
        train=(x[:3000], y[:3000]),
        validation=(x[3000:3500], y[3000:3500]),
        test=(x[3500:], y[3500:]),
        loss=lambda o, t: F.cross_entropy(o.flatten(0, 1), t.flatten(), ignore_index=-1),
        score=Score(
            name="cross-entropy",
            higher_is_better=False,
            statistics=statistics,
            reduce=lambda rows: float(rows[:, 0].sum() / rows[:, 1].sum()),
        ),
        ok=lambda outputs, targets, before: outputs.argmax(-1).eq(before.argmax(-1)).all(1),
    )
    torch.manual_seed(0)
    net = Artifact.of(NamesTransformer(), task.spec)
    settings = FitSettings(epochs=8, batch_size=64, learning_rate=3e-3, schedule="one_cycle", keep="last")
    fit(net, task, settings, generator=torch.Generator().manual_seed(0))
    return net.module, task


def loss_of(module, task):
    data = task.data("test")
    with torch.inference_mode():
        rows = torch.cat([task.score.statistics(module(x), y) for x, y in data.batches(250)])
    return task.score.value(rows)


def main():
    torch.set_num_threads(1)
    model, task = make()
    first = Artifact.of(model, task.spec)
    whole, reference = len(container.dumps(first, strip=True)), loss_of(model, task)
    rows = {"float32": {"loss": reference, "lil_bytes": whole}}
    wanted: dict[str, dict[str, Any]] = {f"1/{share} of the bytes": {"max_bytes": whole // share} for share in SHARES}
    wanted |= {f"loss on validation at most {drop} higher": {"max_drop": drop} for drop in DROPS}
    for name, settings in wanted.items():
        started = time.process_time()
        net = first.copy()
        method = ll.SelfCompression(**settings, epochs=8, batch_size=64, distillation=0.0)
        apply_checked_(method, net, Context.of(task, model))
        rows[name] = {
            "loss": loss_of(net.module, task),
            "lil_bytes": len(container.dumps(net, strip=True)),
            "cpu_s": round(time.process_time() - started, 1),
        }
    for name, row in rows.items():
        print(f"{name:42} loss {row['loss']:.4f} ({100 * (row['loss'] / reference - 1):+.1f}%) {row['lil_bytes']:8,} B")
    RESULTS.write_text(json.dumps({"rows": rows, "environment": environment()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
