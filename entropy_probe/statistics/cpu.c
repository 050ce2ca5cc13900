/* Compute the entropy, logit variance and attention distance of every attention row, in one pass over the keys.

   The logits of 32 rows are computed in strips of keys that fit into the first-level cache. Each vector lane has one
   row. Each logit is read once, for sum 2^s, sum s 2^s and the other sums: one matrix product, one exponential per
   logit, no attention map. dispatch.py explains the mathematics, cpu.py the arguments, and setup.py the two builds of
   this file. With AMX the matrix product runs on tiles. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AMX_BF16__
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define LANES 16                /* floats in a vector; the compiler splits it on processors with narrower vectors */
#define ROWS (2 * LANES)        /* queries in two vectors */
#define STRIP 64                /* maximum number of keys in a strip: twice 8 KiB of logits */
#define CACHED 4096             /* floats in a strip of keys: 16 KiB */
#define BLOCK 32                /* keys that are summed separately: sums of sums have smaller rounding errors */
#define PACKED_FLOATS (1 << 17) /* packed keys per thread: 512 KiB */
#define PREFETCH 16             /* number of keys to prefetch */
#define TASK 128                /* rows in a task of a thread */
#define CURVE 8                 /* maximum number of scale factors: as many KiB of sums */
#define ALL_EXACT ((1 << CURVE) - 1)
#define ROW_STATISTICS 5 /* numbers per row, for each scale factor */
#define MAP_STATISTICS 4 /* means per attention map, for each scale factor */
#define BIT 0.693147180559945309417 /* nats */

typedef float floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t uints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__AVX512F__)
#define FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_CPU
#endif
#define INLINE static inline __attribute__((always_inline))

typedef struct {
    const float *query, *key, *bias, *query_positions, *key_positions;
    float *entropy, *variance, *log_sum, *logit_mean, *distance, *means;
    int64_t batch, heads, queries, keys, width;
    int64_t query_strides[3], key_strides[3];
    int64_t factor_count; /* number of scale factors */
    float scale_factors[CURVE];
    float scale, limit;
} Call;

/* The bias of an allowed key (bits), its position, and x^2 + y^2. */
typedef struct {
    float bias, x, y, norm;
} Side;

/* The allowed keys of one attention map: centred, in bits, in the layout of `product`. */
typedef struct {
    int64_t count; /* allowed keys */
    int64_t *allowed;
    Side *sides;
    float *keys;
    float *mean_key, mean_key_bias; /* subtracted by centring; they give the mean logit of a row */
} Packed;

typedef struct {
    floats total, expected, square, x, y, norm, total_error, expected_error;
} Sums;

INLINE floats load(const float *from) { return *(const floats *)from; }
INLINE void store(void *to, floats values) { *(floats *)to = values; }
INLINE int64_t rounded(int64_t count, int64_t to) { return (count + to - 1) / to * to; }

INLINE floats load_some(const float *from, int64_t count) {
    if (count >= LANES) return load(from);
    float lanes[LANES] = {0};
    for (int64_t i = 0; i < count; i++) lanes[i] = from[i];
    return load(lanes);
}

#ifdef __AMX_BF16__

/* A float is exactly the sum of three bfloat16 numbers, high + middle + low: bfloat16 has 8 of its 24 significant bits.
   A dword of a tile contains two parts of a factor, and one instruction adds the products of both pairs. (h, m) (h, m),
   (h, m) (m, h) and (h, l) (l, h) give the whole product except terms below 2^-22 of it. */

#define GROUP 32 /* keys: two tiles */
#define KEY_PARTS 2
#define QUERY_PARTS 3
#define TILE (LANES * LANES)

INLINE void split(floats values, ints parts[3]) {
    for (int i = 0; i < 3; i++) {
        parts[i] = (ints)values & (int32_t)0xffff0000;
        values -= (floats)parts[i];
    }
}

INLINE floats pair(ints low, ints high) {
    return (floats)(((uints)low >> 16) | (uints)high);
}

INLINE void put_key(float *keys, int64_t depth, int64_t key, int64_t from, floats values) {
    float *to = keys + key / LANES * LANES * KEY_PARTS * depth + from * LANES * KEY_PARTS + key % LANES * LANES;
    ints part[3];
    split(values, part);
    store(to, pair(part[0], part[1]));
    store(to + TILE, pair(part[0], part[2]));
}

