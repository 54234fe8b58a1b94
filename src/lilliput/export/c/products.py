"""Sums of products in C99: patches of inputs times rows of weights, two pixels and two channels at a time.

A patch is the inputs of one output pixel less their zero point, as int16, in the order of a row of weights. Rows are
padded with zeros to `STEP` weights; two rows lie in one another, a word of the one and a word of the other, in the
order that the DSP instructions of Arm's M profile (LDRD, SXTB16, SMLAD) take without shuffling. Cores without them run
the plain loops on the same tables. Forms of rows:

| form | what a row holds |
|---|---|
| `int8`, `int16` | the weights |
| `int4` | two weights of -8..7 to the byte |
| `codes` | two indices of 4 bits to the byte, into a table of at most 16 values |

Define the macro NAME_PLAIN to leave the DSP instructions out.
"""

from dataclasses import dataclass

import numpy as np

from lilliput.core.program import Ints

STEP = {"int8": 4, "int16": 4, "int4": 8, "codes": 8}
WORD = {"int8": "int8_t", "int16": "int16_t", "int4": "uint8_t", "codes": "uint8_t"}
LARGEST_BOOK = 16
ORDER = (0, 2, 1, 3)
"""SXTB16 takes bytes 0 and 2 of a word, and after a turn by 8 bits 1 and 3: pairs of neighbours, stored like this."""

HELPERS = """
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-tree-loop-distribute-patterns") /* no calls of memset */
#define @U_KERNEL static __attribute__((noipa))          /* one copy of each: size and stack are as planned */
#elif defined(__clang__)
#define @U_KERNEL static __attribute__((noinline))
#else
#define @U_KERNEL static
#endif

#if defined(__ARM_FEATURE_DSP) && !defined(@U_PLAIN)
#define @U_DSP 1
typedef int32_t __attribute__((may_alias)) @N_pair_t;
#define @U_ALIGNED __attribute__((aligned(4)))
/* bytes 0 and 2, or 1 and 3, as two int16 */
static inline int32_t @N_even(int32_t w) {
  int32_t pair;
  __asm__("sxtb16 %0, %1" : "=r"(pair) : "r"(w));
  return pair;
}
static inline int32_t @N_odd(int32_t w) {
  int32_t pair;
  __asm__("sxtb16 %0, %1, ror #8" : "=r"(pair) : "r"(w));
  return pair;
}
/* the next two words */
#define @U_NEXT(p, a, b) __asm__("ldrd %0, %1, [%2], #8" : "=&r"(a), "=&r"(b), "+r"(p) : : "memory")
/* sum + both products */
static inline int32_t @N_both(int32_t w, int32_t x, int32_t sum) {
  int32_t result;
  __asm__("smlad %0, %1, %2, %3" : "=r"(result) : "r"(w), "r"(x), "r"(sum));
  return result;
}
/* the values of two codes */
static inline int32_t @N_pick(const int16_t *book, uint32_t codes) {
  const uint32_t low = (uint16_t)book[codes & 15], high = (uint16_t)book[codes >> 16 & 15];
  return (int32_t)(low | high << 16);
}
#else
#define @U_ALIGNED
#endif

/* Of a table of int32_t (`wide`) or int16_t; 0 without one. */
static inline int32_t @N_bias(const void *bias, int32_t wide, int32_t channel) {
  if (!bias) return 0;
  return wide ? ((const int32_t *)bias)[channel] : ((const int16_t *)bias)[channel];
}
"""

GATHER = """
/* The inputs under a window, less their zero point: row, column is its corner. */
@U_KERNEL void @F(const @X *x, int16_t *to, const @N_window_t *p, int32_t planes, int32_t row, int32_t column,
               int32_t pad) {
  const int32_t zero = p->zero, size = p->rows * p->columns, wide = p->kernel_columns, step = p->step_columns;
  const int32_t pitch = p->step_rows * p->columns;
  if (row >= 0 && column >= 0 && row + (p->kernel_rows - 1) * p->step_rows < p->rows &&
      column + (wide - 1) * step < p->columns) {
    const @X *plane = x + row * p->columns + column;
    for (int32_t c = planes; c > 0; c--, plane += size) {
      const @X *from = plane;
      for (int32_t i = p->kernel_rows; i > 0; i--, from += pitch) {
        if (wide == 3 && step == 1) {
          to[0] = (int16_t)(from[0] - zero);
          to[1] = (int16_t)(from[1] - zero);
          to[2] = (int16_t)(from[2] - zero);
          to += 3;
        } else {
          const @X *at = from;
          for (int32_t j = wide; j > 0; j--, at += step) *to++ = (int16_t)(*at - zero);
        }
      }
    }
  } else {
    int32_t before = 0, after = wide; /* the columns of the kernel that lie inside: before <= j < after */
    while (before < wide && column + before * step < 0) before++;
    while (after > before && column + (after - 1) * step >= p->columns) after--;
    for (int32_t c = planes; c > 0; c--, x += size) {
      for (int32_t i = 0, h = row; i < p->kernel_rows; i++, h += p->step_rows) {
        int32_t j = 0;
        if (h >= 0 && h < p->rows) {
          const @X *at = x + h * p->columns + column + before * step;
          for (; j < before; j++) *to++ = 0;
          for (; j < after; j++, at += step) *to++ = (int16_t)(*at - zero);
        }
        for (; j < wide; j++) *to++ = 0;
      }
    }
  }
  for (; pad > 0; pad--) *to++ = 0;
}
"""

