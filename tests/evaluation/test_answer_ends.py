from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.artifacts.validation import AnswerEnds
from moe_export.documents.tokens import TokenSequence
from moe_export.evaluation.answer_ends import answer_ends, without_ends

END, VOCABULARY = 0, 8


def says(next_token: dict[int, int]) -> Any:
    """Logits of a model that follows each token by one other."""

    def logits_of(sequences: list[TokenSequence]) -> list[NDArray[np.float32]]:
        return [
            np.eye(VOCABULARY, dtype=np.float32)[[next_token.get(t, 1) for t in each.tokens]]
            for each in sequences
        ]

    return logits_of


DOCUMENTS = [
    TokenSequence([5, 6, 2, END], 2),
    TokenSequence([5, 6, 3, END], 2),
    TokenSequence([5, 6, 4, END], 2, alternatives=(TokenSequence([5, 6, 7, END], 2),)),
    TokenSequence([5, 6, 4, 4], 2),  # cut, so it has no end
    TokenSequence([5, 6, END], 2),  # an empty answer cannot do without its end
]


def test_half_of_the_answers_must_end_for_the_token_to_be_required() -> None:
    two = answer_ends(says({2: END, 3: END}), DOCUMENTS, [END], VOCABULARY)
    assert two == AnswerEnds(documents=3, foreseen=2, required=True)
    one = answer_ends(says({2: END}), DOCUMENTS, [END], VOCABULARY)
    assert one == AnswerEnds(documents=3, foreseen=1, required=False)
    assert answer_ends(says({}), DOCUMENTS[3:], [END], VOCABULARY) is None
    assert answer_ends(says({}), DOCUMENTS, [], VOCABULARY) is None


def test_documents_lose_their_end_in_all_choices() -> None:
    cut = without_ends(DOCUMENTS, [END])
    assert [each.tokens[2:] for each in cut] == [[2], [3], [4], [4, 4], [END]]
    assert cut[2].alternatives[0].tokens == [5, 6, 7]
    assert cut[0].prompt_tokens == 2
