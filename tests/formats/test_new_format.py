"""A new format is a file of its own and one line; code that does not know it refuses it by name.

The package is laid out again with such a file and such a line, and run in a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import moe_export

PACKAGE = Path(moe_export.__file__).parent
LINE = "        nf4.FORMAT,\n"

INT3 = '''
"""int3: codes from -4 to 3 in the storage of int4."""

import ml_dtypes
import numpy as np

from moe_export.formats.facts import FormatFacts
from moe_export.formats.grid import Grid


def fit(values_GgN):
    scale_GN = np.abs(values_GgN).max(axis=1, initial=0) / 4
    return scale_GN.astype(np.float32), None


FORMAT = FormatFacts(name="int3", grid=Grid(3, np.dtype(ml_dtypes.int4), (-4, 3), fit))
'''

WITHOUT_EDITABLE = """
import sys
# The finder of an editable installation would find the modules of the checkout, not of the copy.
sys.meta_path = [each for each in sys.meta_path if "Redirecting" not in type(each).__name__]
"""

WALK = r"""
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from moe_export.demo import checkpoint_dir
from moe_export.families import open_checkpoint
from moe_export.families.stored import stored_tensors
from moe_export.formats import FORMATS, GRIDS, TABLE
from moe_export.formats import gptq
from moe_export.formats.storage import from_storage, to_storage
from moe_export.graph import predicted_bytes
from moe_export.op import rounding, spec
from moe_export.op.function import ragged_moe_function
from moe_export.op.packed import PackedLayout
from moe_export.op.triton.build import FORMATS_OF
from moe_export.planning.allocation import format_errors
from moe_export.quantization import Quantization, read_quantization, words_for
from moe_export.recipe.load import load_recipe
from moe_export.runner.estimate import estimate
from moe_export.testing.layer_models import ALL

recipes, scratch = Path(sys.argv[1]), Path(sys.argv[2])
checkpoint, model = open_checkpoint(checkpoint_dir())
weight_KN = np.random.default_rng(0).standard_normal((70, 5)).astype(np.float32)
int3 = Quantization("int3")


def known():
    made = FORMATS["int3"](weight_KN, 32, "float16", search=True)
    by_gptq = gptq.quantize(weight_KN, np.eye(70, dtype=np.float32), "int3", 32)
    parts = list(to_storage(made).values())
    again = from_storage("int3", parts, (70, 5), 32)
    node = spec.input_names(1, "int3")
    return {
        "error": float(np.abs(made.dequantized() - weight_KN).max()),
        "codes": sorted(set(made.codes.astype(int).ravel().tolist())),
        "gptq": by_gptq.codes.shape,
        "stored": [part.shape for part in parts],
        "again": bool((again.dequantized() == made.dequantized()).all()),
        "node": node[3:5],
        "number": spec.FORMATS.index("int3"),
        "bits": [GRIDS["int3"].code_bits, TABLE["int3"].storage_bits, TABLE["int3"].panel_bits],
        "words": [use for use in ("experts", "dense", "embedding") if "int3" in words_for(use)],
        "config": read_quantization({"quantization": int3.as_config()}, 1) == int3,
        "checkpoint": len(stored_tensors(replace(model, quantization=int3))),
        "timed": [name for name in ALL if "int3" in name],
        "cuda": [x for x, names in FORMATS_OF.items() if "int3" in names],
    }


