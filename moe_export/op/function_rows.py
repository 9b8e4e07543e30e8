"""Rows of the function body: tokens sorted by expert, with their factors where a node has scales.

Legend: T tokens, D hidden, E experts, N pairs of a token and an expert, W columns of the scale,
R rows (the sum of the routed widths).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from moe_export.op.function_body import FunctionBody


class ExpertRows:
    """Rows of each expert's tokens, one block per expert.

    Args:
        body: Body that the nodes are added to.
        x: Input x [T, D].
        scales: Inputs that scale the experts, by the names in `spec.SCALE_INPUTS`.
        token_N: Token of each pair, sorted by expert.
        pairs_E: Number of pairs of each expert.
        num_experts: Number of routed experts.

    Attributes:
        gate: Rows that gate reads, or up where there is no gate; one value per expert.
        up: Rows that up reads beside a gate.
    """

    def __init__(
        self,
        body: FunctionBody,
        x: ir.Value,
        scales: Mapping[str, ir.Value],
        token_N: ir.Value,
        pairs_E: ir.Value,
        num_experts: int,
    ) -> None:
        self._body, self._scales = body, scales
        self._token_N, self._pairs_E, self._count = token_N, pairs_E, num_experts
        self.gate = self.up = self._by_expert(self._scaled(x, "input_scale"), "rows")
        if "up_scale" in scales:
            self.up = self._by_expert(self._scaled(x, "up_scale"), "up_rows")

    def hidden_factors(self, widths: Sequence[ir.Value]) -> list[ir.Value]:
        """Factors of each expert's hidden values, one value per expert.

        Args:
            widths: Width of each expert, [1] each.
        """
        blocks = self._by_expert(self._scales["hidden_scale"], "hidden_scale_rows")
        columns = self._columns(widths)
        return [
            self._body.op("Gather", block, column, name=f"hidden_factor_{expert}", axis=1)
            for expert, (block, column) in enumerate(zip(blocks, columns, strict=True))
        ]

    def _columns(self, widths: Sequence[ir.Value]) -> Sequence[ir.Value]:
        """Columns of the hidden scale that belong to each expert's hidden units."""
        op = self._body.op
        if "units" in self._scales:
            widths_E = op("Concat", *widths, name="widths", axis=0)
            return self._split(self._scales["units"], widths_E, "units")
        first, step = (
            self._body.constant(f"{name}_unit", n) for name, n in (("first", 0), ("next", 1))
        )
        return [
            op("Range", first, op("Squeeze", width, name=f"units_end_{e}"), step, name=f"units_{e}")
            for e, width in enumerate(widths)
        ]

    def _scaled(self, x: ir.Value, name: str) -> ir.Value:
        scale = self._scales.get(name)
        return x if scale is None else self._body.op("Mul", x, scale, name=f"x_times_{name}")

    def _by_expert(self, values: ir.Value, name: str) -> Sequence[ir.Value]:
        """Rows of a value [T, ...] of the tokens of each expert."""
        sorted_N = self._body.op("Gather", values, self._token_N, name=f"sorted_{name}", axis=0)
        return self._split(sorted_N, self._pairs_E, name)

    def _split(self, values: ir.Value, sizes_E: ir.Value, name: str) -> Sequence[ir.Value]:
        node = ir.node(
            "Split",
            [values, sizes_E],
            {"axis": 0},
            num_outputs=self._count,
            name=f"{name}_by_expert",
        )
        self._body.nodes.append(node)
        for expert, output in enumerate(node.outputs):
            output.name = f"{name}_{expert}"
        return node.outputs
