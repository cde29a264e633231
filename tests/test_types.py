"""Types: grids, protocols, and the guards around MASK."""

from __future__ import annotations

import pytest
import torch
from fakes import FakeTokenizer, always_ar, neighbour_masked, table_ar, uniform_ar, uniform_masked

from hybrid.types import (
    AR_PHASES,
    MASK,
    MASKED_PHASES,
    PHASES,
    ARModel,
    Grid,
    ImageTokenizer,
    MaskedModel,
    Phases,
    fill_unknown,
    require_no_mask,
)


def test_grid() -> None:
    assert Grid(3, 5).places == 15 and str(Grid(3, 5)) == "3x5"
    assert Grid(1, 1).places == 1 and Grid(2, 3) == Grid(2, 3) != Grid(3, 2)
    for height, width in ((0, 4), (4, 0), (-1, 4)):
        with pytest.raises(ValueError, match=f"grid {height}x{width}: both sides must be at least 1 token"):
            Grid(height, width)


def test_the_fakes_are_what_they_stand_for() -> None:
    assert isinstance(uniform_ar(), ARModel) and not isinstance(uniform_ar(), MaskedModel)
    assert isinstance(uniform_masked(), MaskedModel) and not isinstance(uniform_masked(), ARModel)
    assert isinstance(FakeTokenizer(), ImageTokenizer)
    condition = table_ar().condition([1, 2], Grid(2, 3))
    both = condition.cat(condition.null())
    assert len(both) == 4 and both.labels_b.tolist() == [1, 2, -1, -1] and both.grid == Grid(2, 3)


def test_fake_ar_decodes_what_it_scores() -> None:
    model, tokens = table_ar(), torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])
    condition = model.condition([1, 2], Grid(2, 2))
    scored = model.score(tokens, condition)
    logits, state = model.prefill(condition, 4)
    assert torch.equal(logits, scored[:, 0])
    assert torch.equal(model.decode(tokens[:, :1], torch.zeros(2, dtype=torch.long), state)[:, 0], scored[:, 1])
    wide = model.decode(tokens[:, 1:3], torch.ones(2, dtype=torch.long), state)
    assert torch.equal(wide, scored[:, 2:])


def test_fake_state_forgets_what_is_truncated() -> None:
    model, tokens = table_ar(), torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])
    condition = model.condition([1, 2], Grid(2, 2))
    scored = model.score(tokens, condition)
    _, state = model.prefill(condition, 4)
    model.decode(torch.full((2, 3), 7), torch.zeros(2, dtype=torch.long), state)
    state.truncate(torch.tensor([0, 2]))
    assert state.tokens_bn.tolist() == [[MASK] * 4, [7, 7, MASK, MASK]]
    with pytest.raises(ValueError, match="a place that was skipped"):
        model.decode(tokens[:, 1:2], torch.tensor([1, 2]), state)
    logits = model.decode(torch.tensor([[3], [2]]), torch.tensor([0, 2]), state)
    assert torch.equal(logits[0, 0], scored[0, 1]) and torch.equal(logits[1, 0], scored[1, 3])


def test_fake_rules() -> None:
    assert always_ar(5).prefill(always_ar(5).condition([0]), 1)[0].argmax(-1).item() == 5
    model = neighbour_masked()
    tokens = torch.full((1, 16), MASK).index_fill(1, torch.tensor(0), 7)
    logits = model.logits(tokens, model.condition([2]))
    assert logits[0, 1].argmax() == 10 and logits[0, 1].max() > logits[0, 5].max() and logits[0, 5].argmax() == 3
    places = torch.tensor([[4, 9]])
    assert torch.equal(model.logits(tokens, model.condition([2]), places), logits[:, [4, 9]])
    tokenizer, grid = FakeTokenizer(), Grid(2, 3)
    codes = torch.tensor([[0, 15, 3, 7, 7, 8]])
    assert torch.equal(tokenizer.encode(tokenizer.decode(codes, grid)), codes)
    assert tokenizer.decode(codes, grid).shape == (1, 3, 4, 6)


def test_require_no_mask() -> None:
    tokens = torch.tensor([[0, 1], [2, 3]])
    assert require_no_mask(tokens) is tokens
    with pytest.raises(ValueError, match="1 of 4 places were never written; nothing to decode there"):
        require_no_mask(torch.tensor([[0, MASK], [2, 3]]))
    with pytest.raises(ValueError, match="1 of 2 places were never written"):
        FakeTokenizer().decode(torch.tensor([[0, MASK]]), Grid(1, 2))


def test_fill_unknown_by_name_only() -> None:
    tokens = torch.tensor([[4, MASK, MASK], [MASK, 2, 0]])
    assert fill_unknown(tokens, 9).tolist() == [[4, 9, 9], [9, 2, 0]]
    stand_in = torch.arange(6, dtype=torch.int32).view(2, 3)
    filled = fill_unknown(tokens, stand_in)
    assert filled.tolist() == [[4, 1, 2], [3, 2, 0]] and filled.dtype == torch.long
    assert tokens[0, 1] == MASK  # the given tensor is left alone
    assert torch.equal(fill_unknown(filled, 9), filled)


def test_phases() -> None:
    phases = Phases(dict.fromkeys(PHASES, 0.5), dict.fromkeys(PHASES, 1))
    assert phases.total_seconds == 0.5 * len(PHASES)
    assert {*AR_PHASES, *MASKED_PHASES, "condition", "align", "decode"} == {*PHASES}
    assert len(AR_PHASES) + len(MASKED_PHASES) + 3 == len(PHASES)
