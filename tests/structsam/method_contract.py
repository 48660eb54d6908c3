"""The contract of a merging method as functions of (method class name, options, ...).

They look the name up in METHODS when they run, so a method that a test puts there is checked by
the same code as the shipped ones.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch

from structsam.errors import UserError
from structsam.methods import METHODS
from structsam.methods.options import method_options
from tests.structsam.token_maps import WINDOW, cut_windows, edge_windows, random_tokens

GRIDS = [(WINDOW, WINDOW), (64, 64)]
#: Values to try for options that are numbers.
NUMBERS = {int: (0, 1, 12345), float: (0.0, 0.45, 0.9)}
#: Options whose slot features are no means, by value: what they are instead.
OTHER_FEATURES = ("replace", "max_magnitude")


def variants(name: str) -> list[dict[str, Any]]:
    """The defaults, then every other value of every option, one at a time."""
    found: list[dict[str, Any]] = [{}]
    for option in method_options(METHODS[name]).values():
        values = option.choices or NUMBERS[option.kind]
        found += [{option.name: value} for value in values if value != option.default]
    return found


def combinations(name: str) -> list[dict[str, Any]]:
    """All combinations of the options that are choices."""
    options = [o for o in method_options(METHODS[name]).values() if o.choices]
    return [
        dict(zip([o.name for o in options], values, strict=True))
        for values in itertools.product(*(o.choices for o in options))
    ]


def cap_of(name: str, grid: tuple[int, int], **options: Any) -> float:
    """The largest rate that this map allows."""
    method = METHODS[name](grid, 0.0, **options)
    return min(method.rate_limit, method.max_removed / method.num_tokens)


def cases(grids=GRIDS) -> list[tuple[str, dict[str, Any], tuple[int, int], float]]:
    """METHODS x options x grids x rates {0, 1/4, 1/2, cap}, where the option suits the grid."""
    found = []
    for name, grid in itertools.product(METHODS, grids):
        for options in variants(name):
            try:
                cap = cap_of(name, grid, **options)
            except UserError:
                continue  # cells of 4x4 in a window
            rates = {rate for rate in (0.0, 0.25, 0.5) if rate <= cap} | {cap}
            if grid != GRIDS[0] and options:  # the large map with options: once is enough
                if type(next(iter(options.values()))) in NUMBERS:
                    continue
                rates = {0.5}
            found += [(name, options, grid, rate) for rate in sorted(rates)]
    return found


def window_cases(rates=(0.0, 0.25, 0.5, 1.0), numbers=True):
    """The cases of one window; rate 1 means the cap, and numeric options can be left out."""
    found = []
    for name, options, grid, rate in cases([(WINDOW, WINDOW)]):
        is_cap = rate == cap_of(name, grid, **options)
        if not (rate in rates or (is_cap and 1.0 in rates)):
            continue
        if numbers or not options or type(next(iter(options.values()))) not in NUMBERS:
            found.append((name, options, rate))
    return found


def label(value: Any) -> str | None:
    """Readable test ids."""
    if isinstance(value, dict):
        return ",".join(f"{k}={v}" for k, v in value.items()) or "default"
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else None


def check_plan(method, plan, tokens, padding=None) -> None:
    """The invariants of methods.md 0.2, for every map of the batch."""
    batch, total, slots = len(tokens), method.num_tokens, method.num_slots
    assert type(slots) is int
    assert slots == total - method.num_removed == plan.num_slots
    assert plan.grid == method.grid
    assert plan.slot_of_token.shape == (batch, total)
    assert plan.anchor_of_slot.shape == plan.size_of_slot.shape == (batch, slots)
    for table in (plan.slot_of_token, plan.anchor_of_slot, plan.size_of_slot):
        assert table.dtype == torch.int64
    if plan.slot_grid is not None:
        assert math.prod(plan.slot_grid) == slots
    for b in range(batch):
        slot, anchor = plan.slot_of_token[b], plan.anchor_of_slot[b]
        assert int(anchor.min()) >= 0
        assert int(anchor.max()) < total
        assert int(slot.min()) >= 0
        assert int(slot.max()) < slots
        assert torch.equal(slot[anchor], torch.arange(slots)), "an anchor is not in its own slot"
        assert torch.equal(plan.size_of_slot[b], torch.bincount(slot, minlength=slots))
        if padding is not None:
            of_slot = padding[b][anchor]
            assert torch.equal(of_slot[slot], padding[b]), "real tokens and padding share a slot"
            check_padding_slots(method, slot, padding[b])


def check_padding_slots(method, slot, padding) -> None:
    """All padding is in the slots that the method promises, and nothing else."""
    real = ~padding.reshape(method.grid)
    rows, columns = int(real.any(1).sum()), int(real.any(0).sum())
    promised = method.padding_slots((rows, columns))
    if promised is not None:
        with_real = torch.zeros(method.num_slots, dtype=torch.bool).scatter(
            0, slot[~padding], torch.ones(1, dtype=torch.bool).expand(int((~padding).sum()))
        )
        assert not with_real[:promised].any(), "a slot of padding holds a real token"
        assert with_real[promised:].all(), "a slot of padding is not among the first"


def check_features(method, plan, tokens) -> None:
    """What `merge` computes: a float64 mean, the anchor's own feature, or the largest value."""
    before = tokens.clone()
    merged = plan.merge(tokens)
    assert torch.equal(tokens, before), "merging changes its input"
    assert merged.shape == (len(tokens), method.num_slots, tokens.shape[2])
    assert merged.dtype == tokens.dtype
    rows = merged.gather(1, plan.slot_of_token.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))
    assert torch.equal(plan.unmerge(merged), rows)
    kind = getattr(method, "feature", "mean")
    exact = tokens.double().numpy()
    for b in range(len(tokens)):
        slot, slots = plan.slot_of_token[b].numpy(), method.num_slots
        if kind == "replace":
            expected = exact[b][plan.anchor_of_slot[b].numpy()]
        elif kind == "max_magnitude":
            expected = np.zeros((slots, exact.shape[2]))
            np.maximum.at(expected, slot, abs(exact[b]))
            # the sign is one that a member of that magnitude has
            found = merged[b].double().numpy()
            shown = found[slot]
            has = np.zeros_like(expected)
            np.maximum.at(has, slot, (exact[b] == shown).astype(float))
            assert has.all(), "a value that no member of the slot has"
            expected = np.copysign(expected, found)
        else:
            expected = np.zeros((slots, exact.shape[2]))
            np.add.at(expected, slot, exact[b])
            expected /= np.bincount(slot, minlength=slots)[:, None]
        largest = abs(exact[b]).max()
        np.testing.assert_allclose(
            merged[b].double().numpy(), expected, rtol=1e-5, atol=1e-6 * max(largest, 1e-35)
        )