INLINE void put_query(float *queries, int half, int64_t at, floats values) {
    float *to = queries + at / LANES * 2 * QUERY_PARTS * TILE + half * TILE + at % LANES * LANES;
    ints part[3];
    split(values, part);
    store(to, pair(part[0], part[1]));
    store(to + 2 * TILE, pair(part[1], part[0]));
    store(to + 4 * TILE, pair(part[2], part[0]));
}

/* GCC's tile intrinsics do not declare the memory that they read and write. This barrier does. */
#define BARRIER(what) __asm__ volatile("" : : "r"(what) : "memory")

#define PRODUCTS(queries)                                                                                              \
    _tile_loadd(6, queries, 4 * LANES);                                                                                \
    _tile_loadd(7, (queries) + TILE, 4 * LANES);                                                                       \
    _tile_dpbf16ps(0, 4, 6);                                                                                           \
    _tile_dpbf16ps(1, 4, 7);                                                                                           \
    _tile_dpbf16ps(2, 5, 6);                                                                                           \
    _tile_dpbf16ps(3, 5, 7)

INLINE void product(const float *queries, const float *keys, int64_t depth, int64_t width, int64_t count,
                    float logits[STRIP][ROWS]) {
    const int64_t next = LANES * KEY_PARTS * depth; /* tile of keys */
    BARRIER(queries);
    for (int64_t j = 0; j < count; j += GROUP) {
        const float *q = queries, *k = keys + j * KEY_PARTS * depth;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t i = 0; i < depth; i += LANES, q += 2 * QUERY_PARTS * TILE, k += KEY_PARTS * TILE) {
            _tile_loadd(4, k, 4 * LANES);
            _tile_loadd(5, k + next, 4 * LANES);
            PRODUCTS(q);
            PRODUCTS(q + 2 * TILE);
            _tile_loadd(4, k + TILE, 4 * LANES);
            _tile_loadd(5, k + next + TILE, 4 * LANES);
            PRODUCTS(q + 4 * TILE);
        }
        _tile_stored(0, logits[j], 4 * ROWS);
        _tile_stored(1, logits[j] + LANES, 4 * ROWS);
        _tile_stored(2, logits[j + LANES], 4 * ROWS);
        _tile_stored(3, logits[j + LANES] + LANES, 4 * ROWS);
    }
    BARRIER(logits);
}

