"""Tests of the cards of exported and pruned models: facts, licence, and code that runs."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml

import moe_export
from moe_export.checkpoint import Checkpoint
from moe_export.demo import checkpoint_dir
from moe_export.documents.exported_tokenizer import TextStart
from moe_export.families import spec_of
from moe_export.op.platforms import this_platform
from moe_export.op.spec import Dtype
from moe_export.recipe import QuantizeSettings
from moe_export.reporting.card import (
    UNMEASURED,
    ExportFacts,
    Pruning,
    export_card,
    prune_card,
    write_card,
)
from moe_export.reporting.card_results import complete
from moe_export.reporting.card_snippets import NEW_TOKENS, PROMPT
from moe_export.reporting.card_source import Source, source_of
from moe_export.stages import quantize
from moe_export.stages.export import export_model
from moe_export.stages.job import Job
from moe_export.testing.families import QWEN3_5_MOE_TEXT
from moe_export.testing.tiny import masked_checkpoint, pruned_checkpoint, tiny_checkpoint
from tests.helpers.report_artifacts import REPORT
from tests.helpers.wheels import ops_wheel

WIDTHS = ((128, 64, 96, 32) * 4,) * 4
NODE_MODULES = Path(__file__).parents[2] / "examples" / "node" / "node_modules"
GENAI = importlib.util.find_spec("onnxruntime_genai") is not None


def front_matter(card: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return content


def snippets(folder: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


def shown(code: str, folder: Path) -> str:
    """Output of a snippet that runs in a folder, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(Path(moe_export.__file__).parents[1])}
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pruned_checkpoint(checkpoint_dir(), tmp_path_factory.mktemp("card") / "pruned", WIDTHS)


def quantized(pruned: Path, out: Path) -> Path:
    out.mkdir()
    settings = QuantizeSettings(experts="int4", dense="int8")
    quantize.run(Job(settings, checkpoint_dir(), {"prune": pruned}, out))
    return out


def check_snippets(folder: Path) -> None:
    """Runs the code of an export's card; all apps answer alike."""
    answer = moe_export.load(folder).generate(PROMPT, NEW_TOKENS)
    assert answer
    codes = snippets(folder)
    assert len(codes) == 3
    for code in codes:
        if GENAI or "onnxruntime_genai" not in code:
            assert shown(code, folder) == f"{answer}\n"


def test_the_code_of_a_float_export_runs(pruned: Path, tmp_path: Path) -> None:
    export_model(pruned, tmp_path / "out", "float32", library=True, source=checkpoint_dir())
    assert "libmoe_export_ops.so" in snippets(tmp_path / "out")[1]
    check_snippets(tmp_path / "out")


def test_the_code_of_a_float16_export_without_the_library_runs(
    pruned: Path, tmp_path: Path
) -> None:
    export_model(pruned, tmp_path / "out", "float16")
    assert "register_custom_ops_library" not in snippets(tmp_path / "out")[1]
    check_snippets(tmp_path / "out")


def test_the_code_of_a_packed_quantized_export_runs(pruned: Path, tmp_path: Path) -> None:
    source = quantized(pruned, tmp_path / "quantized")
    ops_wheel(tmp_path, "win_amd64", {"moe_export_ops/moe_export_ops.dll": b"for Windows"})
    here = this_platform()
    assert here is not None
    export_model(
        source,
        tmp_path / "out",
        "float32",
        library=True,
        platforms=("win_amd64", here.name),
        wheels=tmp_path,
        layout="packed",
    )
    assert (tmp_path / "out" / "moe_export_ops-win_amd64.dll").read_bytes() == b"for Windows"
    assert "without it" not in snippets(tmp_path / "out")[1]
    # As on another system than that of the export, whose library genai's config names.
    config = tmp_path / "out" / "genai_config.json"
    assert f'"{here.exported}"' in config.read_text()
    config.write_text(config.read_text().replace(here.exported, "moe_export_ops-win_amd64.dll"))
    check_snippets(tmp_path / "out")
    for code in snippets(tmp_path / "out")[1:]:
        if GENAI or "onnxruntime_genai" not in code:
            elsewhere = f"import platform\nplatform.machine = lambda: 'riscv64'\n{code}"
            with pytest.raises(
                AssertionError, match=r"riscv64 has no operator library .*platforms"
            ):
                shown(elsewhere, tmp_path / "out")
    assert "experts int4, dense int8" in (tmp_path / "out" / "README.md").read_text()