def check_constant_survives(plan, like) -> None:
    row = torch.tensor([1.5, -0.25, 3.0, 0.0])
    constant = row.expand(*like.shape[:2], 4).contiguous()
    back = plan.unmerge(plan.merge(constant))
    torch.testing.assert_close(back, constant, rtol=1e-5, atol=0)


def check_same(plan, b, other, b_other, tokens, tokens_other) -> None:
    """Map b of one plan is map b_other of another."""
    for field in ("slot_of_token", "anchor_of_slot", "size_of_slot"):
        assert torch.equal(getattr(plan, field)[b], getattr(other, field)[b_other]), field
    torch.testing.assert_close(plan.merge(tokens)[b], other.merge(tokens_other)[b_other])


def check_case(name: str, options: dict[str, Any], grid: tuple[int, int], rate: float) -> None:
    """A map without padding: invariants, values, determinism."""
    method = METHODS[name](grid, rate, **options)
    assert method.name == name
    assert METHODS[name](grid, rate, **options) == method
    tokens = random_tokens(1 if math.prod(grid) > 1000 else 2, math.prod(grid), channels=6)
    before = tokens.clone()
    plan = method.plan(tokens)
    assert torch.equal(tokens, before), "planning changes its input"
    check_plan(method, plan, tokens)
    check_features(method, plan, tokens)
    check_constant_survives(plan, tokens)
    if not method.num_removed:
        torch.testing.assert_close(plan.unmerge(plan.merge(tokens)), tokens, rtol=0, atol=0)
    if math.prod(grid) > 1000 and options:
        return
    torch.manual_seed(99)
    again = METHODS[name](grid, rate, **options).plan(tokens.clone())
    for b in range(len(tokens)):
        check_same(plan, b, again, b, tokens, tokens)