def refused():
    quantized = replace(model, quantization=int3)
    demo = recipes / "demo_50pct.yaml"
    yield "rounding", lambda: rounding.quantize("int3", weight_KN.T, 32)
    made = FORMATS["int3"](weight_KN, 32, "float16")
    yield "error", lambda: rounding.squared_error("int3", made, weight_KN.T)
    yield "plan", lambda: format_errors(checkpoint, model, 0, ("int3",), 32)
    yield "portable", lambda: ragged_moe_function(2, "int3", 32)
    yield "packed", lambda: PackedLayout("int3", 32, 64, (32,))
    yield "prediction", lambda: predicted_bytes(quantized, "float32")
    yield "packed prediction", lambda: predicted_bytes(quantized, "float32", "packed")
    yield "recipe", lambda: load_recipe(demo, ("quantize={experts: int3}",))
    auto = "quantize={experts: auto, choices: [float, int3]}"
    yield "choices", lambda: load_recipe(demo, (auto, "plan={target_bytes: 9MB}"))
    yield "dense", lambda: load_recipe(demo, ("quantize={experts: int4, dense: int3}",))
    # An estimate of a recipe that was not checked, as a caller in Python may make one.
    recipe = load_recipe(demo, ("quantize={experts: int4}",))
    section = recipe.quantize.model_copy(update={"experts": "int3"})
    unchecked = recipe.model_copy(update={"quantize": section})
    yield "estimate", lambda: estimate(unchecked, checkpoint_dir())


outcome = {}
for name, call in refused():
    try:
        call()
        outcome[name] = ["accepted", ""]
    except Exception as error:
        outcome[name] = [type(error).__name__, str(error)]
print(json.dumps({"known": known(), "refused": outcome}))
"""


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("int3")
    package = root / "moe_export"
    package.mkdir()
    for entry in PACKAGE.iterdir():
        if entry.name != "formats":
            (package / entry.name).symlink_to(entry)
    shutil.copytree(PACKAGE / "formats", package / "formats")
    (package / "formats" / "int3.py").write_text(INT3)
    table = package / "formats" / "__init__.py"
    text = table.read_text()
    assert text.count(LINE) == 1
    text = text.replace("import floats,", "import floats, int3,")
    table.write_text(text.replace(LINE, LINE + "        int3.FORMAT,\n"))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EDITABLE + WALK, PACKAGE.parent / "recipes", root],
        env=os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


def test_a_format_in_its_own_file_rounds_is_stored_and_is_a_word_of_the_recipe(
    walked: dict[str, Any],
) -> None:
    known = walked["known"]
    assert 0.1 < known.pop("error") < 1  # a scale
    assert known == {
        "codes": list(range(-4, 4)),
        "gptq": [70, 5],
        "stored": [[175], [3, 5]],
        "again": True,
        "node": ["gate_0", "gate_scale_0"],
        "number": 8,
        "bits": [3, 4, None],
        "words": ["experts"],
        "config": True,
        "checkpoint": known["checkpoint"],
        "timed": [],
        "cuda": [],
    }


@pytest.mark.parametrize(
    ("consumer", "who"),
    [
        ("rounding", "the native library's rounding"),
        ("error", "the native library's rounding"),
        ("plan", "the native library's rounding"),
        ("portable", "the function of standard operators"),
        ("packed", "the packed layout of the native kernels"),
        ("prediction", "the function of standard operators"),
        ("packed prediction", "the packed layout of the native kernels"),
        ("estimate", "the function of standard operators"),
        ("recipe", "the native library's rounding"),
        ("choices", "the native library's rounding"),
    ],
)
def test_all_that_does_not_know_it_yet_refuses_it_by_name(
    walked: dict[str, Any], consumer: str, who: str
) -> None:
    kind, message = walked["refused"][consumer]
    assert kind == "RecipeError"
    assert f"format int3 is not known to {who}; choose another format" in message


@pytest.mark.parametrize(("consumer", "key"), [("recipe", "experts"), ("choices", "choices")])
def test_a_recipe_that_names_it_is_refused_with_its_key(
    walked: dict[str, Any], consumer: str, key: str
) -> None:
    _, message = walked["refused"][consumer]
    assert message.endswith(
        f"demo_50pct.yaml: quantize.{key}: {message[message.index('format ') :]}"
    )


def test_a_class_of_tensors_that_may_not_have_it_lists_those_that_it_may(
    walked: dict[str, Any],
) -> None:
    kind, message = walked["refused"]["dense"]
    assert kind == "RecipeError"
    assert "'quantize.dense' is 'int3'; input should be 'float', 'int8', 'int4'" in message
