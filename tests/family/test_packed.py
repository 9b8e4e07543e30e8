"""Test of packed documents in every family: each is computed as it is alone."""

from __future__ import annotations

import torch

from moe_export.documents.tokens import TokenSequence
from moe_export.families import spec_of
from moe_export.torch_model import load_torch_model
from moe_export.tuning.forward import run_packed
from moe_export.tuning.packing import batch_of, packs
from tests.family.conftest import Subject

LIMIT = 1e-4


def test_a_packed_document_is_computed_as_it_is_alone(subject: Subject) -> None:
    model = load_torch_model(subject.source, torch.float32)
    draw = torch.Generator().manual_seed(2)
    lengths = (9, 5, 12, 7)
    documents = [
        TokenSequence(torch.randint(0, 256, (length,), generator=draw).tolist(), 2)
        for length in lengths
    ]
    packed = [[0, 1], [2, 3]] if packs(spec_of(subject.row.config)) else [[0], [2]]
    batch = batch_of(packed, documents, 20, 0.5)
    with torch.no_grad():
        together_RLD = run_packed(model, batch)
    for row, numbers in enumerate(packed):
        for number in numbers:
            alone = batch_of([[number]], documents, lengths[number] - 1, 0.5)
            with torch.no_grad():
                alone_LD = run_packed(model, alone)[0]
            found_LD = together_RLD[row][batch.document_RL[row] == number]
            torch.testing.assert_close(found_LD, alone_LD, rtol=0, atol=LIMIT)
