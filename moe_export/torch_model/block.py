"""MoE block of one layer, whose experts may have different widths.

Legend: T tokens, D hidden, E experts, K experts of a token, N pairs of a token and an expert, W
width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from moe_export.families.base import ModelSpec
from moe_export.families.features import UNITS_ROLE, VECTOR_ROLES
from moe_export.system.onednn import ROWS_AT_ONCE
from moe_export.torch_model.compressed import UNSCALED, Scales, Vectors, scaled
from moe_export.torch_model.condensers import Condensed
from moe_export.torch_model.recording import ExpertTrace, Quantity, Recordable
from moe_export.torch_model.routing import choice_scores, route

Observer = Callable[[Quantity, Tensor], Tensor]
"""Function called with each quantity of an expert; the expert goes on with the returned tensor."""


BIAS_ROLES = ("choice_bias", "router_bias")
"""Roles of a router's biases."""


class Matrix(nn.Linear):  # type: ignore[misc]
    """Linear map without bias, which may be empty; torch would warn about initialising that.

    A router's bias is stored beside its weights, but `RaggedMoEBlock` adds it, in float32.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape[1], shape[0], bias=False)

    def reset_parameters(self) -> None:
        """Draws random weights, if there are any."""
        if self.weight.numel():
            super().reset_parameters()

    def forward(self, x_ND: Tensor) -> Tensor:
        """Product [N, K] of x with the weights [K, D].

        In bfloat16 on a CPU, x is padded with rows of zeros to a multiple of `ROWS_AT_ONCE`. The
        padding rows are sliced off again, in the backward pass too, so that an infinite weight
        cannot leak into real rows.
        """
        missing = -len(x_ND) % ROWS_AT_ONCE
        if not missing or x_ND.dtype != torch.bfloat16 or x_ND.device.type != "cpu":
            return F.linear(x_ND, self.weight)
        return F.linear(F.pad(x_ND, (0, 0, 0, missing)), self.weight)[:-missing]


class SwiGlu(NamedTuple):
    """Matrices gate, up and down of an expert, routed or shared."""

    gate: Matrix
    up: Matrix
    down: Matrix

    def forward(self, x_ND: Tensor, observe: Observer, scales: Scales = UNSCALED) -> Tensor:
        """Output [N, D] of the expert, before the routing weight.

        Args:
            x_ND: Inputs.
            observe: Function called with each quantity; x is that of gate, and h that of down.
            scales: Factors of the inputs and of the hidden values.
        """
        up_ND = None if scales.up_ND is None else scaled(x_ND, scales.up_ND)
        x_ND = observe("x", scaled(x_ND, scales.input_ND))
        gate_NW = observe("gate", self.gate(x_ND))
        up_NW = observe("up", self.up(x_ND if up_ND is None else up_ND))
        h_NW = observe("h", scaled(F.silu(gate_NW) * up_NW, scales.hidden_NW))
        return observe("output", self.down(h_NW))


class RaggedMoEBlock(Recordable):
    """Router, routed experts and, if the family has one, shared expert of one layer.

    Parameters have the names of the checkpoint. Tokens are sorted by expert, each expert runs once
    over its tokens, and the outputs are added in expert order, so that results do not depend on
    timing.

    Args:
        spec: Sizes of the model and names of its tensors.
        layer: Number of the layer, which must have experts.
        returns_logits: True if `forward` also returns the router's logits.
    """

    def __init__(self, spec: ModelSpec, layer: int, *, returns_logits: bool = False) -> None:
        super().__init__()
        self.layer = layer
        self.spec = spec
        self.returns_logits = returns_logits

        def matrix(role: str, expert: int | None = None) -> Matrix:
            weight = Matrix(spec.tensors[spec.name(role, layer, expert)].shape)
            _attach(self, self._own_name(role, expert), weight)
            return weight

        # Named tuples are not modules: each matrix is registered once, under its checkpoint name.
        self._router = (matrix("router"),)
        # Roles of the layer's tensors that are no matrices of a linear map.
        self._own_roles = {
            tensor.role: tensor.shape
            for tensor in spec.tensors.values()
            if tensor.layer == layer and tensor.role in (*VECTOR_ROLES, *BIAS_ROLES, UNITS_ROLE)
        }
        for role, shape in self._own_roles.items():
            self._register(role, (torch.ones if role in VECTOR_ROLES else torch.zeros)(shape))
        self.routed = tuple(
            SwiGlu(matrix("gate", expert), matrix("up", expert), matrix("down", expert))
            for expert in range(spec.num_experts)
        )
        self.shared: tuple[SwiGlu, Matrix | None] | None = None
        if spec.has_shared_expert:
            shared = SwiGlu(matrix("shared_gate"), matrix("shared_up"), matrix("shared_down"))
            self.shared = (shared, matrix("shared_router") if spec.family.shared_gate else None)

    def forward(self, hidden_states: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Output of the block, with the shape and dtype of `hidden_states` [..., D].

        The router's logits [T, E] are returned too if `returns_logits` was set.
        """
        x_TD = hidden_states.reshape(-1, hidden_states.shape[-1])
        y_TD = self._routed_output(x_TD)
        if self.shared is not None:
            y_TD = y_TD + self._shared_output(x_TD, *self.shared)
        y = y_TD.reshape(hidden_states.shape)
        return (y, self.router_logits(x_TD)) if self.returns_logits else y

    @property
    def all_experts(self) -> tuple[SwiGlu, ...]:
        """Experts of the layer in the order of R: the routed ones, then the shared one if any."""
        return self.routed if self.shared is None else (*self.routed, self.shared[0])

    def shared_weight(self, x_TD: Tensor) -> Tensor:
        """Weight [T, 1] of the shared expert: the sigmoid of its gate, or 1 without a gate.

        The layer must have a shared expert.
        """
        assert self.shared is not None
        _, router = self.shared
        return x_TD.new_ones(len(x_TD), 1) if router is None else torch.sigmoid(router(x_TD))

    def route(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Routing weights and numbers of the experts computed for each token, both [T, K].

        The number E stands for no expert; its weight is 0.
        """
        return self.routed_and_scaled(x_TD)[:2]

    def units(self, expert: int) -> Tensor | None:
        """Positions before pruning of an expert's hidden values, int64; None for all of them."""
        if not self.spec.has_units:
            return None
        start = sum(self.spec.widths[self.layer][:expert])
        unit_R = self._parameter(UNITS_ROLE)
        return unit_R[start : start + self.spec.widths[self.layer][expert]].long()

    def routed_and_scaled(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Scales]:
        """Result of `route`, and the scales of all tokens by the vectors of auxiliary experts."""
        logits_TE = self.router_logits(x_TD)
        weight_TK, expert_TK = route(logits_TE, self.spec, self.choice_bias, self.condensed)
        scales, main = UNSCALED, self.spec.active_experts
        if self.vectors is not None:
            scales = self.vectors.scales(weight_TK[:, main:], expert_TK[:, main:])
        return weight_TK[:, :main].to(x_TD.dtype), expert_TK[:, :main], scales

    def choice_scores(self, x_TD: Tensor) -> Tensor:
        """Numbers [T, E] of which the largest decide the choice; -inf for experts out of it."""
        logits_TE = self.router_logits(x_TD)
        if self.condensed is not None:
            logits_TE = self.condensed.choice_logits(logits_TE)
        return choice_scores(logits_TE, self.spec, self.choice_bias)

    def choice_shares(self, x_TD: Tensor) -> Tensor:
        """Softmax [T, E] of the logits that decide the choice, in at least float32."""
        choice_TE = self.choice_scores(x_TD)
        wide = torch.promote_types(choice_TE.dtype, torch.float32)
        return torch.softmax(choice_TE, dim=-1, dtype=wide)

    @property
    def own_condensers(self) -> tuple[int, ...]:
        """Numbers of the experts that every token of the layer gets."""
        return () if self.spec.condensers is None else self.spec.condensers.experts[self.layer]

    @property
    def router_bias(self) -> Tensor:
        """Bias [E] of the logits, float32; the model must have one."""
        return self._parameter("router_bias")

    @property
    def router(self) -> Matrix:
        """Linear map [E, D] that gives the logit of each expert."""
        return self._router[0]

    @property
    def choice_bias(self) -> Tensor | None:
        """Bias [E] of the choice of experts, float32; None in families without one."""
        has_bias = self.spec.family.routing.has_choice_bias
        return self._parameter("choice_bias") if has_bias else None

    @property
    def condensed(self) -> Condensed | None:
        """Bias of the logits and condensers; None without a bias."""
        rule = self.spec.condensers
        if rule is None:
            return None
        return Condensed(self.router_bias, self.own_condensers, rule.bias_in_weights)

    @property
    def vectors(self) -> Vectors | None:
        """Vectors of compressed experts; None without them."""
        if self.spec.compressed is None:
            return None
        tables = (self._parameter(r) if r in self._own_roles else None for r in VECTOR_ROLES)
        return Vectors(*tables)

    def take_router(self, other: RaggedMoEBlock) -> None:
        """Shares the router of another block, and its biases if any."""
        weight_ED = other.router.weight.detach()
        self.router.weight = nn.Parameter(weight_ED, requires_grad=False)
        for role in BIAS_ROLES:
            if role in other._own_roles:
                self._register(role, other._parameter(role).detach())

    def take_vectors(self, other: RaggedMoEBlock, unit_R: Tensor) -> None:
        """Shares the vectors of the compressed experts of another block, if it has any.

        Args:
            other: Block with the same or wider experts.
            unit_R: Positions before pruning of this block's hidden values, expert after expert.
        """
        for role in VECTOR_ROLES:
            if role in self._own_roles:
                self._register(role, other._parameter(role).detach())
        if UNITS_ROLE in self._own_roles:
            self._register(UNITS_ROLE, unit_R.float())

    def _parameter(self, role: str) -> Tensor:
        values: Tensor = self.get_parameter(self._own_name(role))
        return values

    def _register(self, role: str, values: Tensor) -> None:
        """Registers a tensor that is no matrix under its name in checkpoints."""
        *path, last = self._own_name(role).split(".")
        module = _submodule(self, path)
        module.register_parameter(last, nn.Parameter(values, requires_grad=False))

    def _own_name(self, role: str, expert: int | None = None) -> str:
        """Name of a tensor within the block, which its name in the checkpoint ends with."""
        name = self.spec.name(role, self.layer, expert)
        return name.split(f".{self.spec.family.moe_module}.", 1)[1]

    def router_logits(self, x_TD: Tensor) -> Tensor:
        """Logit of every expert for every token, [T, E]."""
        matrix = self.router
        if not self.spec.family.router_float32:
            return matrix(x_TD)
        dtype = torch.promote_types(x_TD.dtype, torch.float32)
        return F.linear(x_TD.to(dtype), matrix.weight.to(dtype))

    def _routed_output(self, x_TD: Tensor) -> Tensor:
        weight_TK, expert_TK, scales = self.routed_and_scaled(x_TD)
        expert_N = expert_TK.reshape(-1)
        counts_E = torch.bincount(expert_N, minlength=len(self.routed))[: len(self.routed)].tolist()
        # Pairs with no expert are the last ones.
        order_N = torch.argsort(expert_N, stable=True)[: sum(counts_E)]
        token_N = torch.div(order_N, expert_TK.shape[1], rounding_mode="floor")
        weight_N = weight_TK.reshape(-1)[order_N]
        traces = []
        outputs = []
        for expert, (token, weight) in enumerate(
            zip(token_N.split(counts_E), weight_N.split(counts_E), strict=True)
        ):
            if not len(token):
                continue
            trace = ExpertTrace(expert, token, weight)
            traces.append(trace)
            own = scales.of(token, self.units(expert))
            output_ND = self.routed[expert].forward(x_TD[token], self._observer(trace), own)
            outputs.append(output_ND * weight[:, None])
        if self.recording is not None:
            self.recording.layers[self.layer] = traces
        if not outputs:
            return torch.zeros_like(x_TD)
        return torch.zeros_like(x_TD).index_add(0, token_N, torch.cat(outputs))

    def _shared_output(self, x_TD: Tensor, shared: SwiGlu, router: Matrix | None) -> Tensor:
        observe: Observer = _pass
        trace = None
        if self.recording is not None and self.recording.shared:
            token_T = torch.arange(len(x_TD), device=x_TD.device)
            trace = ExpertTrace(len(self.routed), token_T, x_TD.new_ones(len(x_TD)))
            self.recording.layers[self.layer].append(trace)
            observe = self._observer(trace)
        y_TD = shared.forward(x_TD, observe)
        if router is None:
            return y_TD
        weight_T1 = self.shared_weight(x_TD)
        if trace is not None:
            trace.routing_N = weight_T1[:, 0]
        return weight_T1 * y_TD

    def _observer(self, trace: ExpertTrace) -> Observer:
        recording = self.recording
        if recording is None:
            return _pass
        return lambda quantity, value: recording.record(trace, quantity, value)


def _pass(_quantity: Quantity, value: Tensor) -> Tensor:
    return value


def _attach(module: nn.Module, name: str, matrix: Matrix) -> None:
    """Registers a matrix so that its weight has the given dotted name in the module."""
    *path, last = name.removesuffix(".weight").split(".")
    _submodule(module, path).add_module(last, matrix)


def _submodule(module: nn.Module, path: Sequence[str]) -> nn.Module:
    """Module within a module, which is made if it is not there."""
    for part in path:
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    return module
