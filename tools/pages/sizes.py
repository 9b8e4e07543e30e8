"""Sizes of Qwen1.5-MoE-A2.7B by arithmetic, as `moe-export sizes` computes them."""

from __future__ import annotations

import argparse

from moe_export.reporting.markdown import table
from moe_export.reporting.sizes import Sizes, cache_sentence, size_table, sizes_of
from moe_export.testing.synthetic_checkpoint import config_of
from tools.pages.page import write_page

INTRODUCTION = (
    "Made by `python -m tools.pages sizes`, by arithmetic: what moe-export would write, in bytes "
    "of `model.onnx.data`. Every expert keeps the same share of its width. int8 and int4 are for "
    "experts, attention and lm_head in groups of 32 with scales in float16; all else is float16. "
    "What a token reads is with every expert chosen equally often."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds nothing: the page has no options."""


def make(arguments: argparse.Namespace) -> None:  # noqa: ARG001 - as every page
    """Computes and writes the page."""
    write_page("sizes", None, markdown(qwen_sizes()))


def qwen_sizes() -> Sizes:
    """Sizes of Qwen1.5-MoE-A2.7B at the default shares and formats."""
    return sizes_of(config_of("qwen2_moe", "qwen1.5-moe-a2.7b"))


def markdown(sizes: Sizes) -> str:
    """The page from the sizes."""
    title = "# Sizes of Qwen1.5-MoE-A2.7B"
    parts = [title, INTRODUCTION, table(size_table(sizes)), cache_sentence(sizes)]
    return "\n\n".join(parts) + "\n"