/* Return 2^s: a polynomial for the fraction, an AVX-512 instruction for the integer part. */
INLINE floats power_of_two(floats s) {
    const floats f = (floats)_mm512_reduce_ps((__m512)s, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    floats p = 1.877576686e-03f * f + 8.989340231e-03f;
    p = p * f + 5.582631776e-02f;
    p = p * f + 2.401536172e-01f;
    p = p * f + 6.931530732e-01f;
    p = p * f + 9.999999251e-01f;
    return (floats)_mm512_scalef_ps((__m512)p, (__m512)s);
}

typedef struct {
    uint8_t bytes[64];
} Tiles;

INLINE Tiles use_tiles(void) {
    Tiles before, own = {{1}};
    _tile_storeconfig(&before);
    BARRIER(&before);
    for (int i = 0; i < 8; i++) own.bytes[16 + 2 * i] = 4 * LANES, own.bytes[48 + i] = LANES;
    BARRIER(&own);
    _tile_loadconfig(&own);
    return before;
}

INLINE void leave_tiles(Tiles before) {
    BARRIER(&before);
    _tile_loadconfig(&before);
}

/* Return 1 if the processor supports this build and the kernel allows this process to use AMX. */
static int usable(void) {
    return __builtin_cpu_supports("amx-bf16") && __builtin_cpu_supports("x86-64-v4") &&
           !syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* the tiles' state */);
}

#else

#define GROUP 8 /* keys per inner loop: their sums fill the registers */
#define KEY_PARTS 1
#define QUERY_PARTS 1
#define MIN_EXPONENT (0x4b400000 - 125) /* range of the exponent of a float, as bits in `power_of_two` */
#define MAX_EXPONENT (0x4b400000 + 128)

INLINE void put_key(float *keys, int64_t depth, int64_t key, int64_t from, floats values) {
    store(keys + key * depth + from, values);
}

INLINE void put_query(float *queries, int half, int64_t at, floats values) {
    store(queries + at * ROWS + half * LANES, values);
}

INLINE void product(const float *queries, const float *keys, int64_t depth, int64_t width, int64_t count,
                    float logits[STRIP][ROWS]) {
    for (int64_t j = 0; j < count; j += GROUP) {
        const float *k = keys + j * depth;
        floats s[GROUP][2] = {0};
        for (int64_t i = 0; i < width; i++) {
            const floats first = load(queries + i * ROWS), second = load(queries + i * ROWS + LANES);
            for (int r = 0; r < GROUP; r++) {
                s[r][0] += k[r * depth + i] * first;
                s[r][1] += k[r * depth + i] * second;
            }
        }
        for (int r = 0; r < GROUP; r++) {
            store(logits[j + r], s[r][0]);
            store(logits[j + r] + LANES, s[r][1]);
        }
    }
}

/* Return 2^s: a polynomial for the fraction, the exponent bits for the integer part. The minimum is about 2^-126, which
   is negligible in the total of a row. Too large values make a total or a square that `finish` detects. */
INLINE floats power_of_two(floats s) {
    const float round = 12582912.0f; /* 1.5 * 2^23: adding it leaves the integer part in the low bits */
    const floats shifted = s + round;
    const floats f = s - (shifted - round);
    ints whole = (ints)shifted;
    for (int i = 0; i < LANES; i++) whole[i] = whole[i] > MIN_EXPONENT ? whole[i] : MIN_EXPONENT;
    for (int i = 0; i < LANES; i++) whole[i] = whole[i] < MAX_EXPONENT ? whole[i] : MAX_EXPONENT;
    floats p = 1.339086336e-3f * f + 9.676031918e-3f;
    p = p * f + 5.550357114e-2f;
    p = p * f + 2.402210749e-1f;
    p = p * f + 6.931471880e-1f;
    p = p * f + 1.0f;
    return (floats)((uints)p + ((uints)whole << 23));
}

typedef int Tiles;
INLINE Tiles use_tiles(void) { return 0; }
INLINE void leave_tiles(Tiles before) { (void)before; }
static int usable(void) { return 1; }

#endif

/* Swap the off-diagonal squares of `step` lanes. Steps of 8, 4, 2 and 1 together transpose. */
#define LOW(i, step) ((i) & (step) ? LANES + (i) - (step) : (i))
#define HIGH(i, step) ((i) & (step) ? LANES + (i) : (i) + (step))
#define MASK(of, step)                                                                                                 \
    (ints) {                                                                                                           \
        of(0, step), of(1, step), of(2, step), of(3, step), of(4, step), of(5, step), of(6, step), of(7, step),        \
            of(8, step), of(9, step), of(10, step), of(11, step), of(12, step), of(13, step), of(14, step),            \
            of(15, step)                                                                                               \
    }
#define SWAP_SQUARES(rows, step)                                                                                       \
    for (int i = 0; i < LANES; i++) {                                                                                  \
        if (i & (step)) continue;                                                                                      \
        const floats a = rows[i], b = rows[i + (step)];                                                                \
        rows[i] = __builtin_shuffle(a, b, MASK(LOW, step));                                                            \
        rows[i + (step)] = __builtin_shuffle(a, b, MASK(HIGH, step));                                                  \
    }

/* Pack a tile of queries from row `first`; rows beyond the last are 0. Add their products with the mean key to
   `mean_logits`. */
INLINE void pack_queries(const Call *c, const float *query, int64_t first, int64_t depth, float *queries,
                         const float *mean_key, floats mean_logits[2]) {
    for (int half = 0; half < 2; half++) {
        const int64_t row = first + half * LANES, left = c->queries - row, count = left < LANES ? left : LANES;
        for (int64_t from = 0; from < c->width; from += LANES) {
            floats square[LANES] = {0};
            for (int64_t i = 0; i < count; i++)
                square[i] = load_some(query + (row + i) * c->query_strides[2] + from, c->width - from);
            for (int64_t i = 0; i < count; i++) __builtin_prefetch(query + (row + i + LANES) * c->query_strides[2] + from);
            SWAP_SQUARES(square, 8)
            SWAP_SQUARES(square, 4)
            SWAP_SQUARES(square, 2)
            SWAP_SQUARES(square, 1)
            for (int64_t i = 0; i < LANES; i++) {
                put_query(queries, half, from + i, square[i]);
                mean_logits[half] += square[i] * mean_key[from + i];
            }
        }
    }
}

FOR_EACH_CPU
static void pack(const Call *c, int64_t map, Packed *p) {
    const int64_t item = map / c->heads, head = map % c->heads, depth = rounded(c->width, LANES);
    const float *key = c->key + item * c->key_strides[0] + head * c->key_strides[1];
    const float *bias = c->bias ? c->bias + map * c->keys : NULL;
    double mean_bias = 0;
    p->count = 0;
    for (int64_t j = 0; j < c->keys; j++) {
        if (bias && bias[j] == -INFINITY) continue;
        mean_bias += bias ? bias[j] : 0;
        p->allowed[p->count++] = j;
    }
    mean_bias /= p->count ? (double)p->count : 1;
    p->mean_key_bias = (float)mean_bias;
    for (int64_t n = 0; n < p->count; n++) {
        const int64_t j = p->allowed[n];
        const float x = c->key_positions ? c->key_positions[2 * j] : 0;
        const float y = c->key_positions ? c->key_positions[2 * j + 1] : 0;
        p->sides[n] = (Side){bias ? (float)((bias[j] - mean_bias) / BIT) : 0, x, y, x * x + y * y};
    }
    for (int64_t from = 0; from < c->width; from += LANES) {
        floats mean = {0}, rest = {0}; /* the rest is the mean of what a first, rounded mean leaves */
        for (int pass = 0; pass < 2; pass++) {
            double total[LANES] = {0};
            for (int64_t n = 0; n < p->count;) {
                floats part = {0};
                for (int64_t end = n + BLOCK < p->count ? n + BLOCK : p->count; n < end; n++) {
                    const float *at = key + p->allowed[n] * c->key_strides[2] + from;
                    part += load_some(at, c->width - from) - mean;
                    __builtin_prefetch(at + PREFETCH * c->key_strides[2]);
                }
                for (int i = 0; i < LANES; i++) total[i] += part[i];
            }
            for (int i = 0; i < LANES; i++) rest[i] = (float)(total[i] / (p->count ? (double)p->count : 1));
            if (pass == 0) mean = rest;
        }
        store(p->mean_key + from, mean + rest);
        for (int64_t n = 0; n < rounded(p->count, GROUP); n++) {
            floats values = {0};
            if (n < p->count) {
                values = load_some(key + p->allowed[n] * c->key_strides[2] + from, c->width - from) - mean - rest;
                values *= c->scale / (float)BIT;
            }
            put_key(p->keys, depth, n, from, values);
        }
    }
}

/* Add a value, and keep the rounding error for the next addition (Kahan summation). */
INLINE void add(floats *sum, floats *error, floats value) {
    const floats y = value - *error, total = *sum + y;
    *error = total - *sum - y;
    *sum = total;
}

INLINE void accumulate(Sums *sums, const float *logits, const Side *sides, int64_t count, float scale_factor,
                       int biased, int distance) {
    for (int64_t from = 0; from < count; from += BLOCK) {
        Sums a = {0};
        for (int64_t j = from; j < from + BLOCK && j < count; j++) {
            floats s = load(logits + j * ROWS) * scale_factor;
            if (biased) s += sides[j].bias;
            const floats p = power_of_two(s);
            a.total += p;
            a.expected += p * s;
            a.square += s * s;
            if (distance) {
                a.x += p * sides[j].x;
                a.y += p * sides[j].y;
                a.norm += p * sides[j].norm;
            }
        }
        add(&sums->total, &sums->total_error, a.total);
        add(&sums->expected, &sums->expected_error, a.expected);
        sums->square += a.square;
        if (distance) {
            sums->x += a.x;
            sums->y += a.y;
            sums->norm += a.norm;
        }
    }
}

INLINE floats at_least_0(floats values) {
    for (int i = 0; i < LANES; i++) values[i] = values[i] > 0 ? values[i] : 0;
    return values;
}

INLINE void put_some(float *to, floats values, int64_t count) {
    if (count >= LANES) store(to, values);
    for (int64_t i = 0; count < LANES && i < count; i++) to[i] = values[i];
}

/* Write the statistics of up to 16 rows of an output map. Return 1 if every log-sum-exp is within the limit. */
INLINE int finish(const Call *c, const Sums *sums, floats logit_mean, int64_t count, int64_t map, int64_t first,
                  int distance) {
    const int64_t left = c->queries - first, valid = left < LANES ? left : LANES, at = map * c->queries + first;
    floats entropy = {0}, variance = {0}, log_sum = {0}, distances = {0};
    int exact = 1;
    if (count) {
        /* log2 of the total: its exponent, plus a series in t for the mantissa m between sqrt(1/2) and sqrt(2) */
        const floats total = sums->total;
        const ints bits = (ints)total, exponent = (bits - 0x3f3504f3) >> 23;
        const floats m = (floats)(bits - (exponent << 23)), t = (m - 1) / (m + 1), u = t * t;
        const floats log_m = t * (2.88539008f + u * (0.96179669f + u * (0.57707802f + u * (0.41219858f + u * 0.32059890f))));
        const floats whole = __builtin_convertvector(exponent, floats);
        log_sum = (whole + log_m) * (float)BIT;
        /* The entropy is a small difference of large numbers, so the mean of s includes its rounding error. */
        const floats mean = sums->expected / total, rest = (sums->expected - mean * total) / total;
        const float limit = logf((float)count);
        entropy = at_least_0((whole - mean + (log_m - rest)) * (float)BIT);
        for (int i = 0; i < LANES; i++) entropy[i] = entropy[i] < limit ? entropy[i] : limit;
        variance = sums->square * (float)(BIT * BIT / (double)count); /* keys and biases are centred */
        if (distance) {
            floats x = {0}, y = {0};
            const float *positions = c->query_positions + 2 * first;
            for (int64_t i = 0; i < valid; i++) x[i] = positions[2 * i], y[i] = positions[2 * i + 1];
            distances = at_least_0(x * x + y * y + (sums->norm - 2 * (x * sums->x + y * sums->y)) / total);
            for (int i = 0; i < LANES; i++) distances[i] = sqrtf(distances[i]);
        }
        for (int64_t i = 0; i < valid; i++)
            exact &= fabsf(log_sum[i]) <= c->limit && sums->square[i] < 1e12f; /* false for NaN */
    }
    put_some(c->entropy + at, entropy, valid);
    put_some(c->variance + at, variance, valid);
    put_some(c->log_sum + at, log_sum + logit_mean - (count ? 0 : INFINITY), valid);
    put_some(c->logit_mean + at, logit_mean, valid);
    if (distance) put_some(c->distance + at, distances, valid);
    return exact;
}

/* Compute rows `first` to `first` + TASK of one map, packed in `queries`. Return a bit per scale factor: 1 if exact. */
INLINE int rows(const Call *c, int64_t map, const Packed *p, int64_t first, float *queries, int biased, int distance) {
    const int64_t item = map / c->heads, head = map % c->heads, depth = rounded(c->width, LANES);
    const float *query = c->query + item * c->query_strides[0] + head * c->query_strides[1];
    const int64_t cached = CACHED / (KEY_PARTS * depth + 1) / GROUP * GROUP;
    const int64_t strip = cached < GROUP ? GROUP : cached < STRIP ? cached : STRIP;
    float logits[2][STRIP][ROWS] __attribute__((aligned(64)));
    const int64_t last = first + TASK < c->queries ? first + TASK : c->queries;
    floats mean_logits[TASK / ROWS][2] = {0};
    const int64_t maps = c->batch * c->heads;
    int exact = ALL_EXACT;
    for (int64_t row = first; row < last; row += ROWS) /* before all products: tiles wait for recent writes */
        pack_queries(c, query, row, depth, queries + (row - first) * QUERY_PARTS * depth, p->mean_key,
                     mean_logits[(row - first) / ROWS]);
    for (int64_t row = first; row < last; row += ROWS, queries += ROWS * QUERY_PARTS * depth) {
        const floats *own_mean_logits = mean_logits[(row - first) / ROWS];
        Sums sums[CURVE][2];
        memset(sums, 0, (size_t)c->factor_count * sizeof *sums);
        /* Products run one strip ahead: the tiles compute the next strip while the vectors sum this one. */
        for (int64_t from = -strip, step = 0; from < p->count; from += strip, step ^= 1) {
            const int64_t next = from + strip, left = p->count - next < strip ? p->count - next : strip;
            if (left > 0)
                product(queries, p->keys + next * KEY_PARTS * depth, depth, c->width, rounded(left, GROUP), logits[step]);
            if (from < 0) continue;
            const int64_t count = p->count - from < strip ? p->count - from : strip;
            const float *own = logits[step ^ 1][0];
            for (int64_t m = 0; m < c->factor_count; m++)
                for (int half = 0; half < 2; half++) {
                    const float *of_half = own + half * LANES, by = c->scale_factors[m];
                    if (by == 1) /* no multiplication in the most common case */
                        accumulate(sums[m] + half, of_half, p->sides + from, count, 1, biased, distance);
                    else
                        accumulate(sums[m] + half, of_half, p->sides + from, count, by, biased, distance);
                }
        }
        for (int64_t m = 0; m < c->factor_count; m++)
            for (int half = 0; half < 2; half++) {
                const floats logit_mean = own_mean_logits[half] * (c->scale * c->scale_factors[m]) + p->mean_key_bias;
                const int64_t to = m * ROW_STATISTICS * maps + map;
                if (!finish(c, sums[m] + half, logit_mean, p->count, to, row + half * LANES, distance)) exact &= ~(1 << m);
            }
    }
    return exact;
}

FOR_EACH_CPU
static int task(const Call *c, int64_t map, const Packed *p, int64_t first, float *queries) {
    if (c->bias) return c->distance ? rows(c, map, p, first, queries, 1, 1) : rows(c, map, p, first, queries, 1, 0);
    return c->distance ? rows(c, map, p, first, queries, 0, 1) : rows(c, map, p, first, queries, 0, 0);
}

/* Return the mean of values - from, or of its square. */
INLINE float mean(const float *values, int64_t count, float from, int squared) {
    floats total = {0};
    float sum = 0;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        const floats v = load(values + i) - from;
        if (squared)
            total += v * v;
        else
            total += v;
    }
    for (int lane = 0; lane < LANES; lane++) sum += total[lane];
    for (; i < count; i++) sum += squared ? (values[i] - from) * (values[i] - from) : values[i] - from;
    return sum / (float)count;
}

