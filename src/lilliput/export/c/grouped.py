"""Products of sums in C99: for each row of weights, inputs that meet one value are added, and each sum multiplied once.

Patches of inputs are those of `products`: less their zero point, zeros for padding. A row is, in one table, how many
groups it has and the weight of each, and in the other, for each group and each block of inputs, how many of them it
adds and which. Forms of that table:

| form | members | inputs of a block | for |
|---|---|---|---|
| `paired` | a byte each | 128 | several output pixels, inputs of 8 bits: one addition serves two pixels |
| `grouped8` | a byte each | 255 | |
| `grouped16` | two bytes each | 65,535: all | |

Two pixels in one word of 32 bits: the one in the lower half, the other in the upper; 128 inputs of -255..255 sum up to
less than 2^15 in each, and the lower half's sign is taken out of the upper at the end of a block.
"""

from dataclasses import dataclass

import numpy as np

from lilliput.core.program import Ints
from lilliput.export.c.tables import SIZES
from lilliput.export.c.text import filled

BLOCK = {"paired": 128, "grouped8": 255, "grouped16": 65535}
MEMBER = {"paired": "uint8_t", "grouped8": "uint8_t", "grouped16": "uint16_t"}
LARGEST_PAIRED = ((1 << 15) - 1) // BLOCK["paired"]

SUMS = """
/* Outputs of one or two patches for all channels: y at channel x across + pixel x along. Goes on in both tables. */
@U_KERNEL void @F(const @A *patch, int32_t pixels, @Y *y, int32_t across, int32_t along, const @W **weights,
               const @O **members, const void *bias, int32_t wide, const @N_rescale_t *r, int32_t first,
               int32_t channels, int32_t length) {
  const @W *w = *weights;
  const @O *m = *members;
  for (int32_t o = first; o < first + channels; o++, y += across) {
    int32_t s0 = @N_bias(bias, wide, o)@S1;
    for (int32_t groups = *w++; groups > 0; groups--, w++) {
      int32_t x0 = 0@X1;
      for (int32_t block = 0; block < length; block += @BLOCK) {
        const @A *a = patch + block;
        int32_t n = *m++;
@ADD      }
      s0 += x0 * *w;
@MULTIPLY    }
    y[0] = (@Y)@FINISH(s0, r, o);
@SECOND  }
  *weights = w;
  *members = m;
}
"""

ONE = {
    "@A": "int16_t",
    "@S1": "",
    "@X1": "",
    "@ADD": """        for (; n >= 4; n -= 4, m += 4) x0 += a[m[0]] + a[m[1]] + a[m[2]] + a[m[3]];
        for (; n > 0; n--) x0 += a[*m++];
""",
    "@MULTIPLY": "",
    "@SECOND": "",
}
TWO = ONE | {
    "@S1": ", s1 = s0",
    "@X1": ", x1 = 0",
    "@ADD": """        const int16_t *b = pixels > 1 ? a + length : a;
        for (; n > 0; n--) {
          const int32_t i = *m++;
          x0 += a[i], x1 += b[i];
        }
""",
    "@MULTIPLY": "      s1 += x1 * *w;\n",
    "@SECOND": "    if (pixels > 1) y[along] = (@Y)@FINISH(s1, r, o);\n",
}
PAIRED = TWO | {
    "@A": "uint32_t",
    "@ADD": """        uint32_t both = 0;
        for (; n >= 4; n -= 4, m += 4) both += a[m[0]] + a[m[1]] + a[m[2]] + a[m[3]];
        for (; n > 0; n--) both += a[*m++];
        const int32_t low = (int32_t)((both & 0xFFFF) ^ 0x8000) - 0x8000;
        x0 += low, x1 += (int32_t)(both - (uint32_t)low) >> 16;
""",
}

PAIR = """
/* Inputs of the first pixel (`half` 0), then of the second (1), into words of both. */
@U_KERNEL void @F(const int16_t *from, uint32_t *to, int32_t count, int32_t half) {
  if (half)
    for (; count > 0; count--) *to++ += (uint32_t)*from++ << 16;
  else
    for (; count > 0; count--) *to++ = (uint32_t)*from++;
}
"""

