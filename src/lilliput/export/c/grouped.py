"""Products of sums in C99: for each row of weights, inputs that meet one value are added, and each sum multiplied once.

Patches of inputs are those of `products`: less their zero point, zeros for padding. A row is, in one table, how many
groups it has and the weight of each, and in the other, for each group and each block of inputs, how many of them it
adds and which. There are two forms of that table:

| form | members | inputs of a block |
|---|---|---|
| `grouped8` | a byte each | 255 |
| `grouped16` | two bytes each | 65,535: all |
"""

from dataclasses import dataclass

import numpy as np

from lilliput.core.program import Ints

BLOCK = {"grouped8": 255, "grouped16": 65535}
MEMBER = {"grouped8": "uint8_t", "grouped16": "uint16_t"}

SUMS = """
/* Outputs of one or two patches for all channels: y at channel x across + pixel x along. Goes on in both tables. */
@U_KERNEL void @F(const int16_t *patch, int32_t pixels, @Y *y, int32_t across, int32_t along, const @W **weights,
               const @O **members, const void *bias, int32_t wide, const @N_rescale_t *r, int32_t first,
               int32_t channels, int32_t length) {
  const @W *w = *weights;
  const @O *m = *members;
  for (int32_t o = first; o < first + channels; o++, y += across) {
    int32_t s0 = @N_bias(bias, wide, o)@S1;
    for (int32_t groups = *w++; groups > 0; groups--, w++) {
      int32_t x0 = 0@X1;
      for (int32_t block = 0; block < length; block += @BLOCK) {
        const int16_t *a = patch + block;
        const @O *end = m + 1 + *m;
        m++;
@ADD      }
      s0 += x0 * *w;
@MULTIPLY    }
    y[0] = (@Y)@FINISH(s0, r, o);
@SECOND  }
  *weights = w;
  *members = m;
}
"""

ONE = {"@S1": "", "@X1": "", "@ADD": "        while (m < end) x0 += a[*m++];\n", "@MULTIPLY": "", "@SECOND": ""}
TWO = {
    "@S1": ", s1 = s0",
    "@X1": ", x1 = 0",
    "@ADD": """        const int16_t *b = pixels > 1 ? a + length : a;
        while (m < end) {
          const int32_t i = *m++;
          x0 += a[i], x1 += b[i];
        }
""",
    "@MULTIPLY": "      s1 += x1 * *w;\n",
    "@SECOND": "    if (pixels > 1) y[along] = (@Y)@FINISH(s1, r, o);\n",
}

CONV = """
@U_KERNEL void @F(const @X *x, @Y *y, const @W *weight, const @O *member, const void *bias, int32_t wide,
               const @N_rescale_t *r, const @N_window_t *p, int16_t *patch) {
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
      for (int32_t n = 0; n < both; n++) @G(x + g * size, patch + n * length, p, planes, rows[n], columns[n], 0);
      @P(patch, both, y + g * channels * pixels + at, pixels, 1, &w, &m, bias, wide, r, g * channels, channels, length);
    }
  }
}
"""

LINEAR = """
@U_KERNEL void @F(const @X *x, @Y *y, const @W *weight, const @O *member, const void *bias, int32_t wide,
               const @N_rescale_t *r, int32_t rows, int32_t inputs, int32_t outputs, int32_t zero, int16_t *patch) {
  for (int32_t n = 0; n < rows; n += 2, x += 2 * inputs, y += 2 * outputs) {
    const int32_t both = n + 1 < rows ? 2 : 1;
    const @W *w = weight;
    const @O *m = member;
    for (int32_t i = 0; i < both; i++) @G(x + i * inputs, patch + i * inputs, inputs, zero, 0);
    @P(patch, both, y, 1, outputs, &w, &m, bias, wide, r, 0, outputs, inputs);
  }
}
"""


def sums(form: str, pixels: int) -> str:
    """The text of `SUMS` for a form of members, for layers of one output pixel or of more."""
    text = SUMS if pixels > 1 else SUMS.replace("{\n", "{\n  (void)pixels, (void)along;\n", 1)
    for mark, value in ((TWO if pixels > 1 else ONE) | {"@BLOCK": str(BLOCK[form])}).items():
        text = text.replace(mark, value)
    return text


@dataclass(frozen=True, kw_only=True, eq=False)
class Grouped:
    """The two tables of a layer; `weights` are of type `word`, `members` of `MEMBER[form]`."""

    form: str
    weights: Ints
    members: Ints
    word: str

    @property
    def bytes(self) -> int:
        return len(self.weights) * (1 if self.word == "int8_t" else 2) + len(self.members) * (
            1 if self.form == "grouped8" else 2
        )


def pack(rows: Ints, least: int, most: int) -> Grouped | None:
    """The smaller form of rows [n, k]; None where numbers leave 16 bits. `least` and `most` bound centred inputs."""
    ends = (least, most, int(rows.min(initial=0)), int(rows.max(initial=0)))
    if min(ends) < -(1 << 15) or max(ends) >= 1 << 15 or rows.shape[1] > BLOCK["grouped16"]:
        return None
    forms = [_packed(rows, form) for form in BLOCK]
    return min(forms, key=lambda grouped: grouped.bytes)


def _packed(rows: Ints, form: str) -> Grouped:
    blocks = np.arange(0, rows.shape[1], BLOCK[form])
    weights: list[int] = []
    members: list[int] = []
    for row in rows:
        values = np.unique(row[row != 0])
        weights += [len(values), *values.tolist()]
        for value in values:
            inputs = np.flatnonzero(row == value)
            for block in blocks:
                here = inputs[(inputs >= block) & (inputs < block + BLOCK[form])] - block
                members += [len(here), *here.tolist()]
    small = all(-128 <= w < 128 for w in weights)
    word = "int8_t" if small else "int16_t"
    return Grouped(form=form, weights=np.array(weights), members=np.array(members), word=word)
