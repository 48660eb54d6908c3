"""Tuning: sensitivities are true, the search sees only its photos, a stop costs little."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

import structsam
from structsam.apply import apply_merging
from structsam.config import MergeConfig
from structsam.errors import UserError
from structsam_export.bundle.weights_source import ModelSource
from structsam_export.cli.main import main
from structsam_export.predict.image_file import read_image
from structsam_export.predict.preprocessing import preprocess
from structsam_export.tune import merging_loss
from structsam_export.tune.merging_loss import Loss, LossMeter
from structsam_export.tune.report import save_report, tune_table
from structsam_export.tune.schedule_file import Schedule, read_schedule
from structsam_export.tune.schedule_search import mean
from structsam_export.tune.tune import Goal, find_photos, tune

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Four photos of blobs on noise."""
    rng = np.random.default_rng(0)
    out = tmp_path_factory.mktemp("photos")
    for number in range(4):
        small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((128, 96), Image.Resampling.BICUBIC)
        image.save(out / f"photo, {number}.png")
    return out


def found(tiny_model, folder, out, **more):
    source = ModelSource(tiny_model, weights="random", seed=more.pop("seed", 0))
    note = more.pop("note", lambda text: None)
    merging = {"method": more.pop("method", "structsam"), "rate": more.pop("budget", 0.5)}
    placements = more.pop("placements", ("attention",))
    uniform = [MergeConfig(**merging, placement=placement) for placement in placements]
    return tune(source, [folder], uniform, (0.25, 0.5, 0.75), Goal(**more), out, note=note)


def test_the_loss_is_that_of_the_whole_encoder(tiny_model, tiny_spec, folder):
    """From the cached input of a block on, as from the photo on."""
    torch = pytest.importorskip("torch")
    sam = structsam.load_sam(tiny_model, weights="random")
    meter, photo = LossMeter(sam, tiny_spec), find_photos([folder])[0]
    config = MergeConfig(rate=(0.0, 0.5, 0.0))
    short, whole = meter.losses(config, photo, 1), meter.losses(config, photo)
    assert short.embedding == pytest.approx(whole.embedding, rel=1e-4)
    pixels = torch.from_numpy(preprocess(read_image(photo), tiny_spec.preprocessing)[0])
    with torch.inference_mode():
        merged = apply_merging(sam, config).image_encoder(pixels)
        stock = structsam.remove_merging(sam).image_encoder(pixels)
    expected = float((merged - stock).norm() / stock.norm())
    assert whole.embedding == pytest.approx(expected, rel=1e-3)
    nothing = meter.losses(MergeConfig(rate=0.0), photo)
    assert nothing.embedding < 1e-5 and nothing.masks < 1e-3
    assert 0 < whole.masks <= 1


def test_a_schedule_costs_no_more_and_loses_no_more_on_its_photos(tiny_model, folder, tmp_path):
    report = found(tiny_model, folder, tmp_path / "tune")
    assert report.best.cost <= report.uniform.cost * (1 + 1e-9)
    assert mean(report.best.search) <= mean(report.uniform.search)
    assert report.uniform.rates == (0.5,) * 3
    assert len(report.best.search) == 3 and len(report.best.held_out) == 1
    assert report.sensitivity.loss.shape == (3, 4)
    assert (report.sensitivity.loss[:, 0] == 0).all()  # rate 0 loses nothing
    saved = save_report(report, tmp_path / "tune")
    assert all(file.stat().st_size for file in saved.files)
    assert read_schedule(saved.files[0]) == report.schedule
    costs, losses = (list(axis) for axis in zip(*report.sensitivity.pareto(), strict=True))
    assert costs == sorted(costs) and losses == sorted(losses, reverse=True)


