"""`bench/`: the golden vectors on the user's own board. Its lines of text are what `uart` reads.

Each line ends with the CRC-32 of what stands before it, so that a line which was damaged on its way is known as such:

    lilliput start NAME FINGERPRINT VECTORS *CRC
    lilliput vector NAME FINGERPRINT INDEX SUM-OF-OUTPUTS CYCLES *CRC
    lilliput end NAME FINGERPRINT DIFFERENT-OUTPUTS STACK PAINTED *CRC
"""

from lilliput.export.c.text import filled

HEADER = """/* @NOTE */
#ifndef @U_BENCH_H
#define @U_BENCH_H
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

/* Runs all golden vectors and writes a line for each; gives the number of outputs that differ. */
int32_t @N_bench(void);

/* Yours: send one character. The one in bench.c does nothing. */
void bench_putc(char c);

/* A counter of cycles. The one in bench.c reads DWT->CYCCNT where there is one (Cortex-M3 and up), else it is 0. */
uint32_t bench_cycles(void);

#ifdef __cplusplus
}
#endif
#endif
"""

CORE = """/* @NOTE
   Golden vectors on a board: README.md has how. */
#include "bench.h"
#include "../@N.h"
#include "../@N_golden.h"

#ifndef BENCH_STACK
#define BENCH_STACK 1024 /* bytes below the caller's that are painted: they must belong to the stack */
#endif
#define PAINT 0xA5A5A5A5u
#define GAP 128u /* the painting function's own */

__attribute__((weak)) void bench_putc(char c) { (void)c; }

#if defined(__ARM_ARCH_7M__) || defined(__ARM_ARCH_7EM__) || defined(__ARM_ARCH_8M_MAIN__) || \\
    defined(__ARM_ARCH_8_1M_MAIN__)
#define AT(address) (*(volatile uint32_t *)(address))
static void start_counter(void) {
  AT(0xE000EDFCu) |= 1u << 24;  /* DEMCR: trace on */
  AT(0xE0001FB0u) = 0xC5ACCE55u; /* DWT_LAR: unlock, where there is a lock */
  AT(0xE0001004u) = 0;          /* DWT_CYCCNT */
  AT(0xE0001000u) |= 1u;        /* DWT_CTRL: count */
}
__attribute__((weak)) uint32_t bench_cycles(void) { return AT(0xE0001004u); }
#else
static void start_counter(void) {}
__attribute__((weak)) uint32_t bench_cycles(void) { return 0; }
#endif

static uint32_t crc(uint32_t sum, uint32_t value, uint32_t bytes) {
  for (; bytes > 0; bytes--, value >>= 8) {
    sum ^= value & 255u;
    for (int i = 0; i < 8; i++) sum = (sum >> 1) ^ (0xEDB88320u & (0u - (sum & 1u)));
  }
  return sum;
}

static uint32_t line; /* of the characters since it began */

static void put(char c) {
  line = crc(line, (uint8_t)c, 1);
  bench_putc(c);
}

static void text(const char *c) {
  while (*c) put(*c++);
}

static void hex(uint32_t value) {
  for (int shift = 28; shift >= 0; shift -= 4) put("0123456789abcdef"[value >> shift & 15u]);
}

static void number(uint32_t value) {
  char digits[10];
  int count = 0;
  put(' ');
  do {
    digits[count++] = (char)('0' + value % 10u);
    value /= 10u;
  } while (value);
  while (count) put(digits[--count]);
}

static void begin(const char *kind, uint32_t fingerprint) {
  line = 0xFFFFFFFFu;
  text("lilliput ");
  text(kind);
  text(" @N ");
  hex(fingerprint);
}

static void finish(void) {
  const uint32_t sum = ~line;
  text(" *");
  hex(sum);
  text("\\r\\n");
}

static volatile uint32_t *top, *low; /* of the painted words: written below the caller's, where no frame is yet */

__attribute__((noinline)) static void paint(void) {
  const uintptr_t here = (uintptr_t)__builtin_frame_address(0) & ~(uintptr_t)3;
  top = (volatile uint32_t *)(here - GAP);
  low = (volatile uint32_t *)(here - BENCH_STACK);
  for (volatile uint32_t *p = low; p < top; p++) *p = PAINT;
}

__attribute__((noinline)) static uint32_t painted_over(void) {
  volatile uint32_t *p = low;
  while (p < top && *p == PAINT) p++;
  return (uint32_t)((uintptr_t)top + GAP - (uintptr_t)p);
}

int32_t @N_bench(void) {
  static @N_out_t found[@U_OUTPUTS];
  uint32_t fingerprint = 0xFFFFFFFFu, wrong = 0, stack = 0;
  for (int32_t n = 0; n < @N_golden_count; n++)
    for (int32_t i = 0; i < @U_INPUTS; i++)
      fingerprint = crc(fingerprint, (uint32_t)@N_golden_inputs[n][i], sizeof(@N_in_t));
  for (int32_t n = 0; n < @N_golden_count; n++)
    for (int32_t i = 0; i < @U_OUTPUTS; i++)
      fingerprint = crc(fingerprint, (uint32_t)@N_golden_outputs[n][i], sizeof(@N_out_t));
  fingerprint = ~fingerprint;
  start_counter();
  begin("start", fingerprint);
  number(@N_golden_count);
  finish();
  for (int32_t n = 0; n < @N_golden_count; n++) {
    paint();
    const uint32_t before = bench_cycles();
    @N_run(@N_golden_inputs[n], found);
    const uint32_t cycles = bench_cycles() - before, used = painted_over();
    if (used > stack) stack = used;
    uint32_t sum = 0xFFFFFFFFu;
    for (int32_t i = 0; i < @U_OUTPUTS; i++) {
      sum = crc(sum, (uint32_t)found[i], sizeof(@N_out_t));
      wrong += found[i] != @N_golden_outputs[n][i];
    }
    begin("vector", fingerprint);
    number((uint32_t)n);
    put(' ');
    hex(~sum);
    number(cycles);
    finish();
  }
  begin("end", fingerprint);
  number(wrong);
  number(stack);
  number(BENCH_STACK);
  finish();
  return (int32_t)wrong;
}
"""

