// One execution of a layer on a device.
#pragma once

#include "cuda/device_layer.h"

namespace moe_export::cuda {

// An allocator of device memory; the stream may use a block until `release`.
struct Scratch {
  void* (*allocate)(void* owner, size_t bytes);
  void (*release)(void* owner, void* memory);
  void* owner;
};

// Refusal of a call with input_scale or hidden_scale.
constexpr const char* kNoScales =
    "the inputs input_scale and hidden_scale are not known to the CUDA kernels; run the model on "
    "the CPU, or on the GPU without the library";

// Enqueues a call whose shapes passed the check, with all data on the device. Waits for nothing and
// reads nothing from the device, so the launches can be captured into a graph. Throws Error.
void run(const DeviceLayer& layer, const MoeCall& call, Stream stream, const Scratch& scratch);

}  // namespace moe_export::cuda
