"""Bytes of the `.lil` file by tensor and slot: counted on the file itself."""

from lilliput.core.container import Contents, sizes
from lilliput.core.cost import CostTable, Measurement


def file_sizes(contents: Contents) -> CostTable:
    """A row for each tensor: coded bytes of each slot, raw bits before coding, and the tensor's total bytes."""
    rows: list[tuple[str, Measurement]] = []
    for name, slots in sizes(contents).items():
        rows += [(name, Measurement(slot, float(count), "B", "counted")) for slot, count in slots.items()]
        rows.append((name, Measurement("total", float(sum(slots.values())), "B", "counted")))
        bits = sum(stream.raw_bits for stream in contents.streams[name])
        rows.append((name, Measurement("packed", bits / 8, "B", "counted")))
    return CostTable.of(rows)


def overhead(contents: Contents) -> int:
    """Bytes of the file that hold no tensor: magic, header, activation grids, checksum."""
    return contents.size - sum(sum(slots.values()) for slots in sizes(contents).values())
