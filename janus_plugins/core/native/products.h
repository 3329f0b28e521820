/* Products of a few rows with a weight, for CPUs with AVX2: as fast as the weight comes from memory.

Each output is summed up in fp32 by one thread, in an order that neither other rows nor threads change. Memory gives
most when several places far from one another are read in turn. A weight's outputs are therefore cut in as many streams
as outputs are summed up at once, and what each reads next is asked for ahead. */

#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

enum { FP32, BF16, INT8, INT4 };

/* Numbers of a vector, and the most rows and outputs whose sums are held at once: with the numbers read they fill the
16 registers. Four rows, of weights that are converted, take a few more, which costs less than converting again. */
enum { LANES = 8, MOST_ROWS = 4, MOST_OUTPUTS = 6 };
#define ROWS(kind) ((kind) == FP32 ? 3 : 4)
#define OUTPUTS(rows) ((rows) > 2 ? 4 : 6)

/* How far ahead a stream is asked for. */
enum { BYTES_AHEAD = 512 };

/* How many parts of work for a thread there are in numbers that are read once and met by some rows. */
INLINE int64_t parts_of(int64_t numbers, int64_t size, int64_t rows, int64_t threads) {
    const int64_t parts = numbers * (size + rows) >> 18;
    return parts > threads ? threads : parts;
}

/* A weight [outputs, inputs], each output plus its bias where there are any. In 8 bits `scales` are fp32 [outputs]; in
4 bits bf16 [inputs / GROUP, outputs, 2], a scale and what the middle of the 16 steps is, and numbers lie in blocks of
BLOCK outputs, as torch lays them for AVX2. With both, rows and outputs are rounded to bf16, as by torch's products:
compiled or not, a step makes the same numbers. */
typedef struct {
    const void *numbers, *scales;
    const float *bias;
    int64_t kind, outputs, inputs;
} Weight;

enum { GROUP = 32, BLOCK = 32 };

/* What may go wrong. */
enum { NO_MEMORY = 1, NO_ANGLE = 2 };

/* Rows that are read and written, and how far each is from the next; for 4 bits the sums of each group of inputs. */
typedef struct {
    const float *from;
    float *to;
    int64_t from_step, to_step, count;
    const float *sums;
} Rows;

INLINE int64_t size_of(int64_t kind) { return kind == FP32 ? 4 : kind == BF16 ? 2 : 1; }

INLINE __m256 eight_of(int64_t kind, const char *from) {
    if (kind == FP32) return _mm256_loadu_ps((const float *)from);
    if (kind == BF16) {
        const __m256i halves = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from));
        return _mm256_castsi256_ps(_mm256_slli_epi32(halves, 16));
    }
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from)));
}

