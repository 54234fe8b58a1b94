"""The C99 text of the kernels: one function for each operation, for the types of its input and output.

`@X` and `@Y` are the types of input and output, `@W` that of weights, `@N` the prefix of all names. No kernel
allocates, calls a library, or computes in floating point; integers wider than 32 bits appear in the rescaling only.
"""

HELPERS = """
/* floor(v / 2^shift + 1/2) + zero, within low..high */
static inline int32_t @N_shifted(int64_t v, int32_t shift, int32_t zero, int32_t low, int32_t high) {
  if (shift > 0) v = (v + ((int64_t)1 << (shift - 1))) >> shift;
  v += zero;
  return (int32_t)(v < low ? low : v > high ? high : v);
}

/* Sums of 32 bits; shifts above 32 need the upper half of the product only. */
static inline int32_t @N_rescale(int32_t sum, const @N_rescale_t *r, int32_t channel) {
  const int64_t product = (int64_t)sum * r->multiplier[r->per_channel ? channel : 0];
  const int32_t zero = r->zero@OFFSET, low = r->low, high = r->high;
  int32_t v;
  if (r->shift <= 32) return @N_shifted(product, r->shift, zero, low, high);
  v = (((int32_t)(product >> 32) + ((int32_t)1 << (r->shift - 33))) >> (r->shift - 32)) + zero;
  return v < low ? low : v > high ? high : v;
}
"""
OFFSET_OF, NO_OFFSET = " + (r->offset ? r->offset[channel] : 0)", ""

CONV = """
/* `whole` is the bias less the weights times the input's zero point, for windows that lie inside; or 0. */
@U_KERNEL void @F(const @X *x, @Y *y, const @W *weight, const int32_t *bias, const @N_rescale_t *r,
                  const @N_window_t *p, const int32_t *whole) {
  const int32_t planes = p->planes / p->groups, channels = p->channels / p->groups, zero = p->zero;
  const int32_t size = p->rows * p->columns, kernel = p->kernel_rows * p->kernel_columns;
  const int32_t step = p->step_columns, pitch = p->step_rows * p->columns;
  for (int32_t o = 0; o < p->channels; o++, weight += planes * kernel) {
    const @X *group = x + (o / channels) * planes * size;
    for (int32_t h = 0; h < p->out_rows; h++) {
      const int32_t row = h * p->stride_rows - p->top;
      int32_t i0 = 0, i1 = p->kernel_rows; /* the rows of the kernel that lie inside */
      while (i0 < i1 && row + i0 * p->step_rows < 0) i0++;
      while (i1 > i0 && row + (i1 - 1) * p->step_rows >= p->rows) i1--;
      for (int32_t v = 0; v < p->out_columns; v++) {
        const int32_t column = v * p->stride_columns - p->left;
        int32_t j0 = 0, j1 = p->kernel_columns;
        while (j0 < j1 && column + j0 * step < 0) j0++;
        while (j1 > j0 && column + (j1 - 1) * step >= p->columns) j1--;
        const int32_t high = i1 - i0, wide = j1 - j0;
        const int inside = whole && high == p->kernel_rows && wide == p->kernel_columns;
        int32_t sum = inside ? whole[o] : bias ? bias[o] : 0;
        if (high > 0 && wide > 0) {
          const @W *w = weight + i0 * p->kernel_columns + j0;
          const @X *plane = group + (row + i0 * p->step_rows) * p->columns + column + j0 * step;
          if (inside && kernel == 9 && wide == 3 && step == 1) {
            for (int32_t c = planes; c > 0; c--, w += 9, plane += size) {
              const @X *b = plane;
              sum += (int32_t)w[0] * b[0] + (int32_t)w[1] * b[1] + (int32_t)w[2] * b[2];
              b += pitch;
              sum += (int32_t)w[3] * b[0] + (int32_t)w[4] * b[1] + (int32_t)w[5] * b[2];
              b += pitch;
              sum += (int32_t)w[6] * b[0] + (int32_t)w[7] * b[1] + (int32_t)w[8] * b[2];
            }
          } else {
            const int32_t less = inside ? 0 : zero;
            for (int32_t c = planes; c > 0; c--, w += kernel, plane += size) {
              const @W *a = w;
              const @X *b = plane;
              for (int32_t i = high; i > 0; i--, a += p->kernel_columns, b += pitch)
                for (int32_t k = 0; k < wide; k++) sum += (int32_t)a[k] * ((int32_t)b[k * step] - less);
            }
          }
        }
        *y++ = (@Y)@FINISH;
      }
    }
  }
}
"""

