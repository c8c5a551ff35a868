/* Frames: "$EQ1 LENGTH CRC SEQUENCE WORD NUMBERS", hexadecimal length and CRC-32 of what follows them, a line each. */
#include "NAME_board.h"
#include "NAME.h"
#include "NAME_vectors.h"

/* Define EDGEQ_TICKS to name a counter of yours, uint32_t f(void), and EDGEQ_UNIT to name what it counts. */
#if defined(EDGEQ_TICKS)
uint32_t EDGEQ_TICKS(void);
#if !defined(EDGEQ_UNIT)
#define EDGEQ_UNIT "ticks"
#endif
#define START_TICKS()
#define READ_TICKS() EDGEQ_TICKS()
#elif defined(__ARM_ARCH_PROFILE) && __ARM_ARCH_PROFILE == 'M' && __ARM_ARCH >= 7
/* The cycle counter of the DWT; it stands still where a core has none. */
#define REGISTER(address) (*(volatile uint32_t *)(uintptr_t)(address))
#define EDGEQ_UNIT "cycles"
#define START_TICKS() \
    (REGISTER(0xE000EDFCu) |= 1u << 24, REGISTER(0xE0001FB0u) = 0xC5ACCE55u, REGISTER(0xE0001000u) |= 1u)
#define READ_TICKS() REGISTER(0xE0001004u)
#else
#define EDGEQ_UNIT "none"
#define START_TICKS()
#define READ_TICKS() 0u
#endif

#define LINE 160

static struct {
    char text[LINE];
    int length;
    uint32_t sequence;
} frame;
static uint32_t layer_ticks[@UPPER@_LAYERS];
static uint32_t since, reports;
static uint64_t total;

static void put(const char *s)
{
    while (*s != 0 && frame.length < LINE - 2) {
        frame.text[frame.length++] = *s++;
    }
}

static void put_number(uint64_t n)
{
    char digits[22];
    int i = 21;
    digits[i] = 0;
    do {
        digits[--i] = (char)('0' + (char)(n % 10u));
        n /= 10u;
    } while (n != 0);
    digits[--i] = ' ';
    put(digits + i);
}

static void put_hexadecimal(char *to, uint32_t n, int digits)
{
    while (digits-- > 0) {
        to[digits] = "0123456789abcdef"[n & 15u];
        n >>= 4;
    }
}

static uint32_t crc(const char *s, int count)
{
    uint32_t sum = 0xFFFFFFFFu;
    while (count-- > 0) {
        sum ^= (uint32_t)(unsigned char)*s++;
        for (int bit = 0; bit < 8; bit++) {
            sum = (sum >> 1) ^ ((sum & 1u) != 0 ? 0xEDB88320u : 0u);
        }
    }
    return ~sum;
}

#define HEAD 18 /* "\n$EQ1 LL CCCCCCCC " */

static void begin_frame(const char *word)
{
    frame.length = 0;
    put("\n$EQ1 00 00000000 ");
    put_hexadecimal(frame.text + frame.length, frame.sequence++, 4);
    frame.length += 4;
    put(" ");
    put(word);
}

static void end_frame(void)
{
    put_hexadecimal(frame.text + 6, (uint32_t)(frame.length - HEAD), 2);
    put_hexadecimal(frame.text + 9, crc(frame.text + HEAD, frame.length - HEAD), 8);
    frame.text[frame.length++] = '\r';
    frame.text[frame.length++] = '\n';
    NAME_write(frame.text, frame.length);
}

static void count_ticks(int index)
{
    const uint32_t passed = READ_TICKS() - since;
    total += passed;
    if (index >= 0) {
        layer_ticks[index] += passed; /* a layer in patches ends several times */
    }
    since = READ_TICKS();
}

void NAME_layer_done(int index)
{
    count_ticks(index);
}

static int counts(void)
{
    const uint32_t before = READ_TICKS();
    for (volatile int i = 0; i < 1000; i++) {
    }
    return READ_TICKS() != before;
}

static void greet(void)
{
    if (reports == 0) {
        START_TICKS();
        begin_frame("boot");
        end_frame();
    }
    begin_frame("begin " @UPPER@_HASH " ");
    put(counts() ? EDGEQ_UNIT : "none");
    put_number(NAME_VECTORS);
    put_number(@UPPER@_LAYERS);
    end_frame();
}

static void report_layers(void)
{
    for (int i = 0; i < @UPPER@_LAYERS; i++) {
        begin_frame("layer");
        put_number((uint64_t)i);
        put_number(layer_ticks[i]);
        end_frame();
    }
}

void NAME_report(uint8_t *arena)
{
    greet();
    for (int i = 0; i < @UPPER@_LAYERS; i++) {
        layer_ticks[i] = 0;
    }
    for (int v = 0; v < NAME_VECTORS; v++) {
        uint32_t largest = 0;
        total = 0;
        since = READ_TICKS();
        const int failed = NAME_try(v, arena);
        count_ticks(-1);
        if (failed != 0) {
            begin_frame("unaligned");
            end_frame();
            return;
        }
        if (v == 0) {
            report_layers();
        }
        begin_frame("vector");
        put_number((uint64_t)v);
        put_number(total);
        put_number(NAME_compare(v, &largest));
        put_number(largest);
        end_frame();
    }
    begin_frame("end");
    put_number(++reports);
    end_frame();
}
