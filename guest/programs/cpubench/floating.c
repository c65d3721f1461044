/* Floating-point and vector programs. Written so that the compiler's choice of instructions is fixed: scalar code without
 * vectorisation, vector code by intrinsics. */
#include "bench.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

enum { N = 96 };

__attribute__((optimize("no-tree-vectorize"))) static uint64_t matmul_f64(void) {
    static double a[N][N], b[N][N], c[N][N];
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) a[i][j] = i * 0.5 + j, b[i][j] = i - j * 0.25, c[i][j] = 0;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            double sum = 0;
            for (int k = 0; k < N; k++) sum += a[i][k] * b[k][j];
            c[i][j] = sum;
        }
    uint64_t sum = 0, bits;
    for (int i = 0; i < N; i++) {
        memcpy(&bits, &c[i][N - 1 - i], 8);
        sum = mix(sum, bits);
    }
    return sum;
}

static uint64_t matmul_sse(void) {
    static float a[N][N], b[N][N], c[N][N] __attribute__((aligned(16)));
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) a[i][j] = (float)(i + j), b[i][j] = (float)(i - j);
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j += 4) {
            __m128 sum = _mm_setzero_ps();
            for (int k = 0; k < N; k++) sum = _mm_add_ps(sum, _mm_mul_ps(_mm_set1_ps(a[i][k]), _mm_loadu_ps(&b[k][j])));
            _mm_storeu_ps(&c[i][j], sum);
        }
    uint64_t sum = 0;
    for (int i = 0; i < N; i++) sum = mix(sum, (uint64_t)(int64_t)c[i][N - 1 - i]);
    return sum;
}

static int has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

__attribute__((target("avx2,fma"))) static uint64_t matmul_avx2(void) {
    static float a[N][N], b[N][N], c[N][N] __attribute__((aligned(32)));
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) a[i][j] = (float)(i + j), b[i][j] = (float)(i - j);
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j += 8) {
            __m256 sum = _mm256_setzero_ps();
            for (int k = 0; k < N; k++) sum = _mm256_fmadd_ps(_mm256_set1_ps(a[i][k]), _mm256_loadu_ps(&b[k][j]), sum);
            _mm256_storeu_ps(&c[i][j], sum);
        }
    uint64_t sum = 0;
    for (int i = 0; i < N; i++) sum = mix(sum, (uint64_t)(int64_t)c[i][N - 1 - i]);
    return sum;
}

static uint64_t integer_sse(void) {
    __m128i a = _mm_set_epi32(1, 2, 3, 4), b = _mm_set_epi32(5, 6, 7, 8);
    for (int i = 0; i < 300000; i++) {
        a = _mm_add_epi32(a, _mm_slli_epi32(b, 3));
        b = _mm_xor_si128(b, _mm_shuffle_epi32(a, 0x1b));
        a = _mm_sub_epi16(a, _mm_unpacklo_epi8(b, a));
        b = _mm_madd_epi16(b, a);
    }
    uint64_t out[2];
    _mm_storeu_si128((__m128i *)out, _mm_xor_si128(a, b));
    return mix(out[0], out[1]);
}

static uint64_t x87(void) {
    long double x = 1.0L, sum = 0;
    for (int i = 1; i <= 100000; i++) {
        x = x * 1.000001L + 1.0L / i;
        sum += __builtin_sqrtl(x);
    }
    double rounded = (double)sum;
    uint64_t bits;
    memcpy(&bits, &rounded, 8);
    return bits;
}

__attribute__((optimize("no-tree-vectorize"))) static uint64_t mandelbrot(void) {
    uint64_t total = 0;
    for (int y = 0; y < 64; y++)
        for (int x = 0; x < 64; x++) {
            double cr = x / 32.0 - 1.5, ci = y / 32.0 - 1.0, zr = 0, zi = 0;
            int n = 0;
            while (n < 200 && zr * zr + zi * zi < 4) {
                double t = zr * zr - zi * zi + cr;
                zi = 2 * zr * zi + ci;
                zr = t;
                n++;
            }
            total = mix(total, (uint64_t)n);
        }
    return total;
}

static uint64_t math_library(void) {
    double sum = 0;
    for (int i = 1; i < 50000; i++) sum += sin(i * 0.001) * exp(-i * 0.0001) + log(i) * 0.5;
    /* The C library chooses its variant by CPUID; their last bits differ. */
    return (uint64_t)(int64_t)(sum * 1000);
}

const struct program floating_programs[] = {
    {"matmul-f64-scalar", matmul_f64, 0, 0},
    {"matmul-f32-sse", matmul_sse, 0, 0},
    {"matmul-f32-avx2", matmul_avx2, 0, has_avx2},
    {"integer-sse", integer_sse, 0, 0},
    {"x87", x87, 0, 0},
    {"mandelbrot", mandelbrot, 0, 0},
    {"libm", math_library, 0, 0},
    {0, 0, 0, 0},
};