def check_not_finite(name: str, options: dict[str, Any], rate: float, value: float) -> None:
    """Plans of maps with one such token, and of such tokens alone, are still plans."""
    method = METHODS[name]((WINDOW, WINDOW), rate, **options)
    tokens = random_tokens(2, WINDOW**2, channels=6)
    tokens[0, 17] = value
    tokens[1] = value
    plan = method.plan(tokens)
    check_plan(method, plan, tokens)
    back = plan.unmerge(plan.merge(tokens))
    assert not back[1].isfinite().any()
    if getattr(method, "feature", "mean") == "mean":
        assert not back[0, 17].isfinite().any()


def check_padded_case(name: str, options: dict[str, Any], rate: float, kind="random") -> None:
    """The four kinds of windows in one batch; each alone gives the same plan."""
    method = METHODS[name]((WINDOW, WINDOW), rate, **options)
    windows = edge_windows(method, kind)
    plan = method.plan(windows.tokens, windows.energy, windows.padding)
    check_plan(method, plan, windows.tokens, windows.padding)
    check_features(method, plan, windows.tokens)
    check_constant_survives(plan, windows.tokens)
    for b in range(len(windows.tokens)):
        own = slice(b, b + 1)
        energy = None if windows.energy is None else windows.energy[own]
        padding = windows.padding[own] if b else None  # the whole window needs no mask
        alone = method.plan(windows.tokens[own], energy, padding)
        check_same(plan, b, alone, 0, windows.tokens, windows.tokens[own])


def check_degenerate(name: str, options: dict[str, Any], rate: float, tokens) -> None:
    """Maps without information: a valid plan, numbers that are numbers."""
    method = METHODS[name]((WINDOW, WINDOW), rate, **options)
    plan = method.plan(tokens)
    check_plan(method, plan, tokens)
    check_features(method, plan, tokens)
    assert torch.isfinite(plan.merge(tokens)).all()
    # and with padding around a corner of the map
    image = tokens[0].reshape(WINDOW, WINDOW, -1)[:8, :8]
    windows = cut_windows(method, image)
    plan = method.plan(windows.tokens, windows.energy, windows.padding)
    check_plan(method, plan, windows.tokens, windows.padding)
    assert torch.isfinite(plan.merge(windows.tokens)).all()


def check_half(name: str, options: dict[str, Any], rate: float) -> None:
    """FP16 tokens are planned and keep their type."""
    method = METHODS[name]((WINDOW, WINDOW), rate, **options)
    windows = edge_windows(method)
    tokens = windows.tokens.half()
    plan = method.plan(tokens, windows.energy, windows.padding)
    check_plan(method, plan, tokens, windows.padding)
    merged = plan.merge(tokens)
    assert merged.dtype == plan.unmerge(merged).dtype == torch.float16
    full = plan.merge(tokens.float())
    torch.testing.assert_close(merged.float(), full, rtol=2e-3, atol=2e-3)


def check_method(name: str) -> int:
    """All of the above for one method, options by options; returns the number of cases."""
    done = 0
    for found, options, grid, rate in cases([(WINDOW, WINDOW)]):
        if found != name:
            continue
        check_case(name, options, grid, rate)
        check_padded_case(name, options, rate)
        check_degenerate(name, options, rate, torch.zeros(1, WINDOW**2, 3))
        check_half(name, options, rate)
        done += 1
    return done
