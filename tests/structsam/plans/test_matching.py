"""What the ToMe family shares: unit vectors, similarity with padding, weighted plans."""

from __future__ import annotations

import pytest
import torch

from structsam.plans.matching import best_match, cosine_similarity, plan_of_match, unit_vectors
from tests.structsam.token_maps import exact_tokens, random_tokens

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def test_unit_vectors_have_length_one_or_zero() -> None:
    tokens = random_tokens(2, 10)
    tokens[0, 3] = 0
    lengths = unit_vectors(tokens).norm(dim=-1)
    expected = torch.ones(2, 10)
    expected[0, 3] = 0
    torch.testing.assert_close(lengths, expected)


@pytest.mark.parametrize("scale", [300.0, 1e-4])
def test_unit_vectors_of_wide_half_precision_tokens(scale) -> None:
    tokens = (scale * torch.sign(random_tokens(1, 4, channels=768))).half()
    unit = unit_vectors(tokens)
    assert unit.dtype == torch.float16
    torch.testing.assert_close(unit.float().norm(dim=-1), torch.ones(1, 4), rtol=2e-3, atol=0)


def test_padding_is_most_similar_to_padding_and_least_to_the_rest() -> None:
    tokens = random_tokens(2, 6)
    padding = torch.tensor([[0, 0, 0, 0, 1, 1], [0, 1, 0, 1, 0, 0]]).bool()
    plain = cosine_similarity(tokens, tokens)
    found = cosine_similarity(tokens, tokens, padding, padding)
    for b in range(2):
        for i in range(6):
            for j in range(6):
                pair = int(padding[b, i]) + int(padding[b, j])
                expected = (float(plain[b, i, j]), -2.0, 2.0)[pair]
                assert float(found[b, i, j]) == expected
    assert plain.abs().max() <= 1 + 1e-6
    assert found.dtype == torch.float32


def test_a_known_similarity_changes_nothing_but_ties() -> None:
    tokens = random_tokens(2, 20)
    order = random_tokens(2, 20, channels=1, seed=7).squeeze(-1).argsort()
    sources, destinations = order[:, :12], order[:, 12:]
    padding = torch.zeros(2, 20).bool()
    padding[1, :6] = True
    similarity = cosine_similarity(tokens, tokens, padding, padding)
    known = best_match(tokens, sources, destinations, similarity=similarity)
    computed = best_match(tokens, sources, destinations, padding)
    torch.testing.assert_close(known[0], computed[0])
    real = ~padding.gather(1, sources)
    assert torch.equal(known[1][real], computed[1][real])
    assert known[1].max() < 8


def test_ties_go_to_the_first_in_the_list_or_to_the_lower_token() -> None:
    tokens = torch.ones(1, 6, 2)
    sources, destinations = torch.tensor([[0, 3]]), torch.tensor([[5, 1, 4, 2]])
    assert best_match(tokens, sources, destinations)[1].tolist() == [[0, 0]]
    similarity = cosine_similarity(tokens, tokens)
    found = best_match(tokens, sources, destinations, similarity=similarity)[1]
    assert found.tolist() == [[1, 1]], "token 1"


def test_weighted_slots_are_means_of_everything_they_stand_for() -> None:
    tokens = exact_tokens(1, 5)
    rows = [[4], [1, 3], [0, 2], [1, 1]]  # kept, destinations, sources, which destination
    kept, destinations, sources, match = (torch.tensor([row]) for row in rows)
    weights = torch.tensor([[4, 1, 3, 2, 5]])
    plan = plan_of_match((1, 5), kept, destinations, sources, match, weights=weights)
    assert plan.slot_of_token.tolist() == [[2, 1, 2, 2, 0]]
    assert plan.anchor_of_slot.tolist() == [[4, 1, 3]]
    assert plan.size_of_slot.tolist() == [[5, 1, 9]]
    mean = (4 * tokens[0, 0] + 3 * tokens[0, 2] + 2 * tokens[0, 3]) / 9
    torch.testing.assert_close(plan.merge(tokens)[0], torch.stack([*tokens[0, [4, 1]], mean]))