def test_the_better_placement_is_chosen_at_the_first_ones_cost(
    tiny_model, folder, tmp_path, monkeypatch
):
    """By what the search photos lose, where both cost at most the first one's uniform rate."""

    def by_rate(self, config, photo, start=0):
        rates = config.rate if isinstance(config.rate, tuple) else (config.rate,) * 3
        worse = {"attention": 1.0, "block": self.factor}[config.placement]
        return Loss(worse * sum(rates), 0.0)

    monkeypatch.setattr(merging_loss.LossMeter, "losses", by_rate)
    for factor, expected in ((0.1, "block"), (9.0, "attention")):
        monkeypatch.setattr(merging_loss.LossMeter, "factor", factor, raising=False)
        report = found(tiny_model, folder, tmp_path / expected, placements=("attention", "block"))
        assert report.best.placement == report.schedule.placement == expected
        assert report.uniform.placement == "attention"
        assert report.best.cost <= report.uniform.cost * (1 + 1e-9)
        saved = save_report(report, tmp_path / expected)
        assert saved.files[2].name == f"sensitivity_{expected}.csv"
        assert {c.placement for c in report.candidates} == {"attention", "block"}


def test_the_search_takes_rates_from_where_they_cost_most_quality(
    tiny_model, folder, tmp_path, monkeypatch
):
    """With one fragile block the schedule spares it, at the cost of the uniform rate."""

    def fragile(self, config, photo, start=0):
        rates = config.rate if isinstance(config.rate, tuple) else (config.rate,) * 3
        return Loss(0.01 * rates[0] + 10 * rates[1] + 0.01 * rates[2], 0.0)

    monkeypatch.setattr(merging_loss.LossMeter, "losses", fragile)
    report = found(tiny_model, folder, tmp_path / "tune")
    assert report.best.rates[1] < 0.5 < max(report.best.rates)
    assert report.beats_uniform


def test_the_least_cost_at_the_loss_of_the_uniform_rate(tiny_model, folder, tmp_path, monkeypatch):
    """As cheap as the best of all schedules, but for the step in which budgets are tried."""
    weights = (1.0, 4.0, 2.0)

    def linear(self, config, photo, start=0):
        rates = config.rate if isinstance(config.rate, tuple) else (config.rate,) * 3
        return Loss(float(np.dot(weights, rates)), 0.0)

    monkeypatch.setattr(merging_loss.LossMeter, "losses", linear)
    report = found(tiny_model, folder, tmp_path / "tune", least="cost")
    table, rows = report.sensitivity, range(3)
    schedules = [np.array(picked) for picked in itertools.product(range(4), repeat=3)]

    def cheapest(limit):
        losses = [np.dot(weights, np.take(table.rates, picked)) for picked in schedules]
        costs = [table.cost[rows, picked].sum() for picked in schedules]
        return min(cost for cost, loss in zip(costs, losses, strict=True) if loss <= limit)

    step = (table.cost.max(1).sum() - table.cost.min(1).sum()) / 2**6
    assert report.best.search[0].total <= report.uniform.search[0].total == 3.5
    assert cheapest(3.5) <= report.best.cost * (1 + 1e-9)
    assert report.best.cost <= cheapest(3.5) + step
    assert report.best.cost < 0.95 * report.uniform.cost and report.beats_uniform
    assert len({(c.placement, c.rates) for c in report.candidates}) == len(report.candidates)
    saved = save_report(report, tmp_path / "tune")  # beside a search for the least loss
    names = [file.name for file in saved.files[:2]]
    assert names == ["schedule-least-cost.json", "tune-least-cost.png"]
    assert "Fewer than 6 such photos" in str(tune_table(report).caption)
    less = found(tiny_model, folder, tmp_path / "less", least="cost", max_loss=1.3)
    assert less.best.search[0].total <= 1.3 and less.best.cost <= cheapest(1.3) + step
    assert not less.beats_uniform  # dearer than the uniform rate
    assert "1.3" in less.schedule.found["budget"]
    with pytest.raises(UserError, match="has a loss of at most 0.01"):
        found(tiny_model, folder, tmp_path / "none", least="cost", max_loss=0.01)


def test_held_out_photos_do_not_decide(tiny_model, folder, tmp_path):
    """Another held-out photo leaves the schedule as it is."""
    one = found(tiny_model, folder, tmp_path / "one")
    other = tmp_path / "photos"
    other.mkdir()
    for photo in folder.iterdir():
        Image.open(photo).save(other / photo.name)
    third = sorted(other.iterdir())[2]
    Image.new("RGB", (128, 96), (200, 30, 30)).save(third)
    two = found(tiny_model, other, tmp_path / "two")
    assert one.schedule.rates == two.schedule.rates
    assert one.best.search == two.best.search
    assert one.best.held_out != two.best.held_out