EXPAND = """
@U_KERNEL void @F(const @X *x, int16_t *to, int32_t count, int32_t zero, int32_t pad) {
  for (; count > 0; count--) *to++ = (int16_t)(*x++ - zero);
  for (; pad > 0; pad--) *to++ = 0;
}
"""


def _plain(k: str, m: str, at: int, pixels: int) -> str:
    """One input (two, of two pixels) times the weights of two channels."""
    second = f", y = b[{at}]", ", s2 += k * y, s3 += l * y"
    load, more = second if pixels > 1 else ("", "")
    return f"    k = {k}, l = {m}, x = a[{at}]{load};\n    s0 += k * x, s1 += l * x{more};\n"


def _pairs(expand: str, weights: tuple[str, str], inputs: str, sums: str) -> str:
    """The same for two inputs at once: `inputs` are words of two, one for each pixel."""
    lines: list[str] = []
    for i, weight in enumerate(weights):
        lines.append(f"k = {expand}({weight});" if expand else f"k = {weight};")
        lines += [f"{sums}{i + 2 * j} = @N_both(k, {x}, {sums}{i + 2 * j});" for j, x in enumerate(inputs)]
    return "".join(f"    {line}\n" for line in lines)


def _loop(form: str, pixels: int) -> str:
    """The sums of one or two pixels and two channels: instructions for pairs, and plain C."""
    step = STEP[form]
    entries = 2 * step if form in ("int8", "int16") else step
    more = f", b += {step}" if pixels > 1 else ""
    plain = f"  for (; count > 0; count -= {step}, a += {step}{more}, w += {entries}) {{\n    int32_t k, l, x"
    plain += ", y;\n" if pixels > 1 else ";\n"
    plain += "".join(_plain(*_weights(form, i), i, pixels) for i in range(step)) + "  }\n"
    load = "@U_NEXT(p, x, s);" + (" @U_NEXT(q, y, t);" if pixels > 1 else "")
    first, second = ("x", "y")[:pixels], ("s", "t")[:pixels]
    head = f"  const @N_pair_t *p = (const @N_pair_t *)a{', *q = (const @N_pair_t *)b' if pixels > 1 else ''};\n"
    words = "count" if form == "int16" else f"count / {step} * 2"
    head += f"  const @N_pair_t *u = (const @N_pair_t *)w, *end = u + {words};\n"
    names = ", ".join((*first, *second))
    body = f"  while (u < end) {{\n    int32_t e, f, k, {names};\n    @U_NEXT(u, e, f);\n    {load}\n"
    tail = ""
    if form == "codes":
        for shift in (0, 8, 4, 12):
            body += "" if shift != 4 else f"    {load}\n"
            picked = f"@N_pick(book, (uint32_t)e >> {shift})", f"@N_pick(book, (uint32_t)f >> {shift})"
            body += _pairs("", picked, "".join(first if shift in (0, 4) else second), "s")
    elif form == "int16":
        body += _pairs("", ("e", "f"), "".join(first), "s") + "    @U_NEXT(u, e, f);\n"
        body += _pairs("", ("e", "f"), "".join(second), "s")
    elif form == "int8":
        body += _pairs("@N_even", ("e", "f"), "".join(first), "s") + _pairs("@N_odd", ("e", "f"), "".join(second), "s")
    else:  # weights times 16: the upper half of a byte needs no shift then
        sums = [f"t{i}" for i in range(2 * pixels)]
        head += "  int32_t " + ", ".join(f"{name} = 0" for name in sums) + ";\n"
        tail = "  " + ", ".join(f"s{name[1]} += {name} >> 4" for name in sums) + ";\n"
        upper = "(int32_t)((uint32_t){0} & 0xF0F0F0F0u)"
        lower = "(int32_t)((uint32_t){0} << 4 & 0xF0F0F0F0u)"
        body += f"    int32_t g = {lower.format('e')}, h = {lower.format('f')};\n"
        body += _pairs("@N_even", ("g", "h"), "".join(first), "t") + _pairs("@N_odd", ("g", "h"), "".join(second), "t")
        body += f"    {load}\n    e = {upper.format('e')}, f = {upper.format('f')};\n"
        body += _pairs("@N_even", ("e", "f"), "".join(first), "t") + _pairs("@N_odd", ("e", "f"), "".join(second), "t")
    return f"#ifdef @U_DSP\n{head}{body}  }}\n{tail}#else\n{plain}#endif\n"


