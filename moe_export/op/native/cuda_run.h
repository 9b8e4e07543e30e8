// One execution of a layer on a device.
#pragma once

#include "cuda_layer.h"

namespace moe_export::cuda {

// Gives memory of the device that the stream may use until `release`.
struct Scratch {
  void* (*allocate)(void* owner, size_t bytes);
  void (*release)(void* owner, void* memory);
  void* owner;
};

// Enqueues a call whose shapes passed the check; all data is on the device. Nothing is waited for,
// and nothing read from the device, so that the launches can be captured into a graph. Throws
// Error.
void run(const Layer& layer, const MoeCall& call, Stream stream, const Scratch& scratch);

}  // namespace moe_export::cuda