INLINE float one_of(int64_t kind, const char *from) {
    if (kind == INT8) return *(const int8_t *)from;
    uint32_t bits = 0;
    if (kind == BF16) memcpy((char *)&bits + 2, from, 2);
    else memcpy(&bits, from, 4);
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Return a number in bf16, the nearest, of two as near the even one. */
INLINE uint16_t half_of(float number) {
    uint32_t bits;
    memcpy(&bits, &number, 4);
    const uint16_t half = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return number == number ? half : 0x7fc0; /* not a number stays so */
}

INLINE float rounded(float number) {
    const uint32_t bits = (uint32_t)half_of(number) << 16;
    memcpy(&number, &bits, 4);
    return number;
}

INLINE void widen(int64_t kind, const char *from, int64_t count, float *to) {
    int64_t at = 0;
    for (; at + LANES <= count; at += LANES) _mm256_storeu_ps(to + at, eight_of(kind, from + at * size_of(kind)));
    for (; at < count; at++) to[at] = one_of(kind, from + at * size_of(kind));
}

INLINE float sum_of(__m256 eight) {
    __m128 sums = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    sums = _mm_add_ps(sums, _mm_movehl_ps(sums, sums));
    return _mm_cvtss_f32(_mm_add_ss(sums, _mm_shuffle_ps(sums, sums, 1)));
}

/* Where outputs lie that are summed up at once: the first one's numbers, and how far each is from the next. */
typedef struct {
    const char *numbers;
    int64_t bytes_apart, first, apart;
} Streams;

/* Write `outputs` outputs of the first `rows` rows; both are constants wherever this is called. */
INLINE void some(
    const int rows, const int outputs, const int64_t kind, const Weight *weight, Streams streams, Rows given
) {
    const int64_t inputs = weight->inputs, size = size_of(kind);
    __m256 sums[MOST_ROWS][MOST_OUTPUTS];
    UNROLL for (int row = 0; row < rows; row++)
        UNROLL for (int output = 0; output < outputs; output++) sums[row][output] = _mm256_setzero_ps();
    int64_t at = 0;
    for (; at + LANES <= inputs; at += LANES) {
        UNROLL for (int output = 0; output < outputs; output++) {
            const char *here = streams.numbers + output * streams.bytes_apart + at * size;
            const __m256 numbers = eight_of(kind, here);
            _mm_prefetch(here + BYTES_AHEAD, _MM_HINT_T1);
            UNROLL for (int row = 0; row < rows; row++) {
                const __m256 one = _mm256_loadu_ps(given.from + row * given.from_step + at);
                sums[row][output] = _mm256_fmadd_ps(one, numbers, sums[row][output]);
            }
        }
    }
    for (int output = 0; output < outputs; output++) {
        const char *numbers = streams.numbers + output * streams.bytes_apart;
        const int64_t place = streams.first + output * streams.apart;
        for (int row = 0; row < rows; row++) {
            float sum = sum_of(sums[row][output]);
            for (int64_t rest = at; rest < inputs; rest++)
                sum += given.from[row * given.from_step + rest] * one_of(kind, numbers + rest * size);
            if (weight->kind == INT8) sum = rounded(sum * ((const float *)weight->scales)[place]);
            if (weight->bias) sum += weight->bias[place];
            given.to[row * given.to_step + place] = sum;
        }
    }
}

/* The same of any number of rows. */
INLINE void all_rows(const int outputs, const int64_t kind, const Weight *weight, Streams streams, Rows rows) {
    const int most = ROWS(kind);
    for (; rows.count >= most; rows.count -= most) {
        some(most, outputs, kind, weight, streams, rows);
        rows.from += most * rows.from_step;
        rows.to += most * rows.to_step;
    }
    switch (rows.count) {
    case 3: some(3, outputs, kind, weight, streams, rows); break;
    case 2: some(2, outputs, kind, weight, streams, rows); break;
    case 1: some(1, outputs, kind, weight, streams, rows); break;
    }
}

/* Write the outputs `first` to `last` of each stream, and, with the last ones, those left over by the streams. */
INLINE void part_of(
    const int outputs, const int64_t kind, const Weight *weight, int64_t first, int64_t last, Rows rows
) {
    const int64_t inputs = weight->inputs, each = weight->outputs / outputs, line = inputs * size_of(kind);
    const char *numbers = weight->numbers;
    /* Met by many rows, weights are converted once, to where they stay near. */
    const int convert = kind != FP32 && rows.count > 2 * MOST_ROWS;
    float wide[convert ? outputs * inputs : 1];
    for (int64_t output = first; output < last; output++) {
        Streams streams = {numbers + output * line, each * line, output, each};
        if (convert) {
            for (int stream = 0; stream < outputs; stream++)
                widen(kind, streams.numbers + stream * streams.bytes_apart, inputs, wide + stream * inputs);
            streams.numbers = (const char *)wide;
            streams.bytes_apart = inputs * size_of(FP32);
            all_rows(outputs, FP32, weight, streams, rows);
        } else {
            all_rows(outputs, kind, weight, streams, rows);
        }
    }
    if (last < each) return;
    for (int64_t output = each * outputs; output < weight->outputs; output++)
        all_rows(1, kind, weight, (Streams){numbers + output * line, 0, output, 0}, rows);
}

/* Write BLOCK outputs, from `first` on, of `rows` rows (a constant) by a weight in 4 bits. */
INLINE void block_in_4_bits(const int rows, const Weight *weight, int64_t first, Rows given) {
    const uint8_t *numbers = (const uint8_t *)weight->numbers + first * weight->inputs / 2;
    const __m128i low = _mm_set1_epi8(15);
    __m256 sums[2][4], group[2][4];
    for (int row = 0; row < rows; row++)
        for (int part = 0; part < 4; part++) sums[row][part] = _mm256_setzero_ps();
    for (int64_t at = 0; at < weight->inputs; at += GROUP) {
        UNROLL for (int row = 0; row < rows; row++)
            UNROLL for (int part = 0; part < 4; part++) group[row][part] = _mm256_setzero_ps();
        for (int64_t input = at; input < at + GROUP; input++, numbers += BLOCK / 2) {
            const __m128i both = _mm_loadu_si128((const __m128i *)numbers);
            const __m128i halves[2] = {_mm_and_si128(both, low), _mm_and_si128(_mm_srli_epi16(both, 4), low)};
            _mm_prefetch((const char *)numbers + BYTES_AHEAD, _MM_HINT_T1);
            UNROLL for (int part = 0; part < 4; part++) {
                const __m128i eight = part % 2 ? _mm_srli_si128(halves[part / 2], 8) : halves[part / 2];
                const __m256 steps = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight));
                UNROLL for (int row = 0; row < rows; row++) {
                    const __m256 one = _mm256_broadcast_ss(given.from + row * given.from_step + input);
                    group[row][part] = _mm256_fmadd_ps(one, steps, group[row][part]);
                }
            }
        }
        const char *spread = (const char *)weight->scales + (at / GROUP * weight->outputs + first) * 4;
        UNROLL for (int part = 0; part < 4; part++) {
            const __m256i pairs = _mm256_loadu_si256((const __m256i *)(spread + part * LANES * 4));
            const __m256 scales = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
            const __m256 middles = _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(0xffff0000)));
            UNROLL for (int row = 0; row < rows; row++) {
                const __m256 all = _mm256_set1_ps(given.sums[row * (weight->inputs / GROUP) + at / GROUP]);
                const __m256 from_middle = _mm256_fmadd_ps(all, _mm256_set1_ps(-8.0f), group[row][part]);
                sums[row][part] = _mm256_fmadd_ps(scales, from_middle, sums[row][part]);
                sums[row][part] = _mm256_fmadd_ps(middles, all, sums[row][part]);
            }
        }
    }
    for (int row = 0; row < rows; row++) {
        float made[BLOCK];
        for (int part = 0; part < 4; part++) _mm256_storeu_ps(made + part * LANES, sums[row][part]);
        for (int at = 0; at < BLOCK; at++)
            given.to[row * given.to_step + first + at] =
                rounded(made[at]) + (weight->bias ? weight->bias[first + at] : 0.0f);
    }
}