def _weights(form: str, i: int) -> tuple[str, str]:
    """The i-th weight of a step, of both channels."""
    if form == "int16":
        return f"w[{i % 2 + i // 2 * 4}]", f"w[{i % 2 + i // 2 * 4 + 2}]"
    rows = f"w[{ORDER[i % 4]}]", f"w[{ORDER[i % 4] + 4}]"
    if form == "int8":
        return rows
    codes = [f"({row} & 15)" if i < 4 else f"({row} >> 4)" for row in rows]
    if form == "codes":
        return f"book[{codes[0]}]", f"book[{codes[1]}]"
    low, high = (f"({code} ^ 8) - 8" for code in codes)
    return low, high


PRODUCTS = """
/* Outputs of one or two patches for all channels: y at channel x across + pixel x along. */
@U_KERNEL void @F(const int16_t *patch, int32_t pixels, @Y *y, int32_t across, int32_t along, const @W *weight,
               const void *bias, int32_t wide, const @N_rescale_t *r, int32_t first, int32_t channels,
               int32_t pitch@BOOK) {
  for (int32_t o = 0; o < channels; o += 2, weight += 2 * (@LENGTH), y += 2 * across) {
    const int32_t pair = o + 1 < channels, c = first + o, d = c + pair;
    const int16_t *a = patch;
    const @W *w = weight;
    int32_t count = pitch, s0 = @N_bias(bias, wide, c), s1 = @N_bias(bias, wide, d);
@LOOP    y[0] = (@Y)@FINISH(s0, r, c);
    if (pair) y[across] = (@Y)@FINISH(s1, r, d);
@SECOND  }
}
"""

SECOND = """    if (pixels > 1) {
      y[along] = (@Y)@FINISH(s2, r, c);
      if (pair) y[across + along] = (@Y)@FINISH(s3, r, d);
    }
"""

CONV = """
@U_KERNEL void @F(const @X *x, @Y *y, const @W *weight, const void *bias, int32_t wide, const @N_rescale_t *r,
               const @N_window_t *p, int16_t *patch@BOOK) {
  const int32_t planes = p->planes / p->groups, channels = p->channels / p->groups;
  const int32_t length = planes * p->kernel_rows * p->kernel_columns, pitch = (length + @STEP - 1) / @STEP * @STEP;
  const int32_t pixels = p->out_rows * p->out_columns;
  for (int32_t g = 0; g < p->groups; g++) {
    int32_t row = -p->top, column = -p->left, along = 0;
    for (int32_t at = 0; at < pixels; at += 2) {
      const int32_t both = at + 1 < pixels ? 2 : 1;
      for (int32_t n = 0; n < both; n++) {
        @G(x, patch + n * pitch, p, planes, row, column, pitch - length);
        column += p->stride_columns;
        if (++along == p->out_columns) along = 0, column = -p->left, row += p->stride_rows;
      }
      @P(patch, both, y + at, pixels, 1, weight, bias, wide, r, g * channels, channels, pitch@PASS);
    }
    x += planes * p->rows * p->columns, y += channels * pixels, weight += (channels + 1) / 2 * 2 * (@LENGTH);
  }
}
"""

