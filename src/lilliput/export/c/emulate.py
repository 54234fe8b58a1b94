"""The network on an emulated Cortex-M4: start-up code, linker script, and a main that counts.

QEMU's machine mps2-an386 with semihosting. With `-icount shift=0` each instruction takes a nanosecond of virtual time
and SysTick ticks every 40 ns, so instructions = 40 x ticks: exact to 40, and the same in every run. They are executed
instructions, not cycles: flash wait states and pipelines are not there.
"""

from lilliput.export.c.text import filled

START = """/* @NOTE
   Start-up and semihosting for a Cortex-M4. */
#include <stdint.h>

extern uint32_t m4_stack[], m4_data[], m4_data_end[], m4_load[], m4_bss[], m4_bss_end[];
int main(void);
void m4_reset(void);
void m4_fault(void);
void m4_exit(int code);
void m4_write(const char *text);
void *memcpy(void *to, const void *from, unsigned count);
void *memset(void *to, int value, unsigned count);

__attribute__((section(".vectors"), used)) static void *const vectors[16] = {
  m4_stack, (void *)m4_reset, (void *)m4_fault, (void *)m4_fault, (void *)m4_fault, (void *)m4_fault,
  (void *)m4_fault};

static int call(int operation, const void *argument) {
  register int r0 __asm__("r0") = operation;
  register const void *r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
  return r0;
}

void m4_exit(int code) {
  const uint32_t block[2] = {0x20026, (uint32_t)code};
  call(0x20, block);
  for (;;) {
  }
}

void m4_write(const char *text) { call(0x04, text); }

void m4_fault(void) {
  m4_write("fault\\n");
  m4_exit(3);
}

void *memcpy(void *to, const void *from, unsigned count) {
  volatile uint8_t *t = to;
  const uint8_t *f = from;
  while (count--) *t++ = *f++;
  return to;
}

void *memset(void *to, int value, unsigned count) {
  volatile uint8_t *t = to;
  while (count--) *t++ = (uint8_t)value;
  return to;
}

void m4_reset(void) {
  const uint32_t *from = m4_load;
  for (uint32_t *to = m4_data; to < m4_data_end;) *to++ = *from++;
  for (uint32_t *to = m4_bss; to < m4_bss_end;) *to++ = 0;
  m4_exit(main());
}
"""

LINK = """/* @NOTE */
MEMORY {
  FLASH (rx) : ORIGIN = 0x00000000, LENGTH = @FLASH
  RAM (rwx) : ORIGIN = 0x20000000, LENGTH = @RAM
}
ENTRY(m4_reset)
SECTIONS {
  .text : { KEEP(*(.vectors)) *(.text*) *(.rodata*) . = ALIGN(4); } > FLASH
  .data : { m4_data = .; *(.data*) . = ALIGN(4); m4_data_end = .; } > RAM AT > FLASH
  m4_load = LOADADDR(.data);
  .bss : { m4_bss = .; *(.bss*) *(COMMON) . = ALIGN(4); m4_bss_end = .; } > RAM
  m4_stack = ORIGIN(RAM) + LENGTH(RAM);
}
"""

MAIN = """/* @NOTE
   Golden vectors, executed instructions and stack on an emulated Cortex-M4. */
#include "../@N.h"
#include "../@N_golden.h"

#define SYSTICK ((volatile uint32_t *)0xE000E010)
#define PAINT 0xA5A5A5A5u
#define STACK_WORDS 1024

extern uint32_t m4_stack[];
void m4_write(const char *text);
int main(void);

static void number(const char *name, uint32_t value) {
  char text[12];
  int at = 11;
  text[at] = 0;
  do {
    text[--at] = (char)('0' + value % 10);
    value /= 10;
  } while (value);
  m4_write(name);
  m4_write(text + at);
  m4_write("\\n");
}

int main(void) {
  static @N_out_t found[@U_OUTPUTS];
  uint32_t wrong = 0, ticks = 0;
  volatile uint32_t *low = m4_stack - STACK_WORDS;
  volatile uint32_t *here = (volatile uint32_t *)__builtin_frame_address(0) - 64;
  for (volatile uint32_t *p = low; p < here; p++) *p = PAINT;
  SYSTICK[1] = 0xFFFFFF;
  for (int n = 0; n < @N_golden_count; n++) {
    SYSTICK[2] = 0;
    SYSTICK[0] = 5;
    const uint32_t before = SYSTICK[2];
    @N_run(@N_golden_inputs[n], found);
    ticks = (before - SYSTICK[2]) & 0xFFFFFF;
    SYSTICK[0] = 0;
    for (int i = 0; i < @U_OUTPUTS; i++) wrong += found[i] != @N_golden_outputs[n][i];
  }
  volatile uint32_t *deepest = low;
  while (deepest < here && *deepest == PAINT) deepest++;
  number("vectors ", @N_golden_count);
  number("differ ", wrong);
  number("instructions ", 40 * ticks);
  number("stack ", (uint32_t)((uintptr_t)m4_stack - (uintptr_t)deepest));
  return wrong != 0;
}
"""

FLAGS = "-mcpu=cortex-m4 -mthumb -std=gnu99 -O2 -Wall -Wextra -ffreestanding -ffunction-sections -fdata-sections"
LINKED = "-nostdlib -Wl,--gc-sections"
MACHINE = "-M mps2-an386 -display none -monitor none -semihosting-config enable=on,target=native"

MAKE = """
# The same on an emulated Cortex-M4: needs gcc-arm-none-eabi and qemu-system-arm. PLAIN=1: without DSP instructions.
ARM ?= arm-none-eabi-
PLAIN ?=
M4 = @FLAGS -Werror $(if $(PLAIN),-D@U_PLAIN)
ELF = emulate/@N$(if $(PLAIN),-plain).elf
BENCH = bench/@N$(if $(PLAIN),-plain).elf
QEMU = qemu-system-arm @MACHINE

$(ELF): @N.c emulate/start.c emulate/main.c emulate/link.ld @N.h @N_golden.h
	$(ARM)gcc $(M4) @N.c emulate/start.c emulate/main.c @LINKED -T emulate/link.ld -lgcc -o $@

.PHONY: emulate size bench
emulate: $(ELF)
	$(QEMU) -serial null -icount shift=0 -kernel $<

size: $(ELF)
	$(ARM)size $<

# bench/ as a board would run it: its lines come out of the serial port into bench/uart.log.
$(BENCH): @N.c bench/bench.c bench/bench.h bench/mps2.c emulate/start.c emulate/link.ld @N.h @N_golden.h
	$(ARM)gcc $(M4) @N.c bench/bench.c bench/mps2.c emulate/start.c @LINKED -T emulate/link.ld -lgcc -o $@

bench: $(BENCH)
	$(QEMU) -serial file:bench/uart.log -kernel $<
	cat bench/uart.log
"""


def files(name: str, *, flash: int = 4 << 20, ram: int = 4 << 20) -> dict[str, str]:
    """{path in the folder: text}; link with at most so many bytes of flash and RAM (those of the board: 4 MiB each)."""
    marks = {"@FLASH": str(flash), "@RAM": str(ram), "@U": name.upper(), "@N": name}
    parts = {"emulate/start.c": START, "emulate/link.ld": LINK, "emulate/main.c": MAIN}
    return {path: filled(text, marks) for path, text in parts.items()}
