// What the processor of this machine can do.
#pragma once

namespace moe_export {

struct Processor {
  bool has_avx2 = false;     // AVX2, FMA and F16C
  bool has_avx512 = false;   // these, and AVX-512 F, BW, DQ, VL and VNNI
  bool has_avxvnni = false;  // AVX2 as above, and AVX-VNNI
  bool has_neon = false;     // Armv8-A in 64 bits
  bool has_dotprod = false;  // these, and FEAT_DotProd
  bool has_i8mm = false;     // these, and FEAT_I8MM
  bool has_fhm = false;      // these, and FEAT_FHM
};

// Asks an x86 processor itself, and whether the operating system keeps the registers; on Arm, asks
// the operating system. Compilers' __builtin_cpu_supports is not used: with some of them it always
// says no.
Processor processor();

}  // namespace moe_export
