/* A few slots of each row through the layers of a Llama, on a CPU; `step.LlamaStep` says the same in torch, of one slot.

All is computed in fp32, whatever the weights and the cache are kept in. Sums have an order that neither other rows nor
threads change. */

#include <math.h>
#include <stddef.h>

#include "products.h"

/* One layer: its weights, norms, and its part of the cache [rows, groups, length, head_width]. */
typedef struct {
    Weight before[3], after[1], gated[2], down[1];
    int64_t num_before, num_gated;
    const float *first_norm, *second_norm;
    char *keys, *values;
} Layer;

/* A whole body. Angles are [length, head_width]; the sines of a head's first half carry its sign. The cache is FP32 or
BF16, as its kind says. */
typedef struct {
    const Layer *layers;
    const float *norm, *cos, *sin;
    int64_t num_layers, width, inner, heads, groups, head_width, length, kind;
    float eps, scale;
} Body;

/* Where a step stands: the slots of each row that it fills, from `start` on, their positions [rows, slots], and which of
all slots so far each of them sees [rows, slots, start + slots], rows and slots so many bytes apart (NULL: all). */
typedef struct {
    const int64_t *positions;
    const uint8_t *visible;
    int64_t visible_row, visible_slot, rows, slots, start, threads;
} Place;

INLINE float sum_of_squares(const float *from, int64_t count) {
    __m256 sums = _mm256_setzero_ps();
    int64_t at = 0;
    for (; at + LANES <= count; at += LANES) {
        const __m256 eight = _mm256_loadu_ps(from + at);
        sums = _mm256_fmadd_ps(eight, eight, sums);
    }
    float sum = sum_of(sums);
    for (; at < count; at++) sum += from[at] * from[at];
    return sum;
}

/* Keep numbers in a format. */
INLINE void keep(int64_t kind, const float *from, int64_t count, char *to) {
    for (int64_t at = 0; at < count; at++) {
        if (kind == FP32) ((float *)to)[at] = from[at];
        else ((uint16_t *)to)[at] = half_of(from[at]);
    }
}