/* Write the means over the rows of a map: entropy, its standard deviation, variance and distance. NaN without allowed
   keys. */
FOR_EACH_CPU
static void summarise(const Call *c, int64_t m, int64_t map, const Packed *p) {
    const int64_t maps = c->batch * c->heads, first = (m * ROW_STATISTICS * maps + map) * c->queries;
    float *to = c->means + m * MAP_STATISTICS * maps + map;
    const float none = p->count > 0 ? 0 : NAN, entropy = mean(c->entropy + first, c->queries, 0, 0);
    to[0] = entropy + none;
    to[maps] = sqrtf(mean(c->entropy + first, c->queries, entropy, 1)) + none;
    to[2 * maps] = mean(c->variance + first, c->queries, 0, 0) + none;
    if (c->distance) to[3 * maps] = mean(c->distance + first, c->queries, 0, 0) + none;
}

/* Process a few maps at a time, to keep their packed keys in the second-level cache. Return a bit per scale factor, 1
   if float32 represents the result; -1 if memory is exhausted. */
static int run(const Call *c, int threads) {
    const int64_t maps = c->batch * c->heads, tasks = (c->queries + TASK - 1) / TASK;
    const int64_t keys = rounded(c->keys, GROUP), depth = rounded(c->width, LANES);
    const size_t key_floats = (size_t)(keys * depth * KEY_PARTS), query_floats = (size_t)(TASK * depth * QUERY_PARTS);
    const size_t side_floats = (size_t)(keys * 4), each = key_floats + side_floats + (size_t)(keys * 2 + depth);
    const int64_t cached = rounded((int64_t)((size_t)threads * PACKED_FLOATS / each) + 1, threads);
    const int64_t together = cached < maps ? cached : maps;
    Packed *packed = malloc((size_t)together * sizeof *packed);
    float *memory = aligned_alloc(64, ((size_t)threads * query_floats + (size_t)together * each) * sizeof *memory);
    int exact = ALL_EXACT;
    if (!packed || !memory) {
        free(packed);
        free(memory);
        return -1;
    }
    for (int64_t i = 0; i < together; i++) {
        packed[i].keys = memory + (size_t)threads * query_floats + (size_t)i * each;
        packed[i].sides = (Side *)(packed[i].keys + key_floats);
        packed[i].allowed = (int64_t *)(packed[i].keys + key_floats + side_floats);
        packed[i].mean_key = (float *)(packed[i].allowed + keys);
    }
#pragma omp parallel num_threads(threads) reduction(& : exact)
    {
        float *queries = memory + (size_t)omp_get_thread_num() * query_floats;
        const Tiles before = use_tiles();
        for (int64_t map = 0; map < maps; map += together) {
            const int64_t maps_now = maps - map < together ? maps - map : together;
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < maps_now; i++) pack(c, map + i, packed + i);
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < maps_now * tasks; i++)
                exact &= task(c, map + i / tasks, packed + i / tasks, i % tasks * TASK, queries);
#pragma omp for
            for (int64_t i = 0; i < maps_now; i++)
                for (int64_t m = 0; m < c->factor_count; m++) summarise(c, m, map + i, packed + i);
        }
        leave_tiles(before);
    }
    free(packed);
    free(memory);
    return exact;
}

