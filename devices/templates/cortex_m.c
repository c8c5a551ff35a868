/* Start-up, output by semihosting, and a count of ticks for NAME on a Cortex-M in an emulator. */
#include "NAME.h"
#include "NAME_vectors.h"

#include <stdint.h>

#define REGISTER(address) (*(volatile uint32_t *)(address))
#define SYSTICK_CONTROL REGISTER(0xE000E010u)
#define SYSTICK_RELOAD REGISTER(0xE000E014u)
#define SYSTICK_VALUE REGISTER(0xE000E018u)
#define COPROCESSORS REGISTER(0xE000ED88u)

extern uint32_t stack_top, zero_start, zero_end;
static volatile uint32_t wraps;
static uint32_t layer_ticks[@UPPER@_LAYERS];
static uint64_t since;
static int counting;

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

static void text(const char *s)
{
    (void)semihost(4, s);
}

static void number(uint32_t n)
{
    char digits[12];
    int i = 11;
    digits[i] = 0;
    do {
        digits[--i] = (char)('0' + n % 10u);
        n /= 10u;
    } while (n != 0);
    text(digits + i);
    text("\n");
}

static void finish(int code)
{
    const uint32_t block[2] = {0x20026u, (uint32_t)code};
    (void)semihost(0x20, block);
    for (;;) {
    }
}

static uint64_t ticks(void)
{
    uint32_t before, value;
    do {
        before = wraps;
        value = SYSTICK_VALUE;
    } while (before != wraps);
    return ((uint64_t)before << 24) + (0xFFFFFFu - value);
}

void edgeq_layer_done(int index)
{
    if (counting) {
        const uint64_t now = ticks();
        layer_ticks[index] = (uint32_t)(now - since);
        since = ticks();
    }
}

static void tick_wrapped(void)
{
    wraps++;
}

static void fault(void)
{
    text("FAULT\n");
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

static uint32_t stack_used(void)
{
    const uint32_t *p = stack_floor();
    while (p < &stack_top && *p == PAINT) {
        p++;
    }
    return (uint32_t)(&stack_top - p) * 4u;
}

static void report(const char *what, uint32_t value)
{
    text(what);
    number(value);
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
    uint32_t different = 0, largest = 0, total = 0;
    paint_stack();
    for (int v = 0; v < NAME_VECTORS; v++) {
        counting = v == 0;
        const uint64_t start = ticks();
        since = ticks();
        if (NAME_try(v, arena) != 0) {
            finish(98);
        }
        if (v == 0) {
            total = (uint32_t)(ticks() - start);
        }
        different += NAME_compare(v, &largest);
    }
    for (int i = 0; i < @UPPER@_LAYERS; i++) {
        report("LAYER ", layer_ticks[i]);
    }
    report("TOTAL ", total);
    report("STACK ", stack_used());
    report("LARGEST ", largest);
    report("DIFFERENT ", different);
    finish(different != 0);
}

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    &stack_top, (const void *)reset, (const void *)fault, (const void *)fault, (const void *)fault, (const void *)fault,
    (const void *)fault, 0, 0, 0, 0, 0, 0, 0, 0, (const void *)tick_wrapped,
};