/* e to the power of x, within two units of the last place; below -87 it is that of -87. */
INLINE float power_of_e(float x) {
    const float rounder = 12582912.0f; /* 1.5 * 2^23: what is added to it is rounded to a whole number */
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    const float whole = (x * 1.44269504089f + rounder) - rounder;
    const float rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float sum = 1.9875691500e-4f;
    sum = sum * rest + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    const uint32_t bits = (uint32_t)((int32_t)whole + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return sum * power;
}

static void normed(const Body *body, const float *weight, const float *from, int64_t rows, float *to) {
    const int64_t width = body->width;
    for (int64_t row = 0; row < rows; row++, from += width, to += width) {
        const float size = 1.0f / sqrtf(sum_of_squares(from, width) / width + body->eps);
        for (int64_t at = 0; at < width; at++) to[at] = from[at] * size * weight[at];
    }
}

static void turned(const float *from, const float *cos, const float *sin, int64_t width, float *to) {
    const int64_t half = width / 2;
    for (int64_t at = 0; at < half; at++) {
        to[at] = from[at] * cos[at] + from[at + half] * sin[at];
        to[at + half] = from[at + half] * cos[at + half] + from[at] * sin[at + half];
    }
}

/* Write how a query [width] meets the keys of `count` slots in each of `parts` places, `apart` slots from one another.
Memory gives most when places far apart are read in turn. */
INLINE void met(
    const int64_t kind, const int parts, const float *query, const char *keys, int64_t apart, int64_t count,
    int64_t width, float scale, float *shares
) {
    const int64_t size = size_of(kind), line = width * size;
    for (int64_t slot = 0; slot < count; slot++) {
        const char *key = keys + slot * line;
        __m256 sums[4];
        UNROLL for (int part = 0; part < parts; part++) sums[part] = _mm256_setzero_ps();
        int64_t at = 0;
        for (; at + LANES <= width; at += LANES) {
            const __m256 one = _mm256_loadu_ps(query + at);
            UNROLL for (int part = 0; part < parts; part++)
                sums[part] = _mm256_fmadd_ps(one, eight_of(kind, key + part * apart * line + at * size), sums[part]);
        }
        UNROLL for (int part = 0; part < parts; part++) {
            float sum = sum_of(sums[part]);
            for (int64_t rest = at; rest < width; rest++)
                sum += query[rest] * one_of(kind, key + part * apart * line + rest * size);
            shares[part * apart + slot] = sum * scale;
        }
    }
}

/* Slots whose values are read together: they are met once for every part of a head, and lie near by then. */
enum { SLOTS_AT_ONCE = 16 };

/* Add to `parts` vectors of a sum the values of some slots, each by its share. */
INLINE void weighed(
    const int64_t kind, const int parts, const float *shares, const char *values, int64_t line, int64_t count, float *to
) {
    __m256 sums[4];
    UNROLL for (int part = 0; part < parts; part++) sums[part] = _mm256_loadu_ps(to + part * LANES);
    for (int64_t slot = 0; slot < count; slot++, values += line) {
        const __m256 share = _mm256_set1_ps(shares[slot]);
        UNROLL for (int part = 0; part < parts; part++) {
            const __m256 value = eight_of(kind, values + part * LANES * size_of(kind));
            sums[part] = _mm256_fmadd_ps(share, value, sums[part]);
        }
    }
    UNROLL for (int part = 0; part < parts; part++) _mm256_storeu_ps(to + part * LANES, sums[part]);
}

/* Attend from one turned query [head_width] to the first `count` slots; `shares` has room for as many. */
INLINE void looked(
    const int64_t kind, const float *query, const char *keys, const char *values, const uint8_t *visible,
    int64_t count, int64_t width, float scale, float *shares, float *to
) {
    const int64_t size = size_of(kind), line = width * size;
    for (; visible && count && !*visible; visible++, keys += line, values += line) count--;
    const int64_t quarter = count / 4, rest = 4 * quarter;
    met(kind, 4, query, keys, quarter, quarter, width, scale, shares);
    met(kind, 1, query, keys + rest * line, 0, count - rest, width, scale, shares + rest);
    if (visible)
        for (int64_t slot = 0; slot < count; slot++) shares[slot] = visible[slot] ? shares[slot] : -INFINITY;
    __m256 mosts = _mm256_set1_ps(-INFINITY);
    int64_t slot = 0;
    for (; slot + LANES <= count; slot += LANES) mosts = _mm256_max_ps(_mm256_loadu_ps(shares + slot), mosts);
    float eight[LANES], most = -INFINITY, all = 0.0f;
    _mm256_storeu_ps(eight, mosts);
    for (int lane = 0; lane < LANES; lane++) most = eight[lane] > most ? eight[lane] : most;
    for (; slot < count; slot++) most = shares[slot] > most ? shares[slot] : most;
    for (slot = 0; slot < count; slot++) shares[slot] = power_of_e(shares[slot] - most);
    if (visible)
        for (slot = 0; slot < count; slot++) shares[slot] = visible[slot] ? shares[slot] : 0.0f;
    for (int64_t at = 0; at < width; at++) to[at] = 0.0f;
    for (int64_t first = 0; first < count; first += SLOTS_AT_ONCE) {
        const int64_t slots = count - first < SLOTS_AT_ONCE ? count - first : SLOTS_AT_ONCE;
        const char *here = values + first * line;
        int64_t at = 0;
        for (; at + 4 * LANES <= width; at += 4 * LANES)
            weighed(kind, 4, shares + first, here + at * size, line, slots, to + at);
        for (; at + LANES <= width; at += LANES)
            weighed(kind, 1, shares + first, here + at * size, line, slots, to + at);
        for (; at < width; at++)
            for (slot = 0; slot < slots; slot++)
                to[at] += shares[first + slot] * one_of(kind, here + slot * line + at * size);
        for (slot = 0; slot < slots; slot++) all += shares[first + slot];
    }
    for (int64_t at = 0; at < width; at++) to[at] /= all;
}

/* Write a row's keys and values of one group, and attend from the group's queries. */
static void group_of(
    const Body *body, const Layer *layer, const Place *place, const float *mixed, int64_t row, int64_t group,
    float *to
) {
    const int64_t width = body->head_width, each = body->heads / body->groups, slots = place->slots;
    const int64_t of_one = (body->heads + 2 * body->groups) * width, line = width * size_of(body->kind);
    const int64_t before = (row * body->groups + group) * body->length * line, count = place->start + slots;
    char *keys = layer->keys + before, *values = layer->values + before;
    float one[width], shares[count];
    for (int64_t slot = 0; slot < slots; slot++) {
        const int64_t at = row * slots + slot, angles = place->positions[at] * width;
        const float *key = mixed + at * of_one + (body->heads + group) * width;
        turned(key, body->cos + angles, body->sin + angles, width, one);
        keep(body->kind, one, width, keys + (place->start + slot) * line);
        keep(body->kind, key + body->groups * width, width, values + (place->start + slot) * line);
    }
    for (int64_t slot = 0; slot < slots; slot++) {
        const int64_t at = row * slots + slot, angles = place->positions[at] * width;
        const uint8_t *visible = place->visible;
        if (visible) visible += row * place->visible_row + slot * place->visible_slot;
        for (int64_t head = group * each; head < (group + 1) * each; head++) {
            float *seen = to + (at * body->heads + head) * width;
            turned(mixed + at * of_one + head * width, body->cos + angles, body->sin + angles, width, one);
            if (body->kind == FP32) looked(FP32, one, keys, values, visible, count, width, body->scale, shares, seen);
            else looked(BF16, one, keys, values, visible, count, width, body->scale, shares, seen);
        }
    }
}

static void attended(const Body *body, const Layer *layer, const Place *place, const float *mixed, float *to) {
    const int64_t pairs = place->rows * body->groups, queries = place->slots * body->heads / body->groups;
    const int64_t numbers = 2 * pairs * (place->start + place->slots) * body->head_width;
    const int64_t parts = parts_of(numbers, size_of(body->kind), queries, place->threads);
    if (parts <= 1) {
        for (int64_t pair = 0; pair < pairs; pair++)
            group_of(body, layer, place, mixed, pair / body->groups, pair % body->groups, to);
        return;
    }
    #pragma omp parallel for num_threads(parts) schedule(static)
    for (int64_t pair = 0; pair < pairs; pair++)
        group_of(body, layer, place, mixed, pair / body->groups, pair % body->groups, to);
}

INLINE void added(float *stream, const float *change, int64_t count) {
    for (int64_t at = 0; at < count; at++) stream[at] += change[at];
}

/* Return how many numbers `step` needs room for, by slots of all rows. */
int64_t room(const Body *body, int64_t slots) {
    const int64_t mixed = (body->heads + 2 * body->groups) * body->head_width;
    return slots * (2 * body->width + mixed + body->heads * body->head_width + 2 * body->inner);
}

/* Take a stream [rows, slots, width] through all layers and the final norm, in place. Return 0, NO_MEMORY, or NO_ANGLE,
where a position lies beyond those that there are. */
int step(const Body *body, const Place *place, float *stream, float *space) {
    const int64_t rows = place->rows * place->slots;
    for (int64_t row = 0; row < rows; row++)
        if (place->positions[row] < 0 || place->positions[row] >= body->length) return NO_ANGLE;
    const int64_t width = body->width, inner = body->inner, threads = place->threads;
    const int64_t of_heads = body->heads * body->head_width;
    const int64_t of_mixed = of_heads + 2 * body->groups * body->head_width;
    float *norms = space, *change = norms + rows * width, *mixed = change + rows * width;
    float *seen = mixed + rows * of_mixed, *gates = seen + rows * of_heads;
    int failed = 0;
    for (const Layer *layer = body->layers; layer < body->layers + body->num_layers; layer++) {
        normed(body, layer->first_norm, stream, rows, norms);
        failed |= product(layer->before, layer->num_before, (Rows){norms, mixed, width, of_mixed, rows, NULL}, threads);
        attended(body, layer, place, mixed, seen);
        failed |= product(layer->after, 1, (Rows){seen, change, of_heads, width, rows, NULL}, threads);
        added(stream, change, rows * width);
        normed(body, layer->second_norm, stream, rows, norms);
        failed |= product(layer->gated, layer->num_gated, (Rows){norms, gates, width, 2 * inner, rows, NULL}, threads);
        for (int64_t row = 0; row < rows; row++) {
            float *gate = gates + row * 2 * inner;
            const float *other = gate + inner;
            for (int64_t at = 0; at < inner; at++)
                gate[at] = gate[at] / (1.0f + power_of_e(-gate[at])) * other[at];
        }
        failed |= product(layer->down, 1, (Rows){gates, change, 2 * inner, width, rows, NULL}, threads);
        added(stream, change, rows * width);
    }
    normed(body, body->norm, stream, rows, stream);
    return failed;
}