CONV_TRANSPOSED = """
@U_KERNEL void @F(const @X *x, @Y *y, const @W *weight, const int32_t *bias, const @N_rescale_t *r,
                  const @N_window_t *p) {
  const int32_t planes = p->planes / p->groups, channels = p->channels / p->groups;
  for (int32_t o = 0; o < p->channels; o++) {
    const int32_t first = (o / channels) * planes;
    for (int32_t h = 0; h < p->out_rows; h++) {
      for (int32_t v = 0; v < p->out_columns; v++) {
        int32_t sum = bias ? bias[o] : 0;
        for (int32_t c = first; c < first + planes; c++) {
          const @X *plane = x + c * p->rows * p->columns;
          const @W *w = weight + (c * channels + o % channels) * p->kernel_rows * p->kernel_columns;
          for (int32_t i = 0; i < p->kernel_rows; i++, w += p->kernel_columns) {
            const int32_t down = h + p->top - i * p->step_rows;
            if (down < 0 || down % p->stride_rows || down / p->stride_rows >= p->rows) continue;
            for (int32_t j = 0; j < p->kernel_columns; j++) {
              const int32_t right = v + p->left - j * p->step_columns;
              if (right < 0 || right % p->stride_columns || right / p->stride_columns >= p->columns) continue;
              sum += (int32_t)w[j] *
                     ((int32_t)plane[down / p->stride_rows * p->columns + right / p->stride_columns] - p->zero);
            }
          }
        }
        *y++ = (@Y)@FINISH;
      }
    }
  }
}
"""

LINEAR = """
@U_KERNEL void @F(const @X *x, @Y *y, const @W *weight, const int32_t *bias, const @N_rescale_t *r, int32_t rows,
               int32_t inputs, int32_t outputs, int32_t zero) {
  for (int32_t n = 0; n < rows; n++, x += inputs) {
    const @W *w = weight;
    for (int32_t o = 0; o < outputs; o++) {
      int32_t sum = bias ? bias[o] : 0;
      for (int32_t i = 0; i < inputs; i++) sum += (int32_t)*w++ * ((int32_t)x[i] - zero);
      *y++ = (@Y)@FINISH;
    }
  }
}
"""

SUM_POOL = """
@U_KERNEL void @F(const @X *x, @Y *y, const @N_rescale_t *r, const @N_window_t *p) {
  for (int32_t c = 0; c < p->planes; c++, x += p->rows * p->columns) {
    for (int32_t h = 0; h < p->out_rows; h++) {
      for (int32_t v = 0; v < p->out_columns; v++) {
        int32_t sum = 0;
        for (int32_t i = 0; i < p->kernel_rows; i++) {
          const int32_t row = h * p->stride_rows + i - p->top;
          if (row < 0 || row >= p->rows) continue;
          for (int32_t j = 0; j < p->kernel_columns; j++) {
            const int32_t column = v * p->stride_columns + j - p->left;
            if (column < 0 || column >= p->columns) continue;
            sum += (int32_t)x[row * p->columns + column] - p->zero;
          }
        }
        *y++ = (@Y)@FINISH;
      }
    }
  }
}
"""

MAX_POOL = """
@U_KERNEL void @F(const @X *x, @Y *y, const @N_window_t *p, int32_t least) {
  for (int32_t c = 0; c < p->planes; c++, x += p->rows * p->columns) {
    for (int32_t h = 0; h < p->out_rows; h++) {
      for (int32_t v = 0; v < p->out_columns; v++) {
        int32_t most = least;
        for (int32_t i = 0; i < p->kernel_rows; i++) {
          const int32_t row = h * p->stride_rows + i * p->step_rows - p->top;
          if (row < 0 || row >= p->rows) continue;
          for (int32_t j = 0; j < p->kernel_columns; j++) {
            const int32_t column = v * p->stride_columns + j * p->step_columns - p->left;
            if (column < 0 || column >= p->columns) continue;
            if ((int32_t)x[row * p->columns + column] > most) most = x[row * p->columns + column];
          }
        }
        *y++ = (@Y)most;
      }
    }
  }
}
"""

ADD = """
@U_KERNEL void @F(const @X *a, const @W *b, @Y *y, int32_t shift, int32_t zero, int32_t low, int32_t high, int64_t by_a,
               int64_t by_b, int32_t zero_a, int32_t zero_b, int32_t count) {
  for (int32_t i = 0; i < count; i++)
    y[i] = (@Y)@N_shifted(((int32_t)a[i] - zero_a) * by_a + ((int32_t)b[i] - zero_b) * by_b, shift, zero, low, high);
}
"""

MULTIPLY = """
@U_KERNEL void @F(const @X *a, const @W *b, @Y *y, const @N_rescale_t *r, int32_t zero_a, int32_t zero_b,
                  int32_t count) {
  const int32_t o = 0;
  for (int32_t i = 0; i < count; i++) {
    const int32_t sum = ((int32_t)a[i] - zero_a) * ((int32_t)b[i] - zero_b);
    y[i] = (@Y)@FINISH;
  }
}
"""

