// Prints the kernels that processors get, and the reason, one line for each: one with nothing, one
// with AVX2, one with AVX-512, one with AVX-VNNI.
#include <cstdio>

#include "cpu/dispatch.h"

int main() {
  for (const moe_export::Processor& has :
       {moe_export::Processor{}, moe_export::Processor{true, false},
        moe_export::Processor{true, true}, moe_export::Processor{true, false, true}}) {
    const moe_export::Choice choice = moe_export::choose("", has);
    std::printf("%s: %s\n", choice.kernels->name, choice.reason.c_str());
  }
  return 0;
}
