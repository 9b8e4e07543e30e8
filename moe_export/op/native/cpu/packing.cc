#include "cpu/packing.h"

#include "cpu/panel_part.h"

namespace moe_export {
int64_t gate_up_panels(const Problem& problem, int64_t width) {
  const int64_t units = units_per_panel(problem.activation);
  return round_up(width, units) / units;
}

int64_t down_panels(const Problem& problem) {
  return round_up(problem.hidden_size, kColumns) / kColumns;
}

uint64_t expert_bytes(const Problem& problem, int64_t width) {
  const int64_t gate_up_bytes =
      gate_up_panels(problem, width) * panel_bytes(problem.format, problem.hidden_size);
  return static_cast<uint64_t>(gate_up_bytes +
                               down_panels(problem) * panel_bytes(problem.format, width));
}

Refusal pack_expert(const Problem& problem, const MoeWeights& weights, size_t expert,
                    uint8_t* panels) {
  const size_t each = static_cast<size_t>(problem.tensors_per_expert());
  const size_t step = static_cast<size_t>(problem.tensors_per_matrix());
  const size_t down = static_cast<size_t>(problem.matrices_per_expert()) - 1;
  const int64_t units = units_per_panel(problem.activation);
  const int64_t width = problem.widths[expert];
  const MoeTensor* tensors = weights.tensors + expert * each;
  Matrix matrices[3];
  for (size_t role = 0; role <= down; ++role) {
    matrices[role] = matrix_of(problem.format, tensors + role * step);
  }
  const Format format = problem.format;
  const int64_t group_size = problem.group_size;
  bool fits[3] = {true, true, true};
  for (int64_t panel = 0; panel < gate_up_panels(problem, width); ++panel) {
    for (size_t role = 0; role < down; ++role) {
      const int64_t column = static_cast<int64_t>(role) * units;
      fits[role] &=
          pack_part(format, group_size, {&matrices[role], panel * units, column, units}, panels);
    }
    panels += panel_bytes(problem.format, problem.hidden_size);
  }
  for (int64_t panel = 0; panel < down_panels(problem); ++panel) {
    fits[down] &=
        pack_part(format, group_size, {&matrices[down], panel * kColumns, 0, kColumns}, panels);
    panels += panel_bytes(problem.format, width);
  }
  for (size_t role = 0; role <= down; ++role) {
    if (fits[role]) continue;
    return weight_name(problem, expert * each + role * step + 1) +
           " holds a value that is not a float16 number, as all scales have to be";
  }
  return std::nullopt;
}

}  // namespace moe_export