def test_the_code_for_a_model_with_states_of_fixed_size_runs(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source", base=QWEN3_5_MOE_TEXT.config)
    export_model(source, tmp_path / "out", "float16")
    assert "With ONNX Runtime 1.32 or newer" in (tmp_path / "out" / "README.md").read_text()
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    assert "moe_export.onnxruntime: >=1.32" in [f"{e.key}: {e.value}" for e in model.metadata_props]
    # Random bytes, which onnxruntime-genai decodes in another way; its tokens are tested elsewhere.
    answer = moe_export.load(tmp_path / "out", operator="portable").generate(PROMPT, NEW_TOKENS)
    assert shown(snippets(tmp_path / "out")[1], tmp_path / "out") == f"{answer}\n" != "\n"


@pytest.mark.skipif(
    not (NODE_MODULES / "@huggingface" / "transformers").exists() or shutil.which("node") is None,
    reason="transformers.js is not in examples/node; CI installs it there",
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_code_for_transformers_js_runs(dtype: Dtype, pruned: Path, tmp_path: Path) -> None:
    source = quantized(pruned, tmp_path / "quantized") if dtype == "float16" else pruned
    export_model(source, tmp_path / "out", dtype, web=True)
    card = (tmp_path / "out" / "README.md").read_text()
    (code,) = re.findall(r"```js\n(.*?)```", card, re.DOTALL)
    (tmp_path / "code.mjs").write_text(code)
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    done = subprocess.run(
        ["node", tmp_path / "code.mjs"],
        cwd=tmp_path / "out",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = moe_export.load(tmp_path / "out", operator="portable").generate(PROMPT, NEW_TOKENS)
    assert done.stdout == f"{answer}\n" != "\n"


def test_the_code_of_pruned_checkpoints_runs(pruned: Path, tmp_path: Path) -> None:
    spec, whole = (spec_of(Checkpoint(path).config) for path in (pruned, checkpoint_dir()))
    padded = masked_checkpoint(checkpoint_dir(), tmp_path / "padded", WIDTHS)
    source, pruning = source_of(checkpoint_dir()), Pruning.of(spec, whole)
    write_card(pruned, prune_card(source, spec, pruning, [], padded=False))
    write_card(padded, prune_card(source, whole, pruning, [], padded=True))
    (code,), (stock,) = snippets(pruned), snippets(padded)
    assert "moe_export" in code
    assert "moe_export" not in stock
    assert shown(code, pruned) == shown(stock, padded) != "\n"
    with pytest.raises(AssertionError, match="model type `moe_export_qwen2_moe`"):
        shown(stock, pruned)


def test_a_card_states_what_was_kept_and_where_it_is_from(pruned: Path, tmp_path: Path) -> None:
    export_model(pruned, tmp_path / "out", "float32", source=checkpoint_dir())
    card = (tmp_path / "out" / "README.md").read_text()
    kept, whole = 4 * (16 * 80 + 128), 4 * (16 * 128 + 128)
    assert (
        f"| expert dimensions kept | {100 * kept / whole:.1f} % ({kept:,} of {whole:,}) |" in card
    )
    assert "| experts per token | 2 |" in card
    assert "padded on either side" in card
    assert front_matter(card) == {
        "library_name": "onnxruntime",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "tags": ["onnx", "onnxruntime", "mixture-of-experts", "pruned"],
    }
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["moe_export.source"] == "moe-export-demo"
    assert metadata["moe_export.kept_share"] == f"{kept / whole:.4f}"
    assert metadata["moe_export.experts"] == "float"
    assert metadata["moe_export.needs_library"] == "false"


def test_licence_and_notices_of_the_source_travel_along(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models--Some--Model" / "snapshots" / "0123"
    source = tiny_checkpoint(folder)
    blobs = tmp_path / "hub" / "models--Some--Model" / "blobs"
    blobs.mkdir()
    (blobs / "ab").write_text("licence text")
    (folder / "LICENSE").symlink_to("../../blobs/ab")
    (folder / "NOTICE.txt").write_text("notice")
    (tmp_path / "secret").write_text("not for others")
    (folder / "LICENSE-other").symlink_to(tmp_path / "secret")
    (folder / "README.md").write_text(
        "---\nlicense: other\nlicense_name: some-research\nlicense_link: LICENSE\n"
        "evil: &a [*a, *a]\n---\n# Some model\n"
    )
    export_model(source, tmp_path / "out", "float32")
    assert (tmp_path / "out" / "LICENSE").read_text() == "licence text"
    assert not (tmp_path / "out" / "LICENSE").is_symlink()
    assert (tmp_path / "out" / "NOTICE.txt").read_text() == "notice"
    assert not (tmp_path / "out" / "LICENSE-other").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    stated = front_matter(card)
    assert stated["base_model"] == "Some/Model"
    assert [stated[key] for key in ("license", "license_name", "license_link")] == [
        "other",
        "some-research",
        "LICENSE",
    ]
    assert "some-research. Its files are here: `LICENSE`, `NOTICE.txt`." in card


def test_a_source_that_names_no_licence_is_said_to_name_none(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    export_model(source, tmp_path / "out", "float32")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license" not in front_matter(card)
    assert "The licence of source applies; its model card names none." in card


def test_bos_that_only_the_config_asks_for_is_in_the_code(pruned: Path) -> None:
    facts = ExportFacts(
        source=Source("x", None, {}),
        spec=spec_of(Checkpoint(pruned).config),
        pruning=Pruning(1, 2),
        dtype="float32",
        layout="portable",
        library=None,
        data_bytes=1,
        start=TextStart(has_bos=True, missing_bos=7),
        ends=[0],
        licence_files=[],
    )
    line = f'prompt = [7] + tokenizer.encode("{PROMPT}").ids'
    assert line in export_card(facts)
    assert line not in export_card(replace(facts, start=TextStart(True, None)))


def test_a_complete_card_has_the_results_of_its_model_and_the_code_that_it_had() -> None:
    table = "| | |\n|---|---|\n| made from | tiny |"
    card = f"# tiny\n\n{table}\n\n{UNMEASURED}\n\n## Run it in this folder\n\n```python\n1\n```\n"
    pruned = complete(card, REPORT, "pruned")
    assert UNMEASURED not in pruned
    assert pruned.startswith(f"# tiny\n\n{table}\n\n## Measured\n\n")
    assert pruned.endswith("## Run it in this folder\n\n```python\n1\n```\n")
    assert "| sums | 10 | 90 ± 5 % | 97 ± 2 % |" in pruned
    assert "100 (90.5–110), 100 (90.5–110)" in pruned
    source = complete(card, REPORT, "source")
    assert "gsm8k" not in pruned
    assert "0.625 ± 0.0100" in source
    assert "tokens/s" not in complete(card, REPORT, "checkpoint")
