// CUDA's driver, NVRTC and cuBLASLt in so far as flanc calls them, over the simulator: a "GPU" whose memory is the
// host's. Tests put this library under the names of those three, and run the program on it.
//
// Copies, clearing and events wait in a queue until somebody waits for them or a kernel is launched, which is when they
// could happen at the latest: memory of the host that is given up or written too early shows in the results. Kernels are
// found by name alone; their code is whatever NVRTC was given.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

extern "C" int flanc_simulator_launch(const char* name, const unsigned grid[3], const unsigned block[3], size_t shared,
                                      void** arguments, unsigned seed, char* report, size_t report_bytes);

#define API extern "C" __attribute__((visibility("default")))

namespace {

std::vector<std::function<void()>> queue;
// Of the process: the driver is told on every thread which context it is about, and does nothing before.
thread_local bool current = false;
size_t taken = 0;
constexpr size_t MEMORY = size_t(4) << 30;
constexpr size_t MARGIN = 256;

enum { OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, NO_CONTEXT = 201 };

void work() {
  for (auto& task : queue) task();
  queue.clear();
}

int later(std::function<void()> task) {
  if (!current) return NO_CONTEXT;
  queue.push_back(std::move(task));
  return OK;
}

struct Matrix {
  int type;  // 14: bf16, 0: f32
  uint64_t rows, columns;
  int64_t step;  // from one column to the next
};

struct Product {
  int transposed[2] = {0, 0};
};

float number(const void* at, const Matrix& m, uint64_t row, uint64_t column) {
  size_t i = row + column * m.step;
  if (m.type == 0) return ((const float*)at)[i];
  uint32_t bits = uint32_t(((const uint16_t*)at)[i]) << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

void put(void* at, const Matrix& m, uint64_t row, uint64_t column, float f) {
  size_t i = row + column * m.step;
  if (m.type == 0) {
    ((float*)at)[i] = f;
    return;
  }
  uint32_t bits;
  memcpy(&bits, &f, 4);
  ((uint16_t*)at)[i] = uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

}  // namespace

// ---- The driver

API int cuInit(unsigned) { return OK; }
API int cuDriverGetVersion(int* version) { return *version = 13000, OK; }
API int cuGetErrorString(int error, const char** text) {
  *text = error == OUT_OF_MEMORY ? "out of memory" : error == NO_CONTEXT ? "no context is current" : "invalid value";
  return OK;
}
API int cuDeviceGetCount(int* count) { return *count = 1, OK; }
API int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, ordinal == 0 ? OK : INVALID; }
API int cuDeviceGetName(char* name, int length, int) { return snprintf(name, length, "a simulated GPU"), OK; }
API int cuDeviceGetAttribute(int* value, int attribute, int) {
  const char* older = getenv("FLANC_SIMULATED_CAPABILITY");
  if (attribute == 75) return *value = older ? atoi(older) : 9, OK;  // compute capability
  if (attribute == 76) return *value = 0, OK;
  if (attribute == 16) return *value = 132, OK;  // multiprocessors
  return INVALID;
}
API int cuDevicePrimaryCtxRetain(void** context, int) { return *context = &taken, OK; }
API int cuDevicePrimaryCtxRelease_v2(int) { return OK; }
API int cuCtxSetCurrent(void* context) { return current = context == &taken, OK; }
API int cuMemGetInfo_v2(size_t* free, size_t* total) {
  return *free = MEMORY - taken, *total = MEMORY, current ? OK : NO_CONTEXT;
}

API int cuStreamCreate(void** stream, unsigned) { return *stream = &queue, current ? OK : NO_CONTEXT; }
API int cuStreamSynchronize(void* stream) {
  if (!current || stream != &queue) return INVALID;
  work();
  return OK;
}
API int cuStreamDestroy_v2(void*) { return OK; }

// An event is a flag that says whether it has come.
API int cuEventCreate(void** event, unsigned) { return *event = new bool(true), OK; }
API int cuEventRecord(void* event, void*) {
  *(bool*)event = false;
  return later([=] { *(bool*)event = true; });
}
API int cuEventSynchronize(void* event) {
  if (!*(bool*)event) work();
  return OK;
}
API int cuEventDestroy_v2(void* event) { return delete (bool*)event, OK; }

API int cuMemHostAlloc(void** memory, size_t bytes, unsigned) { return *memory = malloc(bytes), OK; }
API int cuMemFreeHost(void* memory) { return free(memory), OK; }
// Full of NaN, with its length before it and a margin behind it that has to be whole in the end.
API int cuMemAlloc_v2(uint64_t* memory, size_t bytes) {
  if (!current) return NO_CONTEXT;
  if (bytes > MEMORY - taken) return OUT_OF_MEMORY;
  size_t all = (bytes + 2 * MARGIN + 255) / 256 * 256;
  char* block = (char*)aligned_alloc(256, all);
  memset(block, 0xFF, all);
  *(size_t*)block = bytes;
  taken += bytes;
  *memory = (uint64_t)(block + MARGIN);
  return OK;
}
API int cuMemFree_v2(uint64_t memory) {
  work();
  char* block = (char*)memory - MARGIN;
  size_t bytes = *(size_t*)block;
  for (size_t i = 0; i < MARGIN; i++)
    if (block[MARGIN + bytes + i] != (char)0xFF) {
      fprintf(stderr, "the margin behind the GPU's memory is written to\n");
      abort();
    }
  taken -= bytes;
  free(block);
  return OK;
}

API int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void*) {
  return later([=] { memcpy((void*)to, from, bytes); });
}
API int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void*) {
  return later([=] { memcpy(to, (void*)from, bytes); });
}
API int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void*) {
  return later([=] { memcpy((void*)to, (void*)from, bytes); });
}
API int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void*) {
  return later([=] { memset((void*)to, value, bytes); });
}

