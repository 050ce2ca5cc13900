/* Entropy, logit variance and attention distance of every attention row, in one pass over the keys.

   The logits s of eight rows are built in strips that stay in the first-level cache; each is read once, for
   sum 2^s, sum s 2^s and the rest, and forgotten. One matrix product, one exponential a logit, no attention map.
   See flash.py for the mathematics and cpu.py for what the arguments mean. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>

#define LANES 16 /* floats in a vector; the compiler splits it where the machine's are narrower */
#define ROWS 8 /* rows that are multiplied with a tile of keys at once: their sums fill the registers */
#define PAIR 2   /* vectors in a tile */
#define TILE (PAIR * LANES)
#define BLOCK 64 /* rows that share a strip of keys while it is in the first-level cache */
#define STRIP 512
#define CACHED 8192 /* floats of a strip of keys: 32 KiB */

#define BIT 0.693147180559945309417 /* nats */
#define BARRED -1e4f                /* bits: no key so low weighs anything */
#define LEAST (0x4b400000 - 125)    /* exponents that a float can have, in the bits of `power_of_two` */
#define MOST (0x4b400000 + 128)

typedef float floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#if defined(__x86_64__) && defined(__gnu_linux__)
#define EVERY_MACHINE __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EVERY_MACHINE
#endif
#define INLINE static inline __attribute__((always_inline))

typedef struct {
    const float *query, *key, *bias, *weight, *here, *there;
    float *scratch, *entropy, *variance, *distance, *means;
    int64_t batch, heads, queries, keys, width;
    int64_t query_strides[3], key_strides[3];
    float scale, limit;
    int64_t padded, bias_stride; /* keys, rounded up to whole tiles; 0 where all maps share the bias */
    float *places, *count, *packed; /* parts of the scratch */
} Call;

typedef struct {
    floats total, expected, mean, square, x, y, norm;
} Sums;

INLINE floats load(const float *from) { return *(const floats *)from; }

/* The sums over the lanes of four vectors, in the first four floats. */
INLINE void sum_four(floats a, floats b, floats c, floats d, float to[4]) {
    const ints low = {0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23}, high = low + 8;
    const ints even = {0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27}, odd = even + 4;
    const floats ab = __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
    const floats cd = __builtin_shuffle(c, d, low) + __builtin_shuffle(c, d, high);
    float lane[LANES]; /* four of a, c, b, d each */
    *(floats *)lane = __builtin_shuffle(ab, cd, even) + __builtin_shuffle(ab, cd, odd);
    for (int i = 0; i < 4; i++) {
        const float *four = lane + 4 * (i == 1 ? 2 : i == 2 ? 1 : i);
        to[i] = (four[0] + four[1]) + (four[2] + four[3]);
    }
}

/* 2^s: a polynomial for the fraction, the exponent's bits for the rest. Never less than about 2^-126, which is nothing
   beside the total of a row; what is too large makes a total or a square that gives it away. */
INLINE floats power_of_two(floats s) {
    const float round = 12582912.0f; /* 1.5 * 2^23: adding it leaves the integer part in the low bits */
    const floats shifted = s + round;
    const floats f = s - (shifted - round);
    ints whole = (ints)shifted;
    for (int i = 0; i < LANES; i++) whole[i] = whole[i] > LEAST ? whole[i] : LEAST;
    for (int i = 0; i < LANES; i++) whole[i] = whole[i] < MOST ? whole[i] : MOST;
    floats p = 1.339086336e-3f * f + 9.676031918e-3f;
    p = p * f + 5.550357114e-2f;
    p = p * f + 2.402210749e-1f;
    p = p * f + 6.931471880e-1f;
    p = p * f + 1.0f;
    return (floats)((ints)p + (whole << 23));
}

/* The keys of one map, centred, in bits, in tiles of `width` x TILE that the product reads in one sweep.
   A barred key is 0, so that what bars it is all there is to its logit. */