CONV = """
@U_KERNEL void @F(const @X *x, @Y *y, const @W *weight, const @O *member, const void *bias, int32_t wide,
               const @N_rescale_t *r, const @N_window_t *p, @A *patch) {
  const int32_t planes = p->planes / p->groups, channels = p->channels / p->groups;
  const int32_t length = planes * p->kernel_rows * p->kernel_columns, size = planes * p->rows * p->columns;
  const int32_t pixels = p->out_rows * p->out_columns;
  int32_t row = -p->top, column = -p->left, along = 0;
  for (int32_t at = 0; at < pixels; at += 2) {
    const int32_t both = at + 1 < pixels ? 2 : 1;
    const @W *w = weight;
    const @O *m = member;
    int32_t rows[2], columns[2];
    for (int32_t n = 0; n < both; n++) {
      rows[n] = row, columns[n] = column;
      column += p->stride_columns;
      if (++along == p->out_columns) along = 0, column = -p->left, row += p->stride_rows;
    }
    for (int32_t g = 0; g < p->groups; g++) {
      for (int32_t n = 0; n < both; n++) {
        @G(x + g * size, @TO, p, planes, rows[n], columns[n], 0);
@PAIR      }
      @P(patch, both, y + g * channels * pixels + at, pixels, 1, &w, &m, bias, wide, r, g * channels, channels, length);
    }
  }
}
"""

LINEAR = """
@U_KERNEL void @F(const @X *x, @Y *y, const @W *weight, const @O *member, const void *bias, int32_t wide,
               const @N_rescale_t *r, int32_t rows, int32_t length, int32_t outputs, int32_t zero, @A *patch) {
  for (int32_t at = 0; at < rows; at += 2, x += 2 * length, y += 2 * outputs) {
    const int32_t both = at + 1 < rows ? 2 : 1;
    const @W *w = weight;
    const @O *m = member;
    for (int32_t n = 0; n < both; n++) {
      @G(x + n * length, @TO, length, zero, 0);
@PAIR    }
    @P(patch, both, y, 1, outputs, &w, &m, bias, wide, r, 0, outputs, length);
  }
}
"""


def sums(form: str, pixels: int) -> str:
    """The text of `SUMS` for a form of members, for layers of one output pixel or of more."""
    text = SUMS if pixels > 1 else SUMS.replace("{\n", "{\n  (void)pixels, (void)along;\n", 1)
    parts = PAIRED if form == "paired" else TWO if pixels > 1 else ONE
    return filled(filled(text, parts), {"@A": parts["@A"], "@BLOCK": str(BLOCK[form])})


def layer(kind: str, form: str) -> str:
    """The text of a convolution or linear layer; `@K` is the kernel `PAIR`."""
    paired = form == "paired"
    pair = "        @K((const int16_t *)(patch + length), patch, length, n);\n" if paired else ""
    marks = {
        "@TO": "(int16_t *)(patch + length)" if paired else "patch + n * length",
        "@PAIR": pair if kind == "conv" else pair[2:],
        "@A": "uint32_t" if paired else "int16_t",
    }
    return filled(CONV if kind == "conv" else LINEAR, marks)


def scratch_bytes(form: str, length: int, pixels: int) -> int:
    """Of the patches of a layer whose rows have `length` weights."""
    return length * (6 if form == "paired" else 2 * min(pixels, 2))


@dataclass(frozen=True, kw_only=True, eq=False)
class Grouped:
    """The two tables of a layer; `weights` are of type `word`, `members` of `MEMBER[form]`."""

    form: str
    weights: Ints
    members: Ints
    word: str

    @property
    def bytes(self) -> int:
        return len(self.weights) * SIZES[self.word] + len(self.members) * SIZES[MEMBER[self.form]]


def pack(rows: Ints, pixels: int, least: int, most: int) -> Grouped | None:
    """Rows [n, k] of a layer with so many output pixels; None where numbers leave 16 bits.

    `least` and `most` bound inputs less their zero point.
    """
    ends = (least, most, int(rows.min(initial=0)), int(rows.max(initial=0)))
    if min(ends) < -(1 << 15) or max(ends) >= 1 << 15 or rows.shape[1] > BLOCK["grouped16"]:
        return None
    paired = pixels > 1 and max(-least, most) <= LARGEST_PAIRED
    forms = ("paired",) if paired else ("grouped8", "grouped16")
    return min((_packed(rows, form) for form in forms), key=lambda found: found.bytes)


def _packed(rows: Ints, form: str) -> Grouped:
    starts = np.arange(0, rows.shape[1], BLOCK[form])
    weights: list[int] = []
    members: list[int] = []
    for row in rows:
        values = np.unique(row[row != 0])
        weights += [len(values), *values.tolist()]
        for value in values:
            inputs = np.flatnonzero(row == value)
            for start, here in zip(starts, np.split(inputs, np.searchsorted(inputs, starts[1:])), strict=True):
                members += [len(here), *(here - start).tolist()]
    small = all(-128 <= w < 128 for w in weights)
    word = "int8_t" if small else "int16_t"
    return Grouped(
        form=form, weights=np.array(weights), members=np.array(members or [0]), word=word
    )  # C has no empty arrays
