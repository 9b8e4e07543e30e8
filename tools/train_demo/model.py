"""The model to train: stock Qwen2-MoE with each sparse block replaced by a grouped one.

The grouped block computes the same function, several times faster on a CPU, and names its weights
as Hugging Face checkpoints do, whatever the installed transformers calls them inside.

T tokens, D hidden, E experts, K top-k, N token-expert pairs (N = T * K).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

from tools.train_demo.configs import DEMO


class Expert(nn.Module):
    """One SwiGLU expert: ``down(silu(gate(x)) * up(x))``."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, width, bias=False)
        self.up_proj = nn.Linear(hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] in, [T, D] out."""
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x_TD)) * self.up_proj(x_TD))
        return out


class GroupedMoeBlock(nn.Module):
    """Qwen2-MoE's sparse block: softmax over all experts, top-k kept without renormalizing.

    Token-expert pairs are sorted by expert, so that each expert is one matrix product.
    """

    def __init__(self, config: Qwen2MoeConfig) -> None:
        super().__init__()
        hidden_size = config.hidden_size
        self.top_k: int = config.num_experts_per_tok
        self.gate = nn.Linear(hidden_size, config.num_experts, bias=False)
        self.experts = nn.ModuleList(
            Expert(hidden_size, config.moe_intermediate_size) for _ in range(config.num_experts)
        )
        self.shared_expert = Expert(hidden_size, config.shared_expert_intermediate_size)
        self.shared_expert_gate = nn.Linear(hidden_size, 1, bias=False)
        # The router logits of the latest forward, for the balance loss.
        self.router_logits_TE: Tensor = torch.empty(0)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., D] in, the same shape out."""
        x_TD = hidden_states.reshape(-1, hidden_states.shape[-1])
        self.router_logits_TE = self.gate(x_TD)
        weights_TK, experts_TK = self.router_logits_TE.softmax(-1).topk(self.top_k, dim=-1)
        expert_N = experts_TK.reshape(-1)
        order_N = expert_N.argsort(stable=True)
        token_N = order_N // self.top_k
        counts = torch.bincount(expert_N, minlength=len(self.experts)).tolist()
        x_by_expert = torch.split(x_TD[token_N], counts)
        y_ND = torch.cat([f(x_ND) for f, x_ND in zip(self.experts, x_by_expert, strict=True)])
        y_ND = y_ND * weights_TK.reshape(-1)[order_N, None]
        y_TD: Tensor = torch.sigmoid(self.shared_expert_gate(x_TD)) * self.shared_expert(x_TD)
        return y_TD.index_add(0, token_N, y_ND).view_as(hidden_states)


def build_model(model_config: Mapping[str, Any] = DEMO) -> Qwen2MoeForCausalLM:
    """A model in float32, freshly initialized from torch's global generator."""
    config = Qwen2MoeConfig(**{**model_config, "dtype": "float32"})
    model = Qwen2MoeForCausalLM(config)
    for layer in model.model.layers:
        layer.mlp = GroupedMoeBlock(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, config.initializer_range)
            elif name.endswith("bias"):
                parameter.zero_()
    return model


def balance_loss(model: Qwen2MoeForCausalLM) -> Tensor:
    """Load-balance loss of the latest forward, mean over layers; its ideal value is K.

    Per layer ``E * sum_e(tokens share of e * mean router probability of e)``, as in Switch
    Transformers (arXiv:2101.03961, equation 4) with K choices per token.
    """
    losses = []
    for layer in model.model.layers:
        block = layer.mlp
        probabilities_TE = block.router_logits_TE.softmax(-1)
        chosen_TK = block.router_logits_TE.topk(block.top_k, dim=-1).indices
        num_experts = probabilities_TE.shape[-1]
        share_E = torch.bincount(chosen_TK.reshape(-1), minlength=num_experts) / len(chosen_TK)
        losses.append(num_experts * (share_E * probabilities_TE.mean(0)).sum())
    return torch.stack(losses).mean()


def round_to_float16(model: Qwen2MoeForCausalLM) -> None:
    """Round every weight to float16 in place, so that scores are those of the saved model."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())


def save_weights(model: Qwen2MoeForCausalLM, path: Path) -> None:
    """Write the weights as float16 safetensors under their Hugging Face checkpoint names."""
    tensors = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, path, metadata={"format": "pt"})


def load_weights(model: Qwen2MoeForCausalLM, path: Path) -> None:
    """Read the weights that `save_weights` wrote."""
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})


def set_top_k(model: Qwen2MoeForCausalLM, top_k: int) -> None:
    """Send every token to the `top_k` experts of highest probability from now on."""
    for layer in model.model.layers:
        layer.mlp.top_k = top_k