EVERY_MACHINE
static void pack(const Call *c, int64_t map) {
    const int64_t item = map / c->heads, head = map % c->heads, padded = c->padded;
    const float *key = c->key + item * c->key_strides[0] + head * c->key_strides[1];
    const float *weight = c->weight + map * c->bias_stride;
    float *packed = c->packed + map * padded * c->width;
    const float scale = c->scale / (float)BIT;
    float count = 0;
    for (int64_t j = 0; j < c->keys; j++) count += weight[j];
    c->count[map] = count;
    for (int64_t from = 0; from < c->width; from += LANES) {
        const int64_t columns = c->width - from < LANES ? c->width - from : LANES;
        double total[LANES] = {0};
        for (int64_t tile = 0; tile < c->keys; tile += TILE) {
            float part[LANES] = {0};
            for (int64_t j = tile; j < tile + TILE && j < c->keys; j++) {
                const float *of = key + j * c->key_strides[2] + from;
                if (columns == LANES)
                    *(floats *)part += weight[j] * load(of);
                else
                    for (int64_t i = 0; i < columns; i++) part[i] += weight[j] * of[i];
            }
            for (int64_t i = 0; i < columns; i++) total[i] += part[i];
        }
        float mean[LANES];
        for (int64_t i = 0; i < columns; i++) mean[i] = (float)(total[i] / (count > 0 ? count : 1));
        for (int64_t tile = 0; tile < padded; tile += TILE) {
            const float *of = key + tile * c->key_strides[2] + from;
            float *to = packed + tile * c->width + from * TILE;
            const int64_t there = c->keys - tile < TILE ? c->keys - tile : TILE;
            for (int64_t i = 0; i < columns; i++) {
                for (int64_t j = 0; j < there; j++)
                    to[i * TILE + j] = weight[tile + j] > 0 ? scale * (of[j * c->key_strides[2] + i] - mean[i]) : 0;
                for (int64_t j = there; j < TILE; j++) to[i * TILE + j] = 0;
            }
        }
    }
}

INLINE void product(const float *const query[ROWS], const float *packed, const float *bias, int64_t width, int64_t count,
                    float logits[ROWS][STRIP]) {
    for (int64_t j = 0; j < count; j += TILE) {
        floats s[ROWS][PAIR];
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < PAIR; v++) s[r][v] = load(bias + j + v * LANES);
        for (int64_t i = 0; i < width; i++, packed += TILE) {
            floats k[PAIR];
            for (int v = 0; v < PAIR; v++) k[v] = load(packed + v * LANES);
            for (int r = 0; r < ROWS; r++)
                for (int v = 0; v < PAIR; v++) s[r][v] += query[r][i] * k[v];
        }
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < PAIR; v++) *(floats *)(logits[r] + j + v * LANES) = s[r][v];
    }
}

INLINE void accumulate(Sums *sums, const float *logits, const float *weight, const float *places, int64_t padded,
                       int64_t from, int64_t to, int weighted, int distance) {
    Sums a = {0}; /* of this strip alone: sums of sums round less */
    for (int64_t j = from; j < to; j += LANES) {
        const floats s = load(logits + j), p = power_of_two(s);
        a.total += p;
        a.expected += p * s;
        if (weighted) {
            const floats w = load(weight + j) * s;
            a.mean += w;
            a.square += w * s;
        } else {
            a.square += s * s;
        }
        if (distance) {
            a.x += p * load(places + j);
            a.y += p * load(places + padded + j);
            a.norm += p * load(places + 2 * padded + j);
        }
    }
    sums->total += a.total;
    sums->expected += a.expected;
    sums->mean += a.mean;
    sums->square += a.square;
    if (distance) {
        sums->x += a.x;
        sums->y += a.y;
        sums->norm += a.norm;
    }
}