BOARD = """/* @NOTE
   An example of a board: the first UART of QEMU's mps2-an386 (CMSDK), for `make bench`. */
#include "bench.h"

#define UART ((volatile uint32_t *)0x40004000)

int main(void);

void bench_putc(char c) {
  while (UART[1] & 1u) {
  }
  UART[0] = (uint8_t)c;
}

int main(void) {
  UART[4] = 16; /* BAUDDIV */
  UART[2] = 1;  /* CTRL: send */
  return @N_bench() != 0;
}
"""

README = """# The network on your board

`bench.c` runs the golden vectors, counts cycles and stack, and writes a line of text for each vector. It needs no
library and no operating system.

1. Add `../@N.c` and `bench.c` to your build, as C99 or later with GCC or Clang. Leave the folders as they are.
2. Write `void bench_putc(char c)`, which sends a character and waits until the next may follow.
3. Call `@N_bench()` once, after clocks and the UART are set up (`#include "bench.h"`).
4. Have @BENCH_STACK free bytes on the stack: so many are painted (`-DBENCH_STACK=...` changes it). The last line
   says how many were used; where it is all of them, paint more.
5. Store what the board sends in a file, and run `lilliput verify .. --uart log.txt`.

- CubeMX: `HAL_UART_Transmit(&huart2, (uint8_t *)&c, 1, HAL_MAX_DELAY);` in `bench_putc`, the call before the main loop.
- Zephyr: `uart_poll_out(DEVICE_DT_GET(DT_CHOSEN(zephyr_console)), c);` and `CONFIG_MAIN_STACK_SIZE=4096`; the sources
  with `target_sources(app PRIVATE ...)`.
- Without a system: write to the data register of the UART once it is ready, as `mps2.c` does for an emulated board
  (`make bench` in the folder above).

Cycles are those of DWT->CYCCNT (Cortex-M3, M4, M7, M33, M55); interrupts count too. `0` says that there is no counter
(Cortex-M0, QEMU): write `uint32_t bench_cycles(void)` with a timer of your own.

@NOTE
"""


def files(name: str) -> dict[str, str]:
    marks = {"@U": name.upper(), "@N": name, "@BENCH_STACK": "1024"}
    parts = {"bench/bench.h": HEADER, "bench/bench.c": CORE, "bench/mps2.c": BOARD, "bench/README.md": README}
    return {path: filled(text, marks) for path, text in parts.items()}
