// CUDA's driver, NVRTC and cuBLASLt in so far as flanc calls them, over the simulator: a "GPU" whose memory is the
// host's. Tests put this library under the names of those three, and run the program on it.
//
// Whatever is asked for waits in its stream's queue until somebody waits for it, which is when it could happen at the
// latest: memory of the host that is given up or written too early shows in the results, and so does an order between
// streams that nobody has seen to. With FLANC_SIMULATED_STREAMS=early all streams but the first do what they are asked for
// at once, as far as events allow it: the other extreme. FLANC_SIMULATED_MISTAKE=no-order lets no stream wait for an event.
//
// A stream that is captured does nothing; a graph keeps its tasks with the arguments they had. What CUDA refuses while the
// thread captures is refused, and spoils the capture. What a kernel does wrong is reported where it runs; every call
// fails from then on. With FLANC_SIMULATED_FAILURE=FUNCTION:NUMBER:ERROR, that call of a function fails, `kernel` where it
// runs; and after it, if the error is one that CUDA does not recover from, every call. With FLANC_SIMULATED_COUNTS it says in the
// end how many graphs there were, and with FLANC_SIMULATED_COUNTS=calls how often each function was called that can be
// made to fail. Kernels are found by name alone; their code is whatever NVRTC was given.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

extern "C" int flanc_simulator_launch(const char* name, const unsigned grid[3], const unsigned block[3], size_t shared,
                                      void** arguments, unsigned seed, char* report, size_t report_bytes);
extern "C" size_t flanc_simulator_arguments(const char* name, size_t sizes[64]);

#define API extern "C" __attribute__((visibility("default")))

