/* Runs an exported model in ONNX Runtime from C: greedy decoding with a KV cache.

     generate_c FOLDER NEW_TOKENS [END_TOKEN ...] < prompts > answers

   FOLDER is one exported model. Each line of the input is a prompt as token ids, each line of the
   output is its answer as token ids. FOLDER/tokenizer.json turns text into ids, for instance with
   the package tokenizers, which has bindings for C. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "onnxruntime_c_api.h"

enum { API_VERSION = 18, MAX_VALUES = 1024, MAX_RANK = 8, MAX_TOKENS = 1 << 20 };

static const OrtApi* ort;
static OrtAllocator* memory;

static void check(OrtStatus* status) {
  if (status == NULL) return;
  fprintf(stderr, "%s\n", ort->GetErrorMessage(status));
  exit(1);
}

/* A part of the cache at the start of a text: keys, values, or a state of fixed size. */
typedef struct {
  ONNXTensorElementDataType dtype;
  size_t rank, bytes;
  int64_t shape[MAX_RANK];
} Empty;

/* An exported model. Its inputs are the ids, the mask and the cache, its outputs the logits and the
   cache. */
typedef struct {
  OrtSession* session;
  size_t count;
  char* inputs[MAX_VALUES];
  char* outputs[MAX_VALUES];
  Empty cache[MAX_VALUES];
} Model;

#if defined(_WIN32)
#define LIBRARY "moe_export_ops.dll"
#elif defined(__APPLE__)
#define LIBRARY "libmoe_export_ops.dylib"
#else
#define LIBRARY "libmoe_export_ops.so"
#endif

enum { MAX_PATH_BYTES = 4096 };

/* A path as ONNX Runtime takes it. */
static const ORTCHAR_T* native(const char* path) {
#ifdef _WIN32
  static wchar_t wide[MAX_PATH_BYTES];
  mbstowcs(wide, path, MAX_PATH_BYTES);
  return wide;
#else
  return path;
#endif
}

static int exists(const char* path) {
  FILE* file = fopen(path, "rb");
  if (file == NULL) return 0;
  fclose(file);
  return 1;
}

/* Reads type and shape of an input of the cache. Axes without a size are the batch and, for keys
   and values, the tokens so far, of which there are none. */
static void read_empty(const Model* model, size_t input, Empty* empty) {
  OrtTypeInfo* type;
  const OrtTensorTypeAndShapeInfo* info;
  check(ort->SessionGetInputTypeInfo(model->session, input, &type));
  check(ort->CastTypeInfoToTensorInfo(type, &info));
  check(ort->GetTensorElementType(info, &empty->dtype));
  check(ort->GetDimensionsCount(info, &empty->rank));
  if (empty->rank > MAX_RANK) {
    fprintf(stderr, "%s has more than %d axes\n", model->inputs[input], MAX_RANK);
    exit(1);
  }
  check(ort->GetDimensions(info, empty->shape, empty->rank));
  ort->ReleaseTypeInfo(type);
  empty->bytes = empty->dtype == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT ? 4 : 2;
  empty->shape[0] = 1;
  for (size_t i = 1; i < empty->rank; i++) {
    if (empty->shape[i] < 0) empty->shape[i] = 0;
    empty->bytes *= (size_t)empty->shape[i];
  }
}

static void open_model(Model* model, const OrtEnv* env, const char* folder) {
  OrtSessionOptions* options;
  char path[MAX_PATH_BYTES];
  check(ort->CreateSessionOptions(&options));
  snprintf(path, sizeof path, "%s/" LIBRARY, folder);
  /* Faster with the library; without it the same answers come from standard operators. */
  if (exists(path)) check(ort->RegisterCustomOpsLibrary_V2(options, native(path)));
  snprintf(path, sizeof path, "%s/model.onnx", folder);
  check(ort->CreateSession(env, native(path), options, &model->session));
  ort->ReleaseSessionOptions(options);
  check(ort->SessionGetInputCount(model->session, &model->count));
  if (model->count > MAX_VALUES) {
    fprintf(stderr, "%s has %zu inputs, more than %d; raise MAX_VALUES\n", path, model->count,
            MAX_VALUES);
    exit(1);
  }
  for (size_t i = 0; i < model->count; i++)
    check(ort->SessionGetInputName(model->session, i, memory, &model->inputs[i]));
  for (size_t i = 0; i + 1 < model->count; i++)
    check(ort->SessionGetOutputName(model->session, i, memory, &model->outputs[i]));
  for (size_t i = 2; i < model->count; i++) read_empty(model, i, &model->cache[i - 2]);
}

static OrtValue* tensor_of_zeros(const Empty* empty) {
  OrtValue* value;
  void* data;
  check(ort->CreateTensorAsOrtValue(memory, empty->shape, empty->rank, empty->dtype, &value));
  check(ort->GetTensorMutableData(value, &data));
  if (empty->bytes) memset(data, 0, empty->bytes);
  return value;
}

static OrtValue* tensor_of_ids(const int64_t* ids, int64_t count) {
  OrtValue* value;
  void* data;
  const int64_t shape[2] = {1, count};
  check(ort->CreateTensorAsOrtValue(memory, shape, 2, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, &value));
  check(ort->GetTensorMutableData(value, &data));
  memcpy(data, ids, (size_t)count * sizeof *ids);
  return value;
}

