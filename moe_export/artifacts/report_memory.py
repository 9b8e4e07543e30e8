"""Section of `report.json` about memory: bytes predicted, on disk and held by a process."""

from __future__ import annotations

from pydantic import Field

from moe_export.artifacts.base import Record


class ClassBytes(Record):
    """Bytes of one class of tensors.

    Attributes:
        name: `embeddings`, `attention`, `router`, `experts`, `shared_expert`, `norms`, `scales`
            (with zero points), `constants` (rotary tables and the like) or `padding` (between
            weights).
        weights_bytes: part of `model.onnx.data`.
    """

    name: str = Field(validation_alias="class", serialization_alias="class")
    weights_bytes: int


class ResidentMemory(Record):
    """Memory of a process that holds one variant, see `ProcessMemory`.

    Attributes:
        provider: execution provider, `cpu` or `cuda`.
        load_peak_bytes: peak resident memory while the session loads, less that before loading.
        steady_resident_bytes: resident memory after a short generation, less that before loading.
        device_loaded_bytes: memory in use on the GPU after loading, as the driver counts it for all
            processes, less that before loading; None without a GPU.
        device_peak_bytes: most memory in use on the GPU after any measured run, less that before
            loading; None without a GPU. ONNX Runtime keeps memory that a run took, so that it is
            included.
        device_kv_cache_bytes: keys and values of the largest batch at full length, counted from
            their shapes and part of the peak; None without a GPU.
    """

    provider: str
    load_peak_bytes: int
    steady_resident_bytes: int
    device_loaded_bytes: int | None
    device_peak_bytes: int | None
    device_kv_cache_bytes: int | None


class VariantMemory(Record):
    """Memory of one variant; the unpruned model is reported even if it was not exported.

    Attributes:
        variant: name of the variant.
        format: formats of its weights, in words.
        weights_bytes: size of `model.onnx.data`, predicted if the variant was not exported.
        predicted_weights_bytes: size that the plan predicted; None if it predicted none.
        disk_weights_bytes: size of `model.onnx.data`; None if the variant was not exported.
        active_bytes_per_token: bytes of weights that a token reads, mean over the calibration
            tokens as the unpruned model routes them: its own embedding, the routed experts that it
            is sent to, and everything else; None if the plan predicted none.
        graph_bytes: size of `model.onnx`; None if the variant was not exported.
        nodes: number of nodes of the graph; None if the variant was not exported.
        classes: bytes by class of tensors.
        predicted_resident_bytes: predicted `steady_resident_bytes` on the CPU.
        resident: memory of a process on each provider.
    """

    variant: str
    format: str
    weights_bytes: int
    predicted_weights_bytes: int | None
    disk_weights_bytes: int | None
    active_bytes_per_token: int | None
    graph_bytes: int | None
    nodes: int | None
    classes: tuple[ClassBytes, ...]
    predicted_resident_bytes: int
    resident: tuple[ResidentMemory, ...]


class UnprunedQuantized(Record):
    """Prediction for quantization without pruning.

    Attributes:
        weights_bytes: predicted size of `model.onnx.data`; None if nothing is quantized.
        active_bytes_per_token: predicted bytes of weights that a token reads; None likewise.
        classes: bytes by class of tensors; empty if nothing is quantized.
    """

    weights_bytes: int | None
    active_bytes_per_token: int | None
    classes: tuple[ClassBytes, ...]


class CacheAtLength(Record):
    """Predicted memory of a sequence of some length.

    Attributes:
        tokens: length of the sequence.
        cache_bytes: bytes of its keys, values and states.
        every_head_bytes: bytes of keys and values of every head, which latent attention does not
            keep; None for other attention.
    """

    tokens: int
    cache_bytes: int
    every_head_bytes: int | None


class KvCacheFacts(Record):
    """Keys, values and other states of one sequence.

    Attributes:
        context_tokens: longest sequence that the model takes.
        cache_bytes: bytes of a sequence of that length.
        bytes_per_token: bytes of one token.
        fixed_bytes: bytes of the states that do not grow with the sequence.
        lengths: predictions for 4,096 and 32,768 tokens, as far as the model takes them, and for
            its longest sequence.
    """

    context_tokens: int
    cache_bytes: int
    bytes_per_token: int
    fixed_bytes: int
    lengths: tuple[CacheAtLength, ...]


class CheckpointFacts(Record):
    """Tensors of the pruned Hugging Face checkpoint.

    Attributes:
        predicted_tensor_bytes: bytes of all tensors as the plan predicted them.
        tensor_bytes: bytes of all tensors.
        tensors_kept: number of tensors that were copied whole.
        tensors_sliced: number of tensors that rows were removed from.
        tensors_dropped: number of tensors that were left out.
    """

    predicted_tensor_bytes: int
    tensor_bytes: int
    tensors_kept: int
    tensors_sliced: int
    tensors_dropped: int


class MemoryFacts(Record):
    """Memory of all variants.

    Attributes:
        dtype: dtype of the exported weights that are not quantized.
        variants: memory of each variant, in their order.
        unpruned_quantized: prediction for quantization without pruning.
        kv_cache: keys and values of one sequence.
        checkpoint: tensors of the pruned checkpoint.
    """

    dtype: str
    variants: tuple[VariantMemory, ...]
    unpruned_quantized: UnprunedQuantized
    kv_cache: KvCacheFacts
    checkpoint: CheckpointFacts