/* The same of any number of rows and blocks `first` to `last`. */
static void part_in_4_bits(const Weight *weight, int64_t first, int64_t last, Rows rows) {
    for (int64_t block = first; block < last; block++) {
        Rows rest = rows;
        for (; rest.count >= 2; rest.count -= 2) {
            block_in_4_bits(2, weight, block * BLOCK, rest);
            rest.from += 2 * rest.from_step;
            rest.to += 2 * rest.to_step;
            rest.sums += 2 * (weight->inputs / GROUP);
        }
        if (rest.count) block_in_4_bits(1, weight, block * BLOCK, rest);
    }
}

static void part(const Weight *weight, int64_t first, int64_t last, Rows rows) {
#define CASE(known) \
    case known: \
        if (OUTPUTS(rows.count) == 6) part_of(6, known, weight, first, last, rows); \
        else part_of(4, known, weight, first, last, rows); \
        break;
    switch (weight->kind) {
        CASE(FP32) CASE(BF16) CASE(INT8)
    case INT4: part_in_4_bits(weight, first, last, rows); break;
    }
#undef CASE
}

/* Return rows rounded to bf16, and the sums of their groups, in memory that whoever asked frees; none if there is none. */
static Rows rounded_rows(Rows rows, int64_t inputs) {
    const int64_t groups = inputs / GROUP;
    float *halves = malloc((rows.count * (inputs + groups) + 1) * sizeof(float));
    if (!halves) return (Rows){0};
    float *sums = halves + rows.count * inputs;
    for (int64_t row = 0; row < rows.count; row++) {
        float *half = halves + row * inputs;
        for (int64_t at = 0; at < inputs; at++) half[at] = rounded(rows.from[row * rows.from_step + at]);
        for (int64_t group = 0; group < groups; group++) {
            float sum = 0.0f;
            for (int64_t at = group * GROUP; at < (group + 1) * GROUP; at++) sum += half[at];
            sums[row * groups + group] = sum;
        }
    }
    return (Rows){halves, rows.to, inputs, rows.to_step, rows.count, sums};
}

/* Multiply rows by weights of one input; their outputs come to lie side by side. Return 0, or NO_MEMORY. */
static int product(const Weight *weights, int64_t num_weights, Rows given, int64_t threads) {
    Rows in_bf16 = given;
    for (const Weight *weight = weights; weight < weights + num_weights; weight++) {
        const int is_rounded = weight->kind == INT8 || weight->kind == INT4;
        if (is_rounded && in_bf16.from == given.from) {
            in_bf16 = rounded_rows(given, weight->inputs);
            if (!in_bf16.from) return NO_MEMORY;
        }
        Rows rows = is_rounded ? in_bf16 : given;
        rows.to = given.to;
        const int64_t each = weight->outputs / (weight->kind == INT4 ? BLOCK : OUTPUTS(rows.count));
        const int64_t numbers = weight->outputs * weight->inputs;
        const int64_t parts = parts_of(numbers, size_of(weight->kind), rows.count, threads);
        if (parts <= 1) {
            part(weight, 0, each, rows);
        } else {
            #pragma omp parallel for num_threads(parts) schedule(static)
            for (int64_t number = 0; number < parts; number++)
                part(weight, number * each / parts, (number + 1) * each / parts, rows);
        }
        given.to += weight->outputs;
    }
    if (in_bf16.from != given.from) free((float *)in_bf16.from);
    return 0;
}