/* Integer that orders float16 numbers as their values do. */
static int order_of_half(uint16_t bits) { return bits & 0x8000 ? -(bits & 0x7fff) : bits; }

/* Token with the largest logit after the last position. */
static int64_t best_token(OrtValue* logits) {
  OrtTensorTypeAndShapeInfo* info;
  ONNXTensorElementDataType dtype;
  int64_t shape[3]; /* batch, tokens, vocabulary */
  void* data;
  check(ort->GetTensorTypeAndShape(logits, &info));
  check(ort->GetDimensions(info, shape, 3));
  check(ort->GetTensorElementType(info, &dtype));
  ort->ReleaseTensorTypeAndShapeInfo(info);
  check(ort->GetTensorMutableData(logits, &data));
  const int64_t first = (shape[1] - 1) * shape[2];
  const float* floats = (const float*)data + first;
  const uint16_t* halves = (const uint16_t*)data + first;
  int64_t best = 0;
  for (int64_t i = 1; i < shape[2]; i++) {
    const int larger = dtype == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
                           ? floats[i] > floats[best]
                           : order_of_half(halves[i]) > order_of_half(halves[best]);
    if (larger) best = i;
  }
  return best;
}

/* One step: new ids in, cache replaced, most likely next token out. */
static int64_t step(const Model* model, const int64_t* ids, int64_t count, int64_t length,
                    const int64_t* ones, OrtValue** cache) {
  OrtValue* inputs[MAX_VALUES] = {tensor_of_ids(ids, count), tensor_of_ids(ones, length)};
  OrtValue* outputs[MAX_VALUES] = {NULL};
  const size_t cached = model->count - 2;
  memcpy(inputs + 2, cache, cached * sizeof *cache);
  check(ort->Run(model->session, NULL, (const char* const*)model->inputs,
                 (const OrtValue* const*)inputs, model->count, (const char* const*)model->outputs,
                 model->count - 1, outputs));
  const int64_t token = best_token(outputs[0]);
  ort->ReleaseValue(outputs[0]);
  for (size_t i = 0; i < model->count; i++) ort->ReleaseValue(inputs[i]);
  memcpy(cache, outputs + 1, cached * sizeof *cache);
  return token;
}

static void answer(const Model* model, const int64_t* prompt, int64_t length, int64_t new_tokens,
                   const int64_t* ends, int end_count, const int64_t* ones) {
  OrtValue* cache[MAX_VALUES];
  for (size_t i = 0; i + 2 < model->count; i++) cache[i] = tensor_of_zeros(&model->cache[i]);
  const int64_t* ids = prompt;
  int64_t count = length, token, ended = 0;
  for (int64_t made = 0; made < new_tokens && !ended; made++) {
    token = step(model, ids, count, length + made, ones, cache);
    printf("%s%lld", made ? " " : "", (long long)token);
    for (int i = 0; i < end_count; i++) ended |= token == ends[i];
    ids = &token;
    count = 1;
  }
  printf("\n");
  for (size_t i = 0; i + 2 < model->count; i++) ort->ReleaseValue(cache[i]);
}

/* Reads the numbers of a line; returns their count, or -1 at the end of the input. */
static int64_t read_prompt(int64_t* ids) {
  static char line[1 << 20];
  if (fgets(line, sizeof line, stdin) == NULL) return -1;
  int64_t count = 0;
  for (char *at = line, *next; count < MAX_TOKENS; at = next) {
    ids[count] = strtoll(at, &next, 10);
    if (next == at) break;
    count++;
  }
  return count;
}

int main(int argc, char** argv) {
  static int64_t ids[MAX_TOKENS], ones[MAX_TOKENS], ends[64];
  static Model model;
  if (argc < 3 || argc > 67) {
    fprintf(stderr, "usage: generate_c FOLDER NEW_TOKENS [END_TOKEN ...] < prompts\n");
    return 2;
  }
  ort = OrtGetApiBase()->GetApi(API_VERSION);
  if (ort == NULL) {
    fprintf(stderr, "ONNX Runtime 1.18 or newer is needed\n");
    return 1;
  }
  OrtEnv* env;
  /* A warning would tell of the input logits_from, which has a default. */
  check(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "generate_c", &env));
  check(ort->GetAllocatorWithDefaultOptions(&memory));
  open_model(&model, env, argv[1]);
  for (int i = 3; i < argc; i++) ends[i - 3] = atoll(argv[i]);
  for (int i = 0; i < MAX_TOKENS; i++) ones[i] = 1;
  for (int64_t count; (count = read_prompt(ids)) >= 0;)
    if (count) answer(&model, ids, count, atoll(argv[2]), ends, argc - 3, ones);
  for (size_t i = 0; i < model.count; i++) check(ort->AllocatorFree(memory, model.inputs[i]));
  for (size_t i = 0; i + 1 < model.count; i++) check(ort->AllocatorFree(memory, model.outputs[i]));
  ort->ReleaseSession(model.session);
  ort->ReleaseEnv(env);
  return 0;
}
