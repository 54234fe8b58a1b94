"""The bars of resnet20.py, whether ours holds them, and the table of all rows in Markdown."""

from dataclasses import dataclass

GROUPS = {
    "near-lossless": "Near-lossless (float is 91.73%)",
    "4-bit": "4-bit class (>= 91.2%)",
    "small": "Small (>= 90.5%)",
    "sparse": "Sparse, nothing trained",
    "channels": "Channels, 50% of the MACs, nothing trained",
    "other": "Not measured",
}
COLUMNS = {
    "tool": "tool", "name": "row", "accuracy": "accuracy %",
    "bytes": "file", "zstd_bytes": "zstd -22", "xz_bytes": "xz -9e", "zeros": "zeros %", "macs": "MACs %",
    "times_faster": "x ORT fp32", "cpu_s": "CPU s",
}  # fmt: skip

TITLES = {
    "aimet": "AIMET", "deepcabac": "nncodec", "kmeans": "kmeans1d", "litert": "LiteRT",
    "sparse": "plain reimplementation", "torchpruning": "Torch-Pruning",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Bar:
    """Bounds that the named row of ours must keep; each row is named before it is measured, none is picked after."""

    group: str
    row: str
    aim: bool = False
    least: dict[str, float]
    most: dict[str, float]

    def holds(self, row):
        return all(row[k] >= v for k, v in self.least.items()) and all(row[k] <= v for k, v in self.most.items())

    def line(self, rows):
        bounds = [f"{COLUMNS[k]} >= {cell(k, self.least)}" for k in self.least]
        bounds += [f"{COLUMNS[k]} <= {cell(k, self.most)}" for k in self.most]
        row = rows.get(self.row)
        found = "not measured"
        if row is not None:
            values = ", ".join(cell(k, row) for k in (*self.least, *self.most))
            found = f"{'holds' if self.holds(row) else 'DOES NOT HOLD'} ({values})"
        return f'- {"aim" if self.aim else "must"}: "{self.row}" {", ".join(bounds)}: {found}'


def _bars():
    for group, accuracy, must, aim in (
        ("near-lossless", 91.5, 70, 58),
        ("4-bit", 91.2, 60, 53),
        ("small", 90.5, 50, 44),
    ):
        for size in (must, aim):
            yield Bar(
                group=group, row=f"at most {size} kB", aim=size == aim,
                least={"accuracy": accuracy}, most={"bytes": 1000 * size},
            )  # fmt: skip
    for size in (70, 58):  # with learned rounding: named when the rows above had been measured
        yield Bar(
            group="near-lossless", row=f"at most {size} kB, learned", aim=size == 58,
            least={"accuracy": 91.5}, most={"bytes": 1000 * size, "cpu_s": 300},
        )  # fmt: skip
    for share, accuracy, aim in ((50, 91.43, False), (70, 83.8, False), (70, 85.0, True)):
        yield Bar(
            group="sparse", row=f"second order, {share}% zero", aim=aim,
            least={"accuracy": accuracy}, most={"cpu_s": 20},
        )  # fmt: skip
    for accuracy, aim in ((60, False), (75, True)):
        yield Bar(
            group="channels", row="channels, 65% of the MACs in vectors of 16", aim=aim,
            least={"accuracy": accuracy, "times_faster": 1.5}, most={"macs": 0.5},
        )  # fmt: skip


BARS = tuple(_bars())


def cell(key, row):
    value = row.get(key)
    if value is None:
        return "-"
    if key in ("zeros", "macs"):
        return f"{100 * value:.1f}"
    if key.endswith("bytes"):
        return f"{value:,}"
    return {"accuracy": "{:.2f}", "times_faster": "{:.2f}", "cpu_s": "{:.1f}"}.get(key, "{}").format(value)


def text(found):
    """All of results/resnet20.txt."""
    ours = found.get("ours", {})
    rows = [{"tool": "Lilliput", "name": name, **row} for name, row in ours.items()]
    rows += [
        {"tool": TITLES.get(peer, peer), **row} for peer, one in found.get("peers", {}).items() for row in one["rows"]
    ]
    lines = [found["how"], ""]
    for group, title in GROUPS.items():
        members = [row for row in rows if row["group"] == group]
        if not members:
            continue
        keys = [k for k in COLUMNS if any(row.get(k) is not None for row in members)]
        keys = [k for k in keys if k != "zeros" or group == "sparse"]
        lines += [f"## {title}", "", "| " + " | ".join(COLUMNS[k] for k in keys) + " |"]
        lines.append("|" + "|".join("---" if k in ("tool", "name") else "---:" for k in keys) + "|")
        for row in sorted(members, key=lambda r: -r.get("accuracy", 0)):
            lines.append("| " + " | ".join(cell(k, row) for k in keys) + " |")
        lines += ["", *(f"- {r['tool']}, {r['name']}: {r['error']}" for r in members if "error" in r)]
        lines += [*(bar.line(ours) for bar in BARS if bar.group == group), ""]
    lines += ["## Versions", ""]
    lines += [f"- Lilliput: {', '.join(f'{k} {v}' for k, v in found.get('environment', {}).items())}"]
    for peer, one in found.get("peers", {}).items():
        lines.append(
            f"- {TITLES.get(peer, peer)}: {', '.join(f'{k} {v}' for k, v in one['versions'].items()) or 'did not run'}"
        )
    return "\n".join(lines) + "\n"
