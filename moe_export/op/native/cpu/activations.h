// The activations and the table of kernels of the vector instruction sets, written once.
//
// `Vector` is one instruction set: kLanes, and static functions of one instruction each. Each
// kernel file includes this one with a `Vector` of its own, in an anonymous namespace.
#pragma once

#include "cpu/by_count.h"
#include "cpu/kernels.h"

namespace moe_export {
namespace {

// Coefficients of exp's series from r^6 to 1, after 1 / 7!.
constexpr float kInverseFactorials[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6,
                                        0.5f,       1.0f,       1.0f};

// exp(x) = 2^n exp(r) with |r| <= ln(2) / 2, where the series to r^7 is exact to float32. Beyond
// the range of float32 it gives infinity, as silu needs: -3e38 / (1 + exp(3e38)) is zero.
template <typename Vector>
typename Vector::Floats exp(typename Vector::Floats x) {
  x = Vector::min(Vector::max(x, Vector::set(-88.0f)), Vector::set(89.0f));
  const auto n = Vector::nearest(Vector::multiply(x, Vector::set(0x1.715476p+0f)));
  // ln(2) in two parts. The first has enough trailing zeros for n * part to be exact.
  auto r = Vector::subtract_product(n, Vector::set(0x1.62e4p-1f), x);
  r = Vector::subtract_product(n, Vector::set(0x1.7f7d1cp-20f), r);
  auto series = Vector::set(1.0f / 5040);
  for (float factor : kInverseFactorials) {
    series = Vector::add_product(series, r, Vector::set(factor));
  }
  return Vector::times_power_of_two(series, n);
}

// a / (1 + exp(negative)).
template <typename Vector>
typename Vector::Floats over_one_plus_exp(typename Vector::Floats a,
                                          typename Vector::Floats negative) {
  return Vector::divide(a, Vector::add(Vector::set(1.0f), exp<Vector>(negative)));
}

template <typename Vector>
struct Silu {
  using Floats = typename Vector::Floats;
  static Floats of(Floats a) {
    return over_one_plus_exp<Vector>(a, Vector::subtract(Vector::set(0.0f), a));
  }
};

template <typename Vector>
struct Gelu {
  using Floats = typename Vector::Floats;
  static Floats of(Floats a) {
    const Floats slope = Vector::add_product(Vector::multiply(Vector::set(kGeluCubic), a), a,
                                             Vector::set(kGeluLinear));
    const Floats negative = Vector::subtract(Vector::set(0.0f), Vector::multiply(a, slope));
    return over_one_plus_exp<Vector>(a, negative);
  }
};

template <typename Vector>
struct Relu {
  // The instruction returns its second operand where one is NaN, so NaN stays NaN.
  static typename Vector::Floats of(typename Vector::Floats a) {
    return Vector::max(Vector::set(0.0f), a);
  }
};

template <typename Vector>
struct Relu2 {
  static typename Vector::Floats of(typename Vector::Floats a) {
    return Vector::multiply(Relu<Vector>::of(a), Relu<Vector>::of(a));
  }
};

template <typename Vector, template <typename> class Function>
void gated(const float* sums, float* hidden) {
  constexpr int64_t kUnits = kColumns / 2;
  for (int64_t unit = 0; unit < kUnits; unit += Vector::kLanes) {
    const auto up = Vector::load(sums + kUnits + unit);
    const auto gate = Function<Vector>::of(Vector::load(sums + unit));
    Vector::store(hidden + unit, Vector::multiply(gate, up));
  }
}

template <typename Vector, template <typename> class Function>
void plain(const float* sums, float* hidden) {
  for (int64_t unit = 0; unit < kColumns; unit += Vector::kLanes) {
    Vector::store(hidden + unit, Function<Vector>::of(Vector::load(sums + unit)));
  }
}

}  // namespace
}  // namespace moe_export