LINEAR = """
@U_KERNEL void @F(const @X *x, @Y *y, const @W *weight, const void *bias, int32_t wide, const @N_rescale_t *r,
               int32_t rows, int32_t inputs, int32_t outputs, int32_t zero, int16_t *patch@BOOK) {
  const int32_t pitch = (inputs + @STEP - 1) / @STEP * @STEP;
  for (int32_t n = 0; n < rows; n += 2, x += 2 * inputs, y += 2 * outputs) {
    const int32_t both = n + 1 < rows ? 2 : 1;
    for (int32_t i = 0; i < both; i++) @G(x + i * inputs, patch + i * pitch, inputs, zero, pitch - inputs);
    @P(patch, both, y, 1, outputs, weight, bias, wide, r, 0, outputs, pitch@PASS);
  }
}
"""


def products(form: str, pixels: int) -> str:
    """The text of `PRODUCTS` for a form of rows, for layers of one output pixel or of more."""
    text = PRODUCTS.replace("@LOOP", _loop(form, pixels)).replace("@SECOND", SECOND if pixels > 1 else "")
    if pixels > 1:
        text = text.replace("*a = patch;", "*a = patch, *b = pixels > 1 ? patch + pitch : patch;").replace(
            "wide, d);", "wide, d), s2 = s0, s3 = s1;"
        )
    else:
        text = text.replace("{\n", "{\n  (void)pixels, (void)along;\n", 1)
    return with_form(text, form)


def with_form(text: str, form: str) -> str:
    """Fills in what depends on the form of rows in `PRODUCTS`, `CONV` and `LINEAR`."""
    book = form == "codes"
    length = "pitch" if STEP[form] == 4 else "pitch / 2"
    marks = {
        "@BOOK": ", const int16_t *book" if book else "",
        "@PASS": ", book" if book else "",
        "@LENGTH": length,
        "@STEP": str(STEP[form]),
        "@W": WORD[form],
    }
    for mark, value in marks.items():
        text = text.replace(mark, value)
    return text


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Weights as a kernel reads them: `data` of type `WORD[form]`, `book` for `codes`."""

    form: str
    data: Ints
    book: Ints | None = None

    @property
    def bytes(self) -> int:
        size = 2 if self.form == "int16" else 1
        return self.data.size * size + (0 if self.book is None else 2 * len(self.book))


def pack(weight: Ints, groups: int, least: int, most: int) -> Rows | None:
    """The smallest form of rows [n, k] of n / groups channels each; None if none will do.

    `least` and `most` bound inputs less their zero point.
    """
    if weight.size == 0 or not _fits(least, most) or not _fits(int(weight.min()), int(weight.max())):
        return None
    low, high, values = int(weight.min()), int(weight.max()), np.unique(weight)
    if low >= -8 and high <= 7 and 16 * max(-least, most) * int(np.abs(weight).sum(axis=1).max()) < 1 << 31:
        return Rows(form="int4", data=_laid(_nibbles(_padded(weight & 15, "int4")), groups, 4))
    form = "int8" if low >= -128 and high <= 127 else "int16"
    rows = _padded(weight, form)
    if form == "int8":
        rows = rows.reshape(len(rows), -1, 4)[:, :, ORDER].reshape(rows.shape)
    whole = Rows(form=form, data=_laid(rows, groups, 4 if form == "int8" else 2))
    if len(values) > LARGEST_BOOK:
        return whole
    codes = _nibbles(_padded(np.searchsorted(values, weight), "codes"))
    shared = Rows(form="codes", data=_laid(codes, groups, 4), book=values)
    return shared if shared.bytes < whole.bytes else whole


def scratch_bytes(form: str, length: int, pixels: int) -> int:
    """Of the patches of a layer whose rows have `length` weights."""
    return 2 * -(-length // STEP[form]) * STEP[form] * min(pixels, 2)


def _fits(low: int, high: int) -> bool:
    return low >= -(1 << 15) and high < 1 << 15


def _padded(rows: Ints, form: str) -> Ints:
    extra = -rows.shape[1] % STEP[form]
    return np.pad(rows, ((0, 0), (0, extra)))


def _nibbles(codes: Ints) -> Ints:
    """Rows of eight codes to four bytes: the first four in the lower halves, each four in `ORDER`."""
    halves = codes.reshape(len(codes), -1, 2, 4)[..., ORDER]
    return (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(len(codes), -1)


def _laid(rows: Ints, groups: int, word: int) -> Ints:
    """Each two rows of a group in one another, `word` numbers of each in turn; zeros for a missing last row."""
    parts = rows.reshape(groups, len(rows) // groups, -1)
    parts = np.pad(parts, ((0, 0), (0, parts.shape[1] % 2), (0, 0)))
    return parts.reshape(groups, -1, 2, parts.shape[2] // word, word).swapaxes(2, 3).reshape(-1)
