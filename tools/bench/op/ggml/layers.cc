// MoE layers in Q4_0 as llama.cpp builds and runs them on a CPU: weights in the repacked buffer
// type, mul_mat_id over the chosen experts, all layers in one graph. Compiled by the benchmark.
#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

namespace {

struct Layer {
  ggml_tensor *gate, *up, *down;                       // [D, w, E], [D, w, E], [w, D, E]
  ggml_tensor *shared_gate, *shared_up, *shared_down;  // null where there is no shared expert
};

// What a call of some number of tokens needs.
struct Graph {
  ggml_context* context;
  ggml_cgraph* nodes;
  ggml_gallocr_t memory;
  ggml_tensor *x, *ids, *weights, *shared_weight;
  std::vector<ggml_tensor*> y;
};

ggml_backend_buffer_type_t repacked_buffer_type() {
  ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
  const auto extra =
      reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(ggml_backend_reg_get_proc_address(
          ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts"));
  ggml_backend_buffer_type_t* types = extra == nullptr ? nullptr : extra(device);
  for (; types != nullptr && *types != nullptr; ++types) {
    if (std::strcmp(ggml_backend_buft_name(*types), "CPU_REPACK") == 0) return *types;
  }
  return nullptr;
}

// Blocks of 32 weights: a scale of 2^-8 and any codes.
void fill(ggml_tensor* tensor, const uint8_t* codes, size_t num_codes) {
  std::vector<uint8_t> data(ggml_nbytes(tensor));
  for (size_t block = 0; block < data.size() / 18; ++block) {
    const uint16_t scale = 0x1c00;
    std::memcpy(&data[block * 18], &scale, sizeof scale);
    std::memcpy(&data[block * 18 + 2], codes + block * 16 % (num_codes - 16), 16);
  }
  ggml_backend_tensor_set(tensor, data.data(), 0, data.size());
}

struct Layers {
  int64_t hidden, experts, top_k;
  ggml_backend_t backend;
  ggml_context* context;
  ggml_backend_buffer_t buffer;
  std::vector<Layer> layers;
  std::map<int64_t, Graph> graphs;

  ggml_tensor* feed_forward(ggml_context* c, ggml_tensor* x, const Layer& layer) {
    ggml_tensor* gate = ggml_mul_mat(c, layer.shared_gate, x);
    ggml_tensor* up = ggml_mul_mat(c, layer.shared_up, x);
    return ggml_mul_mat(c, layer.shared_down, ggml_swiglu_split(c, gate, up));
  }

  ggml_tensor* layer_of(ggml_context* c, const Graph& graph, const Layer& layer, int64_t tokens) {
    ggml_tensor* x = ggml_reshape_3d(c, graph.x, hidden, 1, tokens);
    ggml_tensor* gate = ggml_mul_mat_id(c, layer.gate, x, graph.ids);
    ggml_tensor* up = ggml_mul_mat_id(c, layer.up, x, graph.ids);
    ggml_tensor* out = ggml_mul_mat_id(c, layer.down, ggml_swiglu_split(c, gate, up), graph.ids);
    out = ggml_mul(c, out, graph.weights);
    ggml_tensor* y = ggml_view_2d(c, out, hidden, tokens, out->nb[2], 0);
    for (int64_t k = 1; k < top_k; ++k) {
      const size_t offset = static_cast<size_t>(k) * out->nb[1];
      y = ggml_add(c, y, ggml_view_2d(c, out, hidden, tokens, out->nb[2], offset));
    }
    if (layer.shared_gate == nullptr) return y;
    ggml_tensor* shared = feed_forward(c, graph.x, layer);
    return ggml_add(c, y, ggml_mul(c, shared, graph.shared_weight));
  }

  Graph& graph(int64_t tokens) {
    const auto found = graphs.find(tokens);
    if (found != graphs.end()) return found->second;
    Graph& made = graphs[tokens];
    const size_t size = ggml_tensor_overhead() * 64 * layers.size() + ggml_graph_overhead();
    ggml_context* c = made.context = ggml_init({size + (1 << 20), nullptr, true});
    made.x = ggml_new_tensor_2d(c, GGML_TYPE_F32, hidden, tokens);
    made.ids = ggml_new_tensor_2d(c, GGML_TYPE_I32, top_k, tokens);
    made.weights = ggml_new_tensor_3d(c, GGML_TYPE_F32, 1, top_k, tokens);
    made.shared_weight = ggml_new_tensor_2d(c, GGML_TYPE_F32, 1, tokens);
    made.nodes = ggml_new_graph(c);
    for (ggml_tensor* input : {made.x, made.ids, made.weights, made.shared_weight}) {
      ggml_set_input(input);
    }
    for (const Layer& layer : layers) {
      made.y.push_back(layer_of(c, made, layer, tokens));
      ggml_set_output(made.y.back());
      ggml_build_forward_expand(made.nodes, made.y.back());
    }
    if (layers[0].shared_gate == nullptr) ggml_build_forward_expand(made.nodes, made.shared_weight);
    made.memory = ggml_gallocr_new(ggml_backend_cpu_buffer_type());
    ggml_gallocr_alloc_graph(made.memory, made.nodes);
    return made;
  }
};

}  // namespace

extern "C" {

// Null if ggml has no repacked buffers on this processor. No shared expert if `shared_width` is 0.
Layers* bench_ggml_create(int32_t num_layers, int64_t hidden, int64_t experts, int64_t top_k,
                          int64_t width, int64_t shared_width, int32_t threads,
                          const uint8_t* codes, size_t num_codes) {
  ggml_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  ggml_backend_buffer_type_t type = repacked_buffer_type();
  if (type == nullptr) return nullptr;
  std::unique_ptr<Layers> made(
      new Layers{hidden, experts, top_k, ggml_backend_cpu_init(), {}, {}, {}, {}});
  ggml_backend_cpu_set_n_threads(made->backend, threads);
  const size_t count = static_cast<size_t>(num_layers);
  ggml_context* c = made->context = ggml_init({ggml_tensor_overhead() * 6 * count, nullptr, true});
  const ggml_type q4 = GGML_TYPE_Q4_0;
  for (size_t i = 0; i < count; ++i) {
    Layer layer = {ggml_new_tensor_3d(c, q4, hidden, width, experts),
                   ggml_new_tensor_3d(c, q4, hidden, width, experts),
                   ggml_new_tensor_3d(c, q4, width, hidden, experts),
                   nullptr,
                   nullptr,
                   nullptr};
    if (shared_width > 0) {
      layer.shared_gate = ggml_new_tensor_2d(c, q4, hidden, shared_width);
      layer.shared_up = ggml_new_tensor_2d(c, q4, hidden, shared_width);
      layer.shared_down = ggml_new_tensor_2d(c, q4, shared_width, hidden);
    }
    made->layers.push_back(layer);
  }
  made->buffer = ggml_backend_alloc_ctx_tensors_from_buft(c, type);
  for (ggml_tensor* t = ggml_get_first_tensor(c); t != nullptr; t = ggml_get_next_tensor(c, t)) {
    fill(t, codes, num_codes);
  }
  return made.release();
}

// `ids` and `weights` are [tokens][top_k], `y` is [layers][tokens][hidden]. 0 if all is well.
int32_t bench_ggml_run(Layers* layers, int64_t tokens, const float* x, const int32_t* ids,
                       const float* weights, const float* shared_weight, float* y) {
  Graph& graph = layers->graph(tokens);
  ggml_backend_tensor_set(graph.x, x, 0, ggml_nbytes(graph.x));
  ggml_backend_tensor_set(graph.ids, ids, 0, ggml_nbytes(graph.ids));
  ggml_backend_tensor_set(graph.weights, weights, 0, ggml_nbytes(graph.weights));
  ggml_backend_tensor_set(graph.shared_weight, shared_weight, 0, ggml_nbytes(graph.shared_weight));
  const ggml_status status = ggml_backend_graph_compute(layers->backend, graph.nodes);
  for (ggml_tensor* out : graph.y) {
    ggml_backend_tensor_get(out, y, 0, ggml_nbytes(out));
    y += layers->hidden * tokens;
  }
  return status == GGML_STATUS_SUCCESS ? 0 : 1;
}

}  // extern "C"