/* The rows `first` to `first` + BLOCK of one map; whether every log-sum-exp is within the limit. */
INLINE int rows(const Call *c, int64_t map, int64_t first, int distance) {
    const int64_t item = map / c->heads, head = map % c->heads, padded = c->padded;
    const float *query = c->query + item * c->query_strides[0] + head * c->query_strides[1];
    const float *bias = c->bias + map * c->bias_stride, *weight = c->weight + map * c->bias_stride;
    const float *places = c->places, *packed = c->packed + map * padded * c->width;
    const int64_t last = first + BLOCK < c->queries ? first + BLOCK : c->queries;
    const int64_t most = CACHED / c->width / TILE * TILE;
    const int64_t strip = most < TILE ? TILE : most < STRIP ? most : STRIP;
    Sums sums[BLOCK] = {0};
    float logits[ROWS][STRIP] __attribute__((aligned(64)));

    for (int64_t from = 0; from < padded; from += strip) {
        const int64_t count = padded - from < strip ? padded - from : strip;
        const int64_t left = c->bias_stride ? 0 : (c->keys - from) / LANES * LANES;
        const int64_t full = left < count ? left : count; /* without padding or barred keys */
        for (int64_t row = first; row < last; row += ROWS) {
            const float *q[ROWS];
            for (int r = 0; r < ROWS; r++) q[r] = query + (row + r < last ? row + r : last - 1) * c->query_strides[2];
            product(q, packed + from * c->width, bias + from, c->width, count, logits);
            for (int r = 0; r < ROWS && row + r < last; r++) {
                Sums *own = sums + row + r - first;
                accumulate(own, logits[r], weight + from, places + from, padded, 0, full, 0, distance);
                accumulate(own, logits[r], weight + from, places + from, padded, full, count, 1, distance);
            }
        }
    }
    const float allowed = c->count[map], limit = logf(allowed);
    int within = 1;
    for (int64_t row = first; row < last; row++) {
        const Sums *a = sums + row - first;
        const int64_t at = map * c->queries + row;
        float entropy = 0, variance = 0, apart = 0;
        if (allowed > 0) {
            float four[4], place[4];
            sum_four(a->total, a->expected, a->mean, a->square, four);
            const float total = four[0], log_sum = log2f(total);
            const float mean = c->bias_stride ? four[2] / allowed : 0; /* the keys are centred */
            within &= fabsf(log_sum) * (float)BIT <= c->limit && four[3] < 1e12f; /* false for NaN */
            entropy = (log_sum - four[1] / total) * (float)BIT;
            entropy = entropy < 0 ? 0 : entropy > limit ? limit : entropy;
            variance = (four[3] / allowed - mean * mean) * (float)(BIT * BIT);
            variance = variance < 0 ? 0 : variance;
            if (distance) {
                const float x = c->here[2 * row], y = c->here[2 * row + 1];
                sum_four(a->x, a->y, a->norm, a->norm, place);
                apart = x * x + y * y + (place[2] - 2 * (x * place[0] + y * place[1])) / total;
                apart = apart < 0 ? 0 : sqrtf(apart);
            }
        }
        c->entropy[at] = entropy;
        c->variance[at] = variance;
        if (distance) c->distance[at] = apart;
    }
    return within;
}

EVERY_MACHINE
static int block(const Call *c, int64_t map, int64_t first) {
    return c->distance ? rows(c, map, first, 1) : rows(c, map, first, 0);
}

/* Mean of values - from, or of its square. */
INLINE float mean(const float *values, int64_t count, float from, int squared) {
    floats total = {0};
    float rest = 0;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        const floats v = load(values + i) - from;
        if (squared)
            total += v * v;
        else
            total += v;
    }
    for (; i < count; i++) rest += squared ? (values[i] - from) * (values[i] - from) : values[i] - from;
    float four[4];
    sum_four(total, total, total, total, four);
    return (four[0] + rest) / (float)count;
}