def test_a_stopped_search_goes_on(tiny_model, folder, tmp_path, monkeypatch):
    whole = found(tiny_model, folder, tmp_path / "whole")
    measured = []
    real = LossMeter.losses

    def stops(self, config, photo, start=0):
        measured.append(photo)
        if len(measured) == 7:
            raise KeyboardInterrupt
        return real(self, config, photo, start)

    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(LossMeter, "losses", stops)
        with pytest.raises(KeyboardInterrupt):
            found(tiny_model, folder, out)
    table = out / "sensitivity_attention.csv"
    table.write_text(table.read_text()[:-5])  # and its last line is cut
    told, reused = [], table.read_text().count("\n") - 1
    again = found(tiny_model, folder, out, note=told.append)
    assert reused and told == [
        f"{table}: {reused} of 36 measurements are there already; the rest run"
    ]
    assert again.best.rates == whole.best.rates
    np.testing.assert_allclose(again.sensitivity.loss, whole.sensitivity.loss, rtol=1e-4)
    with monkeypatch.context() as patch:
        patch.setattr(
            "structsam_export.tune.sensitivity._measured", lambda *a: pytest.fail("again")
        )
        found(tiny_model, folder, out)
    with pytest.raises(UserError, match="another `out=`"):
        found(tiny_model, folder, out, seed=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"placements": ["stage"]}, "Use attention or block"),
        ({"cost": "watts"}, "gmac, latency"),
        ({"least": "time"}, "loss, cost"),
        ({"max_loss": 0.1}, "`least='cost'`"),
        ({"least": "cost", "max_loss": 0.0}, "between 0 and"),
        ({"least": "cost", "max_loss": float("nan")}, "between 0 and"),
        ({"budget": 0.0}, "above 0"),
        ({"budget": 0.9}, "outside"),
        ({"method": "none"}, "structsam"),
    ],
)
def test_mistakes_are_refused_before_any_work(tiny_model, folder, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        found(tiny_model, folder, tmp_path / "tune", **change)
    assert not (tmp_path / "tune").exists()


def test_photos_must_be_there(folder, tmp_path):
    with pytest.raises(UserError, match="no photo or folder"):
        find_photos([tmp_path / "absent"])
    with pytest.raises(UserError, match=r"2 photo\(s\)"):
        find_photos(sorted(folder.iterdir())[:2])
    with pytest.raises(UserError, match="two photos are named"):
        find_photos([folder, folder])


def test_latency_can_be_the_cost(tiny_model, folder, tmp_path):
    report = found(tiny_model, folder, tmp_path / "tune", cost="latency")
    assert report.uniform.cost > 0 and report.cost_unit == "latency"


def test_schedules_that_are_none(tmp_path, tiny_model):
    path = tmp_path / "schedule.json"
    with pytest.raises(UserError, match="no schedule at"):
        read_schedule(path)
    for text in ("{", "[]", json.dumps({"format": 9}), json.dumps({"format": 1})):
        path.write_text(text)
        with pytest.raises(UserError, match="schedule"):
            read_schedule(path)
    with pytest.raises(UserError, match="found for tiny, not vit_b"):
        Schedule("tiny", "structsam", (0.5,) * 3).config("vit_b")


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_from_photos_to_an_export(tiny_model, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = run(
        "tune", "--model", tiny_model, "--weights", "random", "--images", folder,
        "--rates", "0,0.25,0.5,0.75", "--least", "cost", "--json",
    )  # fmt: skip
    rates = json.loads(capsys.readouterr().out)["schedule"]["rates"]
    assert made == 0
    asked = []

    def recorded(model, config, **rest):
        asked.append(config)
        raise UserError("exported")

    monkeypatch.setattr("structsam_export.pipeline.export", recorded)
    export = ("export", "--model", tiny_model, "--schedule", "tune/schedule-least-cost.json")
    assert run(*export) == 2
    (config,) = asked
    assert config.rate == tuple(rates) and config.method == "structsam"
    assert run(*export, "--rate", "0.5") == 2
    assert "--schedule says what --rate would" in capsys.readouterr().err
