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

// Refuses factors per token where x is not float16, for which no kernel is packaged. Factors of up
// come with those of input_scale.
Refusal check_factors(int32_t x_type, bool has_input_scale, bool has_hidden_scale);

// Enqueues a call whose shapes passed the check, with all data on the device. Waits for nothing and
// reads nothing from the device, so the launches can be captured into a graph. Throws Error.
void run(const DeviceLayer& layer, const MoeCall& call, Stream stream, const Scratch& scratch);

}  // namespace moe_export::cuda