namespace {

enum {
  OK = 0,
  INVALID = 1,
  OUT_OF_MEMORY = 2,
  NO_CONTEXT = 201,
  LAUNCH_FAILED = 719,
  CAPTURE_UNSUPPORTED = 900,
  CAPTURE_INVALIDATED = 901
};

struct Record;
struct Task {
  std::function<void()> work;
  std::shared_ptr<Record> waits_for;  // first, if there is one
};
typedef std::vector<Task> Graph;
struct Stream {
  std::deque<Task> queue;
  std::unique_ptr<Graph> captured;  // while it is
  bool spoilt = false;
};
// A place in a stream's queue, and whether the stream has come there: what an event stands for since it was recorded.
struct Record {
  Stream* stream;
  bool done;
};
struct Event {
  std::shared_ptr<Record> last;  // none before it is recorded
};

// Of the process: the driver is told on every thread which context it is about, and does nothing before.
thread_local bool current = false;
size_t taken = 0;
constexpr size_t MEMORY = size_t(4) << 30;
constexpr size_t MARGIN = 256;
std::vector<Stream*> streams;
std::map<const char*, size_t> pinned;  // memory of the host, by its first byte
int broken = OK;                       // what every call says once a kernel has failed
struct Counts {
  int graphs = 0, launches = 0;
  std::map<std::string, int> calls;
  ~Counts() {
    const char* wanted = getenv("FLANC_SIMULATED_COUNTS");
    if (wanted) fprintf(stderr, "%d graphs, launched %d times\n", graphs, launches);
    if (wanted && !strcmp(wanted, "calls"))
      for (auto& [function, count] : calls) fprintf(stderr, "%s called %d times\n", function.c_str(), count);
  }
} counts;

// The error that this call of a function is to have.
int failure(const char* function) {
  std::string call = function;
  call += ":" + std::to_string(++counts.calls[function]) + ":";
  const char* asked = getenv("FLANC_SIMULATED_FAILURE");
  if (!asked || strncmp(asked, call.c_str(), call.size())) return OK;
  int error = atoi(asked + call.size());
  if (error == LAUNCH_FAILED) broken = error;
  return error;
}
#define MAY_FAIL \
  if (int error = failure(__func__)) return error

bool is_set(const char* variable, const char* value) {
  const char* is = getenv(variable);
  return is && !strcmp(is, value);
}

void run_until(Record& record);
void run_next(Stream& stream) {
  Task task = std::move(stream.queue.front());
  stream.queue.pop_front();
  if (task.waits_for) run_until(*task.waits_for);
  if (task.work && !broken) task.work();
}
void run_until(Record& record) {
  while (!record.done && !record.stream->queue.empty()) run_next(*record.stream);
}
void run_all(Stream& stream) {
  while (!stream.queue.empty()) run_next(stream);
}
void run_everything() {
  for (Stream* stream : streams) run_all(*stream);
}
// What can be done without waiting, of streams that are early.
void run_early() {
  static const bool early = is_set("FLANC_SIMULATED_STREAMS", "early");
  if (!early) return;
  for (size_t i = 1; i < streams.size(); i++) {
    auto& queue = streams[i]->queue;
    while (!queue.empty() && !(queue.front().waits_for && !queue.front().waits_for->done)) run_next(*streams[i]);
  }
}

// A stream, if there is one that may be asked for something.
int usable(void* handle) {
  if (!current) return NO_CONTEXT;
  if (broken) return broken;
  for (Stream* stream : streams)
    if (stream == handle) return OK;
  return INVALID;
}
int later(void* handle, Task task) {
  if (int error = usable(handle)) return error;
  Stream& stream = *(Stream*)handle;
  if (stream.captured) {
    stream.captured->push_back(std::move(task));
    return OK;
  }
  stream.queue.push_back(std::move(task));
  run_early();
  return OK;
}
int later(void* handle, std::function<void()> work) { return later(handle, Task{std::move(work), nullptr}); }

// For calls that may not be made while something is captured.
int allowed() {
  if (!current) return NO_CONTEXT;
  if (broken) return broken;
  for (Stream* stream : streams)
    if (stream->captured) {
      stream->spoilt = true;
      return CAPTURE_UNSUPPORTED;
    }
  return OK;
}

bool is_pinned(const void* memory) {
  auto after = pinned.upper_bound((const char*)memory);
  if (after == pinned.begin()) return false;
  --after;
  return (const char*)memory < after->first + after->second;
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
  *text = error == OUT_OF_MEMORY         ? "out of memory"
          : error == NO_CONTEXT          ? "no context is current"
          : error == LAUNCH_FAILED       ? "unspecified launch failure"
          : error == CAPTURE_UNSUPPORTED ? "operation not permitted when stream is capturing"
          : error == CAPTURE_INVALIDATED ? "operation failed due to a previous error during capture"
                                         : "invalid value";
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
API int cuCtxSetCurrent(void* context) {
  MAY_FAIL;
  return current = context == &taken, OK;
}
API int cuMemGetInfo_v2(size_t* free, size_t* total) {
  return *free = MEMORY - taken, *total = MEMORY, current ? OK : NO_CONTEXT;
}

API int cuStreamCreate(void** stream, unsigned) {
  if (int error = allowed()) return error;
  streams.push_back(new Stream());
  return *stream = streams.back(), OK;
}
API int cuStreamSynchronize(void* stream) {
  MAY_FAIL;
  if (int error = usable(stream)) return error;
  if (((Stream*)stream)->captured) return allowed();
  run_all(*(Stream*)stream);
  return broken;
}
API int cuStreamDestroy_v2(void* stream) {
  run_all(*(Stream*)stream);
  for (size_t i = 0; i < streams.size(); i++)
    if (streams[i] == stream) streams.erase(streams.begin() + i);
  return delete (Stream*)stream, OK;
}

API int cuEventCreate(void** event, unsigned) {
  MAY_FAIL;
  return *event = new Event(), OK;
}
API int cuEventRecord(void* event, void* stream) {
  MAY_FAIL;
  if (int error = usable(stream)) return error;
  if (((Stream*)stream)->captured) return allowed();
  auto record = std::make_shared<Record>(Record{(Stream*)stream, false});
  ((Event*)event)->last = record;
  return later(stream, [=] { record->done = true; });
}
API int cuEventSynchronize(void* event) {
  MAY_FAIL;
  if (int error = allowed()) return error;
  if (auto record = ((Event*)event)->last) run_until(*record);
  return broken;
}
API int cuStreamWaitEvent(void* stream, void* event, unsigned flags) {
  MAY_FAIL;
  static const bool mistaken = is_set("FLANC_SIMULATED_MISTAKE", "no-order");
  if (flags) return INVALID;
  if (int error = usable(stream)) return error;
  if (((Stream*)stream)->captured) return allowed();  // an event of before the capture
  auto record = ((Event*)event)->last;
  return record && !mistaken ? later(stream, Task{nullptr, record}) : OK;
}
API int cuEventDestroy_v2(void* event) { return delete (Event*)event, OK; }

API int cuStreamBeginCapture_v2(void* stream, int mode) {
  MAY_FAIL;
  if (int error = allowed()) return error;
  if (mode != 1 || usable(stream)) return INVALID;  // of this thread
  ((Stream*)stream)->captured = std::make_unique<Graph>();
  ((Stream*)stream)->spoilt = false;
  return OK;
}
API int cuStreamEndCapture(void* stream, void** graph) {
  MAY_FAIL;
  if (int error = usable(stream)) return error;
  Stream& captured = *(Stream*)stream;
  *graph = captured.captured.release();
  return !*graph ? INVALID : captured.spoilt ? CAPTURE_INVALIDATED : OK;
}
API int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long flags) {
  MAY_FAIL;
  counts.graphs++;
  return *executable = new Graph(*(Graph*)graph), flags ? INVALID : OK;
}
API int cuGraphLaunch(void* executable, void* stream) {
  MAY_FAIL;
  if (int error = usable(stream)) return error;
  if (((Stream*)stream)->captured) return allowed();
  counts.launches++;
  for (const Task& task : *(Graph*)executable) later(stream, task);
  return OK;
}
API int cuGraphDestroy(void* graph) { return delete (Graph*)graph, OK; }
API int cuGraphExecDestroy(void* executable) { return delete (Graph*)executable, OK; }

API int cuMemHostAlloc(void** memory, size_t bytes, unsigned) {
  MAY_FAIL;
  if (int error = allowed()) return error;
  *memory = malloc(bytes);
  pinned[(const char*)*memory] = bytes;
  return OK;
}
API int cuMemFreeHost(void* memory) {
  run_everything();
  return pinned.erase((const char*)memory), free(memory), OK;
}
// Full of NaN, with its length before it and a margin behind it that has to be whole in the end.
API int cuMemAlloc_v2(uint64_t* memory, size_t bytes) {
  MAY_FAIL;
  if (int error = allowed()) return error;
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
  if (int error = allowed()) return error;
  run_everything();
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

// Memory that is not pinned is read before the call returns, and has been written when it does.
API int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
  MAY_FAIL;
  if (is_pinned(from)) return later(stream, [=] { memcpy((void*)to, from, bytes); });
  if (int error = allowed()) return error;
  std::string now((const char*)from, bytes);
  return later(stream, [=] { memcpy((void*)to, now.data(), bytes); });
}
API int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
  MAY_FAIL;
  if (is_pinned(to)) return later(stream, [=] { memcpy(to, (void*)from, bytes); });
  if (int error = allowed()) return error;
  if (int error = later(stream, [=] { memcpy(to, (void*)from, bytes); })) return error;
  run_all(*(Stream*)stream);
  return broken;
}
API int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) {
  MAY_FAIL;
  return later(stream, [=] { memcpy((void*)to, (void*)from, bytes); });
}
API int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void* stream) {
  MAY_FAIL;
  return later(stream, [=] { memset((void*)to, value, bytes); });
}

