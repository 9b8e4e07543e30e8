"""A checkpoint is the same model as a GGUF file."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np

from moe_export.checkpoint import Checkpoint
from moe_export.testing.tiny import tiny_checkpoint
from tools.gguf.qwen2_moe import convert
from tools.real_model.gguf_file import GgufFile


def test_tensors_of_a_checkpoint_get_the_names_and_shapes_of_llama_cpp(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source", num_hidden_layers=2)
    convert(source, tmp_path / "model.gguf")
    checkpoint, file = Checkpoint(source), GgufFile(tmp_path / "model.gguf")
    layer = "model.layers.1."
    for name, key, dtype in (
        ("output.weight", "lm_head.weight", ml_dtypes.bfloat16),
        ("blk.1.attn_q.bias", f"{layer}self_attn.q_proj.bias", np.float32),
        ("blk.1.ffn_gate_inp.weight", f"{layer}mlp.gate.weight", np.float32),
    ):
        expected = checkpoint.read(key).astype(dtype).astype(np.float32)
        assert np.array_equal(file.read(name), expected), name
    down = [checkpoint.read(f"{layer}mlp.experts.{e}.down_proj.weight") for e in range(6)]
    stacked = np.stack(down).astype(ml_dtypes.bfloat16).astype(np.float32)
    assert np.array_equal(file.read("blk.1.ffn_down_exps.weight"), stacked)
    # llama.cpp takes the gate of the shared expert as a vector.
    assert file.read("blk.1.ffn_gate_inp_shexp.weight").shape == (64,)
    # Without a tied lm_head, 3 tensors of the whole model, and 14 and 3 stacks of experts a layer.
    assert len(file.tensors) == 3 + 2 * (14 + 3)
    assert file.facts["qwen2moe.expert_used_count"] == 2