static PyObject *statistics(PyObject *Py_UNUSED(self), PyObject *args) {
    Call c;
    unsigned long long p[7];
    int threads, found;
    PyObject *scale_factors;
    if (!PyArg_ParseTuple(args, "(KKKKKKK)(LLLLL)(LLL)(LLL)fO!fi", p, p + 1, p + 2, p + 3, p + 4, p + 5, p + 6,
                          &c.batch, &c.heads, &c.queries, &c.keys, &c.width, c.query_strides, c.query_strides + 1,
                          c.query_strides + 2, c.key_strides, c.key_strides + 1, c.key_strides + 2, &c.scale,
                          &PyTuple_Type, &scale_factors, &c.limit, &threads))
        return NULL;
    c.factor_count = PyTuple_Size(scale_factors);
    if (c.factor_count > CURVE) return PyErr_Format(PyExc_ValueError, "at most %d scale factors", CURVE);
    for (int64_t m = 0; m < c.factor_count; m++)
        c.scale_factors[m] = (float)PyFloat_AsDouble(PyTuple_GetItem(scale_factors, m));
    if (PyErr_Occurred()) return NULL;
    const float **in[] = {&c.query, &c.key, &c.bias, &c.query_positions, &c.key_positions};
    float **out[ROW_STATISTICS] = {&c.entropy, &c.variance, &c.log_sum, &c.logit_mean, &c.distance};
    for (int i = 0; i < 5; i++) *in[i] = (const float *)(uintptr_t)p[i];
    for (int i = 0; i < ROW_STATISTICS; i++) *out[i] = (float *)(uintptr_t)p[5] + i * c.batch * c.heads * c.queries;
    if (!c.key_positions) c.distance = NULL;
    c.means = (float *)(uintptr_t)p[6];
    Py_BEGIN_ALLOW_THREADS
    found = run(&c, threads);
    Py_END_ALLOW_THREADS
    return found < 0 ? PyErr_NoMemory() : PyLong_FromLong(found);
}

static PyMethodDef methods[] = {{"statistics", statistics, METH_VARARGS, "See cpu.py."}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cpu", NULL, 0, methods, NULL, NULL, NULL, NULL};

#define INITIALISE(name) PyInit_##name
#define INITIALISER(name) INITIALISE(name)

PyMODINIT_FUNC INITIALISER(MODULE)(void) {
    if (usable()) return PyModule_Create(&module);
    PyErr_SetString(PyExc_ImportError, "this processor does not support AMX");
    return NULL;
}
