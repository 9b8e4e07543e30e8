"""The text of the page shapes, from its figures alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from string import Template
from typing import Any

from moe_export.reporting.markdown import table
from moe_export.reporting.tables import Table
from moe_export.reporting.units import count, figures, size
from tools.pages.shapes_peer import peer_table
from tools.pages.stage_runs import machine_words, stage_table

HEAD = """\
# Mixers of every kind at the sizes of released models

`python -m tools.pages shapes HOME` made this page and [shapes.json](data/shapes.json), with
`--sequences` 8 or 2. Each model
has the config of the released one, with its first layers only and 32,000 tokens in place of its
vocabulary. Weights are random, so that nothing here says anything about accuracy. Recipe: half of
all expert dimensions kept, importance in bfloat16, experts in int4, attention and lm_head in int8,
everything else in float16. Each stage is a process of its own. A prediction is what `--dry-run`
says from the config alone; those of plan and quantize were mended after the first of these runs,
see [log.md](../log.md). Resident memory in ONNX Runtime is predicted by the report. The state per
token and per sequence is the size of the tensors that the session gave back after a prompt of 64
tokens and after 32 more. Random routers of Qwen3.5 choose 8 of 256 experts by nearly equal scores,
and rounding changes the choice. `python -m tools.routing` shows it with narrower experts:
with torch's choice, 7.2e-3 nats become 1.0e-3, see [log.md](../log.md).
"""

PEER_HEAD = """\
The last table of a model is by `python -m tools.pages shapes HOME --llama-cpp LIBRARIES SOURCES`:
llama.cpp 0.5.0, its prebuilt library for this processor, runs Q4_0 of the unpruned model, made by
its own converter and quantizer. Ours is packed, with experts, attention and lm_head in int4; `half`
has half of the width of every routed expert. After a prompt of 64 tokens, 32 are decoded. Models
take turns; ratios are medians over 7 turns, with the least and the greatest. These runs are short.
The head of LFM2 is its embedding; int4 gives it a matrix of its own. About a sixth of a step of
Qwen3.5 is ONNX Runtime's operator of the delta net, see [log.md](../log.md).
"""

MODEL = Template("""\
## $title, $layers of $released layers

$mixers; $moe with experts; $gb GB in bfloat16; importance over $tokens tokens. $machine.

$stages

$checks
""")

PEER = Template("""\

Beside llama.cpp: $mixers; $experts experts, $top_k of them for a token. $machine,
load of other work $load.

$speeds
""")


def markdown(data: Mapping[str, Any]) -> str:
    """The page from its data."""
    has_peers = any("peer" in model for model in data.values())
    return "\n".join([HEAD, *[PEER_HEAD] * has_peers, *map(section, data.values())])


def section(model: Mapping[str, Any]) -> str:
    """Section of one model."""
    text = MODEL.substitute(
        title=model["title"],
        layers=len(model["mixers"]),
        released=model["released_layers"],
        mixers=mixer_words(model["mixers"]),
        moe=model["moe_layers"],
        gb=f"{model['checkpoint_bytes'] / 1e9:.1f}",
        tokens=count(model["calibration_tokens"]),
        machine=machine_words(model["machine"]),
        stages=table(stage_table(model["stages"], ("peak_resident_bytes", "output_bytes"))),
        checks=table(Table(["predicted / found", ""], checks(model), words=2)),
    )
    return text + peer_section(model["peer"]) if "peer" in model else text


def mixer_words(mixers: Sequence[str]) -> str:
    """Kinds of mixers with their numbers, such as `3 × delta net, 1 × attention`."""
    kinds = Counter(mixers)
    return ", ".join(f"{number} × {kind.replace('_', ' ')}" for kind, number in kinds.items())


def peer_section(peer: Mapping[str, Any]) -> str:
    """Speeds beside llama.cpp."""
    return PEER.substitute(
        mixers=mixer_words(peer["mixers"]),
        experts=peer["experts"],
        top_k=peer["top_k"],
        machine=machine_words(peer["machine"]),
        load=round(peer["machine"]["load_average"][0]),
        speeds=table(peer_table(peer)),
    )


def checks(model: Mapping[str, Any]) -> list[list[str]]:
    """Names and values of the figures of the exported model."""
    held, states, parity = model["resident"], model["states"], model["parity"]
    planned, found = states["predicted"], states["found"]
    same = 100 * parity["top1_agreement"]
    return [
        ["resident in ONNX Runtime", f"{size(held['predicted'])} / {size(held['found'])}"],
        [
            "state per token of context",
            f"{count(planned['token_bytes'])} / {count(found['token_bytes'])} bytes",
        ],
        [
            "state of fixed size per sequence",
            f"{count(planned['fixed_bytes'])} / {count(found['fixed_bytes'])} bytes",
        ],
        [
            f"against torch, {count(parity['tokens'])} tokens",
            f"KL {figures(parity['kl_nats'])} nats, most likely token the same at {same:.1f} %",
        ],
    ]
