/* SPDX-License-Identifier: BSD-3-Clause */
/* recollect._cpu: which x86-64 levels of the System V psABI this processor can run.
 *
 * Plain C for the lowest level, because it runs before anything is known about the CPU. A level
 * counts only when the operating system saves the registers that it needs (XCR0), and only on top
 * of the level below it. */
#include <Python.h>

#if defined(__x86_64__) || defined(_M_X64)

#include <stdint.h>

#if defined(_MSC_VER)
#include <immintrin.h>
#include <intrin.h>

static int cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4]) {
  __cpuid((int*)out, (int)(leaf & 0x80000000u));
  if (out[0] < leaf) return 0;
  __cpuidex((int*)out, (int)leaf, (int)subleaf);
  return 1;
}

static uint64_t xcr0(void) { return _xgetbv(0); }
#else
#include <cpuid.h>

static int cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4]) {
  return __get_cpuid_count(leaf, subleaf, &out[0], &out[1], &out[2], &out[3]);
}

/* As an instruction, because the intrinsic needs -mxsave, which would let the compiler use it anywhere. */
static uint64_t xcr0(void) {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return ((uint64_t)high << 32) | low;
}
#endif

enum { EAX, EBX, ECX, EDX };
enum { LEAF_1, LEAF_7, LEAF_80000001, LEAVES };

/* Features by level, one mask for each cpuid register that holds any; a mask of 0 ends the list. */
struct need {
  int leaf, reg;
  uint32_t mask;
};

static const struct need v2[] = {
    /* SSE3, SSSE3, CMPXCHG16B, SSE4.1, SSE4.2, POPCNT */
    {LEAF_1, ECX, 1u << 0 | 1u << 9 | 1u << 13 | 1u << 19 | 1u << 20 | 1u << 23},
    {LEAF_80000001, ECX, 1u << 0}, /* LAHF */
    {0, 0, 0},
};
static const struct need v3[] = {
    /* FMA, MOVBE, OSXSAVE, AVX, F16C */
    {LEAF_1, ECX, 1u << 12 | 1u << 22 | 1u << 27 | 1u << 28 | 1u << 29},
    {LEAF_7, EBX, 1u << 3 | 1u << 5 | 1u << 8}, /* BMI1, AVX2, BMI2 */
    {LEAF_80000001, ECX, 1u << 5},              /* LZCNT */
    {0, 0, 0},
};
static const struct need v4[] = {
    /* AVX512: F, DQ, CD, BW, VL */
    {LEAF_7, EBX, 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31},
    {0, 0, 0},
};

/* XCR0: the SSE and AVX state; these and the three parts of the AVX-512 state. */
enum { YMM_STATE = 0x06, ZMM_STATE = 0xE6 };

static int has_all(uint32_t cpu[LEAVES][4], const struct need* need) {
  for (; need->mask != 0; ++need)
    if ((cpu[need->leaf][need->reg] & need->mask) != need->mask) return 0;
  return 1;
}

/* xcr0 only after v3's OSXSAVE bit: without it the instruction is illegal. */
static int level_count(void) {
  uint32_t cpu[LEAVES][4] = {{0}};
  if (!cpuid(1, 0, cpu[LEAF_1]) || !cpuid(0x80000001u, 0, cpu[LEAF_80000001])) return 0;
  if (!cpuid(7, 0, cpu[LEAF_7])) cpu[LEAF_7][EBX] = 0;
  if (!has_all(cpu, v2)) return 0;
  if (!has_all(cpu, v3) || (xcr0() & YMM_STATE) != YMM_STATE) return 1;
  if (!has_all(cpu, v4) || (xcr0() & ZMM_STATE) != ZMM_STATE) return 2;
  return 3;
}

static const char* const names[] = {"v2", "v3", "v4"};

#else

static int level_count(void) { return 1; }
static const char* const names[] = {"base"};

#endif

static PyObject* levels(PyObject* self, PyObject* unused) {
  (void)self, (void)unused;
  int n = level_count();
  PyObject* result = PyTuple_New(n);
  for (int i = 0; result != NULL && i < n; ++i) {
    PyObject* name = PyUnicode_FromString(names[i]);
    if (name == NULL || PyTuple_SetItem(result, i, name) != 0) Py_CLEAR(result);
  }
  return result;
}

static PyMethodDef methods[] = {
    {"levels", levels, METH_NOARGS, "levels() -> tuple of str: the instruction-set levels usable here, lowest first."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_cpu",
    .m_doc = "Reads the processor's instruction-set level.",
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__cpu(void) { return PyModuleDef_Init(&module); }
