/* Start-up, a line to the outside and a count of ticks for NAME on a Cortex-M in an emulator. */
#include "NAME.h"
#include "NAME_board.h"

#include <stdint.h>

#define REGISTER(address) (*(volatile uint32_t *)(address))
#define SYSTICK_CONTROL REGISTER(0xE000E010u)
#define SYSTICK_RELOAD REGISTER(0xE000E014u)
#define SYSTICK_VALUE REGISTER(0xE000E018u)
#define COPROCESSORS REGISTER(0xE000ED88u)

extern uint32_t stack_top, zero_start, zero_end;
static volatile uint32_t wraps;

static __attribute__((aligned(8))) uint8_t arena[@UPPER@_ARENA_BYTES];

#define PAINT 0xA5A5A5A5u
#define PAINTED 4096 /* words below the top of the stack that are watched */

static int semihost(int operation, const void *argument)
{
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static void finish(int code)
{
    const uint32_t block[2] = {0x20026u, (uint32_t)code};
    (void)semihost(0x20, block);
    for (;;) {
    }
}

#if defined(EDGEQ_UART)
/* The first UART of an MPS2 board, which sends at any rate in QEMU. */
#define UART_DATA REGISTER(EDGEQ_UART + 0u)
#define UART_STATE REGISTER(EDGEQ_UART + 4u)
#define UART_CONTROL REGISTER(EDGEQ_UART + 8u)
#define UART_DIVISOR REGISTER(EDGEQ_UART + 16u)

static void start_line(void)
{
    UART_DIVISOR = 16;
    UART_CONTROL = 1;
}

void NAME_write(const char *bytes, int count)
{
    for (int i = 0; i < count; i++) {
        while ((UART_STATE & 1u) != 0) {
        }
        UART_DATA = (uint32_t)(unsigned char)bytes[i];
    }
}
#else
static void start_line(void)
{
}

void NAME_write(const char *bytes, int count)
{
    char text[2] = {0, 0};
    for (int i = 0; i < count; i++) {
        text[0] = bytes[i];
        (void)semihost(4, text);
    }
}
#endif

uint32_t edgeq_ticks(void)
{
    uint32_t before, value;
    do {
        before = wraps;
        value = SYSTICK_VALUE;
    } while (before != wraps);
    return (before << 24) + (0xFFFFFFu - value);
}

static void tick_wrapped(void)
{
    wraps++;
}

static void fault(void)
{
    NAME_write("FAULT\n", 6);
    finish(99);
}

static uint32_t *stack_floor(void)
{
    uint32_t *low = &stack_top - PAINTED;
    return low > &zero_end ? low : &zero_end;
}

static void paint_stack(void)
{
    uint32_t *here;
    __asm__ volatile("mov %0, sp" : "=r"(here));
    for (uint32_t *p = stack_floor(); p < here - 16; p++) {
        *p = PAINT;
    }
}

static void report_stack(void)
{
    const uint32_t *p = stack_floor();
    char digits[12];
    int i = 12;
    while (p < &stack_top && *p == PAINT) {
        p++;
    }
    digits[--i] = '\n';
    for (uint32_t used = (uint32_t)(&stack_top - p) * 4u; used != 0; used /= 10u) {
        digits[--i] = (char)('0' + used % 10u);
    }
    NAME_write("STACK ", 6);
    NAME_write(digits + i, 12 - i);
}

static void reset(void)
{
    for (uint32_t *p = &zero_start; p < &zero_end; p++) {
        *p = 0;
    }
    COPROCESSORS |= 0xFu << 20;
    __asm__ volatile("dsb\n isb");
    SYSTICK_RELOAD = 0xFFFFFFu;
    SYSTICK_VALUE = 0;
    SYSTICK_CONTROL = 7;
    start_line();
    paint_stack();
#if defined(EDGEQ_UART)
    for (;;) {
        NAME_report(arena);
    }
#endif
    NAME_report(arena);
    report_stack();
    finish(0);
}

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    &stack_top, (const void *)reset, (const void *)fault, (const void *)fault, (const void *)fault, (const void *)fault,
    (const void *)fault, 0, 0, 0, 0, 0, 0, 0, 0, (const void *)tick_wrapped,
};
