"""A fused MoE of one width for all experts, as serving engines run it: what ours is held against.

Pairs of a token and an expert are sorted into blocks of one expert each. One kernel multiplies
the blocks' tokens by w1, gate and up in one tensor; after the activation the same kernel
multiplies by w2 and by the routing weights; the pairs of a token are added up last. Five launches
on the device, without a word of the host.

Legend: T tokens, D hidden, K experts per token, E experts, w width, N outputs and C inputs of a
product, P = T K pairs; pair p is token p // K's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

SORT_BLOCK = 256
ADD_BLOCK = 1024


@dataclass(frozen=True)
class Blocks:
    """Block sizes of a product, and its launch options.

    Attributes:
        pairs: Pairs of a token and an expert in a block.
        outputs: Outputs in a block.
        inputs: Inputs in one step of a block.
        band: Blocks of pairs that use the same weights in turn, which then stay in the cache.
        warps: Warps of a program.
        stages: Stages of Triton's software pipeline.
    """

    pairs: int
    outputs: int
    inputs: int
    band: int
    warps: int
    stages: int


FEW, MANY = Blocks(16, 64, 64, 1, 4, 4), Blocks(128, 128, 64, 8, 8, 3)
"""Block sizes for few tokens and for many, as serving engines choose them."""


@triton.jit
def sort_pairs(
    indices,
    order,
    expert_of_block,
    blocks_in_use,
    count,
    E: tl.constexpr,
    BINS: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sorts pairs by expert: program e writes those of expert e, and P into the rest of its block.

    Every program counts the pairs of all experts, so that none waits for another.
    """
    expert = tl.program_id(0)
    bins = tl.arange(0, BINS)
    counts = tl.zeros((BINS,), tl.int32)
    for first in range(0, count, BLOCK):
        pair = first + tl.arange(0, BLOCK)
        chosen = tl.load(indices + pair, mask=pair < count, other=E)
        counts += tl.sum((chosen[:, None] == bins[None, :]).to(tl.int32), axis=0)
    blocks = tl.where(bins < E, (counts + PAIRS - 1) // PAIRS, 0)
    start = tl.sum(tl.where(bins < expert, blocks, 0), axis=0)
    own = tl.sum(tl.where(bins == expert, blocks, 0), axis=0)
    for block in range(own):
        tl.store(expert_of_block + start + block, expert)
    place = start * PAIRS
    for first in range(0, count, BLOCK):
        pair = first + tl.arange(0, BLOCK)
        chosen = tl.load(indices + pair, mask=pair < count, other=E) == expert
        at = place + tl.cumsum(chosen.to(tl.int32), axis=0) - 1
        tl.store(order + at, pair, mask=chosen)
        place += tl.sum(chosen.to(tl.int32), axis=0)
    rest = place + tl.arange(0, PAIRS)
    tl.store(order + rest, count, mask=rest < (start + own) * PAIRS)
    if expert == 0:
        tl.store(blocks_in_use, tl.sum(blocks, axis=0))


@triton.jit
def multiply(
    a,
    b,
    c,
    order,
    expert_of_block,
    blocks_in_use,
    weights,
    count,
    N,
    C,
    a_divisor,
    WEIGHTED: tl.constexpr,
    PAIRS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    BAND: tl.constexpr,
):
    """c[p] = a[p // a_divisor] @ b[expert of p].T, times p's weight if WEIGHTED.

    a is [., C], b [E, N, C], c [P, N]; C is a multiple of INPUTS and N one of OUTPUTS.
    """
    wide = N // OUTPUTS
    band = tl.program_id(0) // (BAND * wide)
    tall = tl.minimum(BAND, tl.num_programs(0) // wide - band * BAND)
    within = tl.program_id(0) % (BAND * wide)
    block = band * BAND + within % tall
    if block >= tl.load(blocks_in_use):
        return
    pair = tl.load(order + block * PAIRS + tl.arange(0, PAIRS)).to(tl.int64)
    live = pair < count
    expert = tl.load(expert_of_block + block).to(tl.int64)
    n = within // tall * OUTPUTS + tl.arange(0, OUTPUTS)
    k = tl.arange(0, INPUTS)
    a_at = a + (pair // a_divisor)[:, None] * C + k[None, :]
    b_at = b + expert * N * C + n[None, :] * C + k[:, None]
    total = tl.zeros((PAIRS, OUTPUTS), tl.float32)
    for _ in range(0, C, INPUTS):
        total = tl.dot(tl.load(a_at, mask=live[:, None], other=0.0), tl.load(b_at), total)
        a_at += INPUTS
        b_at += INPUTS
    if WEIGHTED:
        total *= tl.load(weights + pair, mask=live, other=0.0).to(tl.float32)[:, None]
    tl.store(c + pair[:, None] * N + n[None, :], total.to(c.dtype.element_ty), mask=live[:, None])


@triton.jit
def activate(both, hidden, w, BLOCK: tl.constexpr):
    """hidden[p] = silu(gate) * up, from a row of gate followed by up."""
    pair = tl.program_id(0).to(tl.int64)
    unit = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(both + pair * 2 * w + unit, mask=unit < w, other=0.0).to(tl.float32)
    up = tl.load(both + pair * 2 * w + w + unit, mask=unit < w, other=0.0).to(tl.float32)
    h = gate / (1 + tl.exp(-gate)) * up
    tl.store(hidden + pair * w + unit, h.to(hidden.dtype.element_ty), mask=unit < w)


@triton.jit
def add_up(out, y, D, K: tl.constexpr, BLOCK: tl.constexpr):
    """y[t] = the sum of the K rows of token t."""
    token = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(K):
        total += tl.load(out + (token * K + k) * D + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(y + token * D + d, total.to(y.dtype.element_ty), mask=d < D)


class FusedMoe:
    """One execution of a layer: buffers, and launches that can be repeated.

    Args:
        x_TD: Inputs [T, D], float16 or bfloat16.
        w1: Gate over up, [E, 2w, D].
        w2: Down, [E, D, w].
        indices_TK: Chosen experts [T, K] int64.
        weights_TK: Routing weights [T, K].
        blocks: Block sizes; D, w and 2w are multiples of its inputs and outputs.
    """

    def __init__(
        self,
        x_TD: torch.Tensor,
        w1: torch.Tensor,
        w2: torch.Tensor,
        indices_TK: torch.Tensor,
        weights_TK: torch.Tensor,
        blocks: Blocks,
    ) -> None:
        self.x, self.w1, self.w2 = x_TD, w1, w2
        self.indices, self.weights, self.blocks = indices_TK, weights_TK, blocks
        self.num_experts, _, self.hidden_size = w1.shape
        self.count, self.width = indices_TK.numel(), w2.shape[2]
        for outputs, inputs in ((2 * self.width, self.hidden_size), (self.hidden_size, self.width)):
            assert outputs % blocks.outputs == inputs % blocks.inputs == 0, "no whole blocks"
        self.most = min(self.count, self.num_experts + self.count // blocks.pairs)

        def scratch(*shape: int, dtype: torch.dtype = x_TD.dtype) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device=x_TD.device)

        self.order = scratch(self.most * blocks.pairs, dtype=torch.int32)
        self.expert_of_block = scratch(self.most, dtype=torch.int32)
        self.blocks_in_use = scratch(1, dtype=torch.int32)
        self.both = scratch(self.count, 2 * self.width)
        self.hidden = scratch(self.count, self.width)
        self.out = scratch(self.count, self.hidden_size)
        self.y = torch.empty_like(x_TD)

    def run(self) -> torch.Tensor:
        """Launches all kernels without waiting for them; returns y [T, D]."""
        sorted_ = (self.order, self.expert_of_block, self.blocks_in_use)
        sort_pairs[self.num_experts,](
            *(self.indices, *sorted_, self.count),
            E=self.num_experts,
            BINS=triton.next_power_of_2(self.num_experts),
            PAIRS=self.blocks.pairs,
            BLOCK=SORT_BLOCK,
        )
        top_k = self.indices.shape[1]
        self._multiply(self.x, self.w1, self.both, top_k, weighted=False)
        grid = (self.count, triton.cdiv(self.width, ADD_BLOCK))
        activate[grid](self.both, self.hidden, self.width, BLOCK=ADD_BLOCK)
        self._multiply(self.hidden, self.w2, self.out, 1, weighted=True)
        grid = (len(self.x), triton.cdiv(self.hidden_size, ADD_BLOCK))
        add_up[grid](self.out, self.y, self.hidden_size, K=top_k, BLOCK=ADD_BLOCK)
        return self.y

    def _multiply(
        self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, divisor: int, *, weighted: bool
    ) -> None:
        _, outputs, inputs = b.shape
        constants: dict[str, Any] = {"PAIRS": self.blocks.pairs, "OUTPUTS": self.blocks.outputs}
        constants |= {"INPUTS": self.blocks.inputs, "BAND": self.blocks.band}
        multiply[self.most * (outputs // self.blocks.outputs),](
            *(a, b, c, self.order, self.expert_of_block, self.blocks_in_use, self.weights),
            *(self.count, outputs, inputs, divisor),
            WEIGHTED=weighted,
            num_warps=self.blocks.warps,
            num_stages=self.blocks.stages,
            **constants,
        )