API int cuModuleLoadData(void** module, const void* code) { return *module = new char(*(const char*)code), OK; }
API int cuModuleUnload(void* module) { return delete (char*)module, OK; }
struct Function {
  std::string name;
  size_t shared = 48 << 10;
};
API int cuModuleGetFunction(void** function, void*, const char* name) { return *function = new Function{name}, OK; }
API int cuFuncSetAttribute(void* function, int attribute, int value) {
  if (attribute != 8) return INVALID;  // the largest dynamic shared memory
  ((Function*)function)->shared = value;
  return OK;
}
API int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
                       unsigned shared, void* stream, void** arguments, void** extra) {
  const Function& kernel = *(Function*)function;
  if (!current || stream != &queue || extra || shared > kernel.shared) return INVALID;
  work();
  unsigned grid[3] = {x, y, z}, block[3] = {bx, by, bz};
  static char report[8192];
  if (flanc_simulator_launch(kernel.name.c_str(), grid, block, shared, arguments, 1, report, sizeof report)) {
    fprintf(stderr, "%s\n", report);
    return INVALID;
  }
  return OK;
}

// ---- NVRTC

API int nvrtcVersion(int* major, int* minor) { return *major = 13, *minor = 0, OK; }
API int nvrtcCreateProgram(void** program, const char* source, const char*, int, const char**, const char**) {
  return *program = new std::string(source), OK;
}
API int nvrtcCompileProgram(void*, int, const char* const*) { return OK; }
API int nvrtcGetCUBINSize(void* program, size_t* bytes) { return *bytes = ((std::string*)program)->size() + 1, OK; }
API int nvrtcGetCUBIN(void* program, char* code) {
  const std::string& source = *(std::string*)program;
  memcpy(code, source.c_str(), source.size() + 1);
  return OK;
}
API int nvrtcDestroyProgram(void** program) { return delete (std::string*)*program, OK; }

// ---- cuBLASLt: matrices lie by columns

API size_t cublasLtGetVersion() { return 130000; }
API int cublasLtCreate(void** handle) { return *handle = &queue, current ? OK : INVALID; }
API int cublasLtDestroy(void*) { return OK; }
API int cublasLtMatmulDescCreate(void** product, int compute, int scale) {
  if (compute != 68 || scale != 0) return 7;  // sums in f32, factors in f32
  return *product = new Product(), OK;
}
API int cublasLtMatmulDescSetAttribute(void* product, int attribute, const void* value, size_t bytes) {
  if ((attribute != 3 && attribute != 4) || bytes != 4) return 7;
  memcpy(&((Product*)product)->transposed[attribute - 3], value, 4);
  return OK;
}
API int cublasLtMatmulDescDestroy(void* product) { return delete (Product*)product, OK; }
API int cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t columns, int64_t step) {
  if (step < (int64_t)rows) return 7;
  return *layout = new Matrix{type, rows, columns, step}, OK;
}
API int cublasLtMatrixLayoutDestroy(void* layout) { return delete (Matrix*)layout, OK; }
API int cublasLtMatmulPreferenceCreate(void** preference) { return *preference = new size_t(0), OK; }
API int cublasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* value, size_t bytes) {
  if (attribute != 1 || bytes != 8) return 7;  // bytes of workspace
  memcpy(preference, value, 8);
  return OK;
}
API int cublasLtMatmulPreferenceDestroy(void* preference) { return delete (size_t*)preference, OK; }
struct Heuristic {
  uint64_t algorithm[8];
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};
API int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void* preference, int asked,
                                       Heuristic* results, int* count) {
  if (asked < 1) return 7;
  *results = {{0x666C616E63}, *(size_t*)preference, OK, 1, {}};
  return *count = 1, OK;
}
API int cublasLtMatmul(void*, void* product, const void* alpha, const void* a, void* a_layout, const void* b,
                       void* b_layout, const void* beta, const void* c, void* c_layout, void* d, void* d_layout,
                       const uint64_t* algorithm, void* workspace, size_t workspace_bytes, void* stream) {
  const Matrix &left = *(Matrix*)a_layout, &right = *(Matrix*)b_layout, &out = *(Matrix*)d_layout;
  const int* transposed = ((Product*)product)->transposed;
  uint64_t m = transposed[0] ? left.columns : left.rows, k = transposed[0] ? left.rows : left.columns;
  uint64_t n = transposed[1] ? right.rows : right.columns, depth = transposed[1] ? right.columns : right.rows;
  bool fits = depth == k && out.rows == m && out.columns == n && c == d && c_layout == d_layout;
  if (!fits || !current || stream != &queue || *algorithm != 0x666C616E63) return 7;
  work();
  memset(workspace, 0xFF, workspace_bytes);
  float factor = *(const float*)alpha, keep = *(const float*)beta;
  for (uint64_t j = 0; j < n; j++)
    for (uint64_t i = 0; i < m; i++) {
      float sum = 0;
      for (uint64_t l = 0; l < k; l++)
        sum += number(a, left, transposed[0] ? l : i, transposed[0] ? i : l) *
               number(b, right, transposed[1] ? j : l, transposed[1] ? l : j);
      sum *= factor;
      put(d, out, i, j, keep == 0 ? sum : sum + keep * number(d, out, i, j));
    }
  return OK;
}