/* Means over the rows of a map: entropy, its standard deviation, variance, distance; NaN where no key is allowed. */
EVERY_MACHINE
static void summarise(const Call *c, int64_t map) {
    const int64_t maps = c->batch * c->heads, first = map * c->queries;
    const float none = c->count[map] > 0 ? 0 : NAN, entropy = mean(c->entropy + first, c->queries, 0, 0);
    c->means[map] = entropy + none;
    c->means[maps + map] = sqrtf(mean(c->entropy + first, c->queries, entropy, 1)) + none;
    c->means[2 * maps + map] = mean(c->variance + first, c->queries, 0, 0) + none;
    if (c->distance) c->means[3 * maps + map] = mean(c->distance + first, c->queries, 0, 0) + none;
}

/* Shares the scratch out, and fills what all maps share: the places of the keys, and their bias where none is given. */
static void prepare(Call *c) {
    const int64_t padded = (c->keys + TILE - 1) / TILE * TILE;
    c->padded = c->bias_stride = padded;
    c->places = c->scratch;
    c->count = c->scratch + 5 * padded;
    c->packed = c->count + c->batch * c->heads;
    if (!c->bias) {
        float *bias = c->scratch + 3 * padded, *weight = bias + padded;
        for (int64_t j = 0; j < padded; j++) {
            bias[j] = j < c->keys ? 0 : BARRED;
            weight[j] = j < c->keys;
        }
        c->bias = bias, c->weight = weight, c->bias_stride = 0;
    }
    for (int64_t j = 0; c->there && j < padded; j++) {
        const float x = j < c->keys ? c->there[2 * j] : 0, y = j < c->keys ? c->there[2 * j + 1] : 0;
        c->places[j] = x, c->places[padded + j] = y, c->places[2 * padded + j] = x * x + y * y;
    }
}

static PyObject *statistics(PyObject *Py_UNUSED(self), PyObject *args) {
    Call c;
    unsigned long long p[11];
    int threads;
    if (!PyArg_ParseTuple(args, "(KKKKKKKKKKK)(LLLLL)(LLL)(LLL)ffi", p, p + 1, p + 2, p + 3, p + 4, p + 5, p + 6, p + 7,
                          p + 8, p + 9, p + 10, &c.batch, &c.heads, &c.queries, &c.keys, &c.width, c.query_strides,
                          c.query_strides + 1, c.query_strides + 2, c.key_strides, c.key_strides + 1,
                          c.key_strides + 2, &c.scale, &c.limit, &threads))
        return NULL;
    const float **in[] = {&c.query, &c.key, &c.bias, &c.weight, &c.here, &c.there};
    float **out[] = {&c.scratch, &c.entropy, &c.variance, &c.distance, &c.means};
    for (int i = 0; i < 6; i++) *in[i] = (const float *)(uintptr_t)p[i];
    for (int i = 0; i < 5; i++) *out[i] = (float *)(uintptr_t)p[6 + i];
    const int64_t maps = c.batch * c.heads, blocks = (c.queries + BLOCK - 1) / BLOCK;
    int within = 1;
    Py_BEGIN_ALLOW_THREADS
    prepare(&c);
#pragma omp parallel num_threads(threads) reduction(& : within)
    {
#pragma omp for schedule(dynamic)
        for (int64_t map = 0; map < maps; map++) pack(&c, map);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < maps * blocks; task++)
            within &= block(&c, task / blocks, task % blocks * BLOCK);
#pragma omp for
        for (int64_t map = 0; map < maps; map++) summarise(&c, map);
    }
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(within);
}

static PyMethodDef methods[] = {{"statistics", statistics, METH_VARARGS, "See cpu.py."}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cpu", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__cpu(void) {
    PyObject *made = PyModule_Create(&module);
    if (made && (PyModule_AddIntConstant(made, "TILE", TILE) ||
                 PyModule_AddObject(made, "BARRED", PyFloat_FromDouble(BARRED))))
        Py_CLEAR(made);
    return made;
}