API int cuModuleLoadData(void** module, const void* code) {
  if (int error = allowed()) return error;
  return *module = new char(*(const char*)code), OK;
}
API int cuModuleUnload(void* module) { return delete (char*)module, OK; }
struct Function {
  std::string name;
  size_t shared = 48 << 10;
};
API int cuModuleGetFunction(void** function, void*, const char* name) {
  MAY_FAIL;
  return *function = new Function{name}, OK;
}
API int cuFuncSetAttribute(void* function, int attribute, int value) {
  MAY_FAIL;
  if (attribute != 8) return INVALID;  // the largest dynamic shared memory
  ((Function*)function)->shared = value;
  return OK;
}
API int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
                       unsigned shared, void* stream, void** arguments, void** extra) {
  MAY_FAIL;
  const Function& kernel = *(Function*)function;
  size_t sizes[64], count = flanc_simulator_arguments(kernel.name.c_str(), sizes);
  if (extra || shared > kernel.shared || count > 64) return INVALID;
  std::vector<uint64_t> words(count);
  for (size_t i = 0; i < count; i++) memcpy(&words[i], arguments[i], sizes[i]);
  return later(stream, [=, name = kernel.name]() {
    unsigned grid[3] = {x, y, z}, block[3] = {bx, by, bz};
    std::vector<uint64_t> own = words;
    std::vector<void*> pointers;
    for (uint64_t& word : own) pointers.push_back(&word);
    static char report[8192];
    if (failure("kernel")) return;
    if (flanc_simulator_launch(name.c_str(), grid, block, shared, pointers.data(), 1, report, sizeof report)) {
      fprintf(stderr, "%s\n", report);
      broken = LAUNCH_FAILED;
    }
  });
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
API int cublasLtCreate(void** handle) { return *handle = &streams, current ? OK : INVALID; }
API int cublasLtDestroy(void*) { return OK; }
API int cublasLtMatmulDescCreate(void** product, int compute, int scale) {
  MAY_FAIL;
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
  MAY_FAIL;
  if (asked < 1) return 7;
  *results = {{0x666C616E63}, *(size_t*)preference, OK, 1, {}};
  return *count = 1, OK;
}
API int cublasLtMatmul(void*, void* product, const void* alpha, const void* a, void* a_layout, const void* b,
                       void* b_layout, const void* beta, const void* c, void* c_layout, void* d, void* d_layout,
                       const uint64_t* algorithm, void* workspace, size_t workspace_bytes, void* stream) {
  MAY_FAIL;
  const Matrix left = *(Matrix*)a_layout, right = *(Matrix*)b_layout, out = *(Matrix*)d_layout;
  const Product forms = *(Product*)product;
  const int* transposed = forms.transposed;
  uint64_t m = transposed[0] ? left.columns : left.rows, k = transposed[0] ? left.rows : left.columns;
  uint64_t n = transposed[1] ? right.rows : right.columns, depth = transposed[1] ? right.columns : right.rows;
  bool fits = depth == k && out.rows == m && out.columns == n && c == d && c_layout == d_layout;
  if (!fits || *algorithm != 0x666C616E63) return 7;
  float factor = *(const float*)alpha, keep = *(const float*)beta;
  return later(stream, [=] {
    const int* transposed = forms.transposed;
    memset(workspace, 0xFF, workspace_bytes);
    for (uint64_t j = 0; j < n; j++)
      for (uint64_t i = 0; i < m; i++) {
        float sum = 0;
        for (uint64_t l = 0; l < k; l++)
          sum += number(a, left, transposed[0] ? l : i, transposed[0] ? i : l) *
                 number(b, right, transposed[1] ? j : l, transposed[1] ? l : j);
        sum *= factor;
        put(d, out, i, j, keep == 0 ? sum : sum + keep * number(d, out, i, j));
      }
  }) ? 7 : OK;
}