TABLE = """
@U_KERNEL void @F(const @X *x, @Y *y, const @W *table, int32_t first, int32_t count) {
  for (int32_t i = 0; i < count; i++) y[i] = (@Y)table[(int32_t)x[i] - first];
}
"""

TABLE_PER_CHANNEL = """
@U_KERNEL void @F(const @X *x, @Y *y, const @W *table, int32_t first, int32_t entries, int32_t blocks, int32_t channels,
               int32_t count) {
  for (int32_t b = 0; b < blocks; b++) {
    const @W *row = table;
    for (int32_t c = 0; c < channels; c++, row += entries)
      for (int32_t i = 0; i < count; i++) *y++ = (@Y)row[(int32_t)*x++ - first];
  }
}
"""

TABLE_SHARED = """
/* Each channel says its row. */
@U_KERNEL void @F(const @X *x, @Y *y, const @W *table, const uint8_t *owner, int32_t first, int32_t entries,
               int32_t blocks, int32_t channels, int32_t count) {
  for (int32_t b = 0; b < blocks; b++)
    for (int32_t c = 0; c < channels; c++) {
      const @W *row = table + owner[c] * entries;
      for (int32_t i = 0; i < count; i++) *y++ = (@Y)row[(int32_t)*x++ - first];
    }
}
"""

INTERPOLATE = """
/* Lines between points 2^shift codes apart; points have 16 bits, so every product has at most 31. */
@U_KERNEL void @F(const @X *x, @Y *y, const @W *points, @OWNER int32_t first, int32_t shift, int32_t entries,
               int32_t blocks, int32_t channels, int32_t count) {
  const int32_t mask = ((int32_t)1 << shift) - 1, half = (int32_t)1 << shift >> 1;
  for (int32_t b = 0; b < blocks; b++)
    for (int32_t c = 0; c < channels; c++) {
      const @W *row = points + @ROW * entries;
      for (int32_t i = 0; i < count; i++) {
        const int32_t at = (int32_t)*x++ - first;
        const int32_t left = row[at >> shift], right = row[(at >> shift) + 1];
        *y++ = (@Y)(left + (((right - left) * (at & mask) + half) >> shift));
      }
    }
}
"""

ARGMAX = """
/* The lowest index of the largest; `by` makes the numbers of one row comparable, or is 0. */
@U_KERNEL void @F(const @X *x, @Y *y, const int32_t *by, int32_t blocks, int32_t count, int32_t pitch) {
  for (int32_t b = 0; b < blocks; b++, x += count * pitch)
    for (int32_t v = 0; v < pitch; v++) {
      int32_t best = 0;
      int64_t most = 0;
      for (int32_t i = 0; i < count; i++) {
        const int64_t here = (int64_t)x[i * pitch + v] * (by ? by[i] : 1);
        if (i == 0 || here > most) most = here, best = i;
      }
      *y++ = (@Y)best;
    }
}
"""

COPY = """
/* Each output from the input at a sum of steps along four dimensions; outside of it, `code`. */
@U_KERNEL void @F(const @X *x, @Y *y, const @N_walk_t *p, int32_t code) {
  for (int32_t a = 0; a < p->size[0]; a++)
    for (int32_t b = 0; b < p->size[1]; b++)
      for (int32_t c = 0; c < p->size[2]; c++)
        for (int32_t d = 0; d < p->size[3]; d++) {
          const int32_t at[4] = {a, b, c, d};
          int32_t place = 0, inside = 1;
          for (int32_t k = 0; k < 4; k++) {
            const int32_t i = p->from[k] + at[k] * p->step[k] / p->divide[k];
            if (i < 0 || i >= p->limit[k]) inside = 0;
            place += i * p->stride[k];
          }
          *y++ = (@Y)(inside ? (int32_t)x[place] : code);
        }
}
"""

JOIN = """
@U_KERNEL void @F(const @X *x, @Y *y, const @N_rescale_t *r, int32_t zero, int32_t blocks, int32_t count,
                  int32_t pitch) {
  for (int32_t n = 0; n < blocks; n++, y += pitch)
    for (int32_t i = 0; i < count; i++) y[i] = (@Y)@N_rescale((int32_t)*x++ - zero, r, 0);
}
"""

KERNELS = {
    "direct_conv": CONV,
    "conv_transposed": CONV_TRANSPOSED,
    "direct_linear": LINEAR,
    "sum_pool": SUM_POOL,
    "max_pool": MAX_POOL,
    "add": ADD,
    "mul": MULTIPLY,
    "table": TABLE,
    "table_per_channel": TABLE_PER_CHANNEL,
    "table_shared": TABLE_SHARED,
    "interpolate": INTERPOLATE.replace("@OWNER ", "").replace("@ROW", "c"),
    "interpolate_shared": INTERPOLATE.replace("@OWNER", "const uint8_t *owner,").replace("@ROW", "owner[c]"),
    "argmax": ARGMAX,
    "copy": COPY,
    "join": JOIN,
}
