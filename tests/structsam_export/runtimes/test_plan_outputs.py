"""Plans are outputs that every runtime gives when it is asked, and fetches only then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from structsam.errors import UserError
from structsam_export.bundle.folder import Bundle
from structsam_export.bundle.manifest import Part, TensorSpec
from structsam_export.parity.reference import Reference, load_reference
from structsam_export.predict.preprocessing import read_photo
from structsam_export.runtimes import BACKENDS, RunOptions
from structsam_export.runtimes.base import Arrays, Runner

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("one_torch_thread")

SPECS = {
    name: TensorSpec(name, shape, kind)
    for name, shape, kind in (
        ("x", (1, 2), "float32"),
        ("y", (1, 2), "float32"),
        ("slot_of_token.0", (1, 4), "int32"),
        ("anchor_of_slot.0", (1, 2), "int32"),
    )
}


class Answers(Runner):
    """Gives zeros of what it was asked for, but for what is planted."""

    def __init__(self, **planted: np.ndarray) -> None:
        x, y, *plans = SPECS.values()
        super().__init__(Part("net.onnx", (x,), (y,), plan_outputs=tuple(plans)))
        self.planted = planted
        self.asked: list[list[str]] = []

    def open(self) -> None: ...

    def close(self) -> None: ...

    def _run(self, feeds: Any, outputs: Sequence[TensorSpec]) -> Arrays:
        self.asked.append([spec.name for spec in outputs])
        return {s.name: np.zeros(s.shape, s.dtype) for s in outputs} | self.planted


X = {"x": np.zeros((1, 2), np.float32)}


def test_only_what_is_asked_is_computed() -> None:
    runner = Answers()
    assert list(runner.run(X)) == ["y"]
    assert list(runner.run(X, ["anchor_of_slot.0"])) == ["anchor_of_slot.0"]
    assert set(runner.run(X, ["slot_of_token.0", "y", "y"])) == {"y", "slot_of_token.0"}
    assert runner.run(X, []) == {}
    assert runner.asked == [["y"], ["anchor_of_slot.0"], ["slot_of_token.0", "y"], []]
    with pytest.raises(UserError, match=r"no output is named 'z'. There are: y, slot_of_token.0, "):
        runner.run(X, ["y", "z"])


@pytest.mark.parametrize(
    ("planted", "message"),
    [
        ({"y": np.zeros((2, 1), np.float32)}, r"output y is float32 of shape \(2, 1\)"),
        ({"y": np.zeros((1, 2), np.float64)}, r"output y is float64 .* not float32 of \(1, 2\)"),
        ({"z": np.zeros(1)}, r"outputs are \['y', 'z'\], not \['y'\]"),
    ],
)
def test_an_answer_that_breaks_the_contract_is_a_defect(
    planted: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        Answers(**planted).run(X)


@pytest.fixture(scope="module")
def reference(tiny_bundle: Bundle) -> Reference:
    photo = tiny_bundle.file(tiny_bundle.manifest["reference_images"][0])
    return load_reference(read_photo(photo, tiny_bundle.preprocessing))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_every_runtime_gives_the_plans_of_the_reference(
    tiny_bundle: Bundle, tiny_model: str, reference: Reference, backend: str
) -> None:
    if reason := BACKENDS[backend].why_unavailable():
        pytest.skip(reason)
    part = tiny_bundle.part("encoder")
    names = [spec.name for spec in part.plan_outputs]
    feeds = {"image": reference.photo.pixels}
    once = RunOptions(threads=1, keep_compiled=False)  # the bundle belongs to all tests
    with BACKENDS[backend].runner(tiny_bundle, "encoder", once) as runner:
        found = runner.run(feeds, [*names, "image_embeddings"])
        few = runner.run(feeds, names[2:3])
        plain = runner.run(feeds)
    assert set(found) == {*names, "image_embeddings"} and list(plain) == ["image_embeddings"]
    np.testing.assert_allclose(found["image_embeddings"], plain["image_embeddings"], atol=1e-4)
    assert list(few) == names[2:3]
    for index, plan in reference.plans.items():
        for name, expected in zip(("slot_of_token", "anchor_of_slot"), plan, strict=True):
            assert found[f"{name}.{index}"].dtype == np.int32
            np.testing.assert_array_equal(found[f"{name}.{index}"], expected)
    assert {name.rpartition(".")[2] for name in names} == set(map(str, reference.plans))


def test_onnx_runtime_fetches_and_torch_records_nothing_more(
    tiny_bundle: Bundle,
    tiny_model: str,
    reference: Reference,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import onnxruntime

    from structsam_export.graph import modules

    fetched: list[str] = []

    class Binding(onnxruntime.IOBinding):  # type: ignore[misc]
        def bind_output(self, name: str, *more: Any) -> None:
            fetched.append(name)
            super().bind_output(name, *more)

    feeds = {"image": reference.photo.pixels}
    with BACKENDS["onnxruntime"].runner(tiny_bundle, "encoder", RunOptions()) as runner:
        session = runner._session  # type: ignore[attr-defined]
        monkeypatch.setattr(session, "io_binding", lambda: Binding(session))
        runner.run(feeds)
        runner.run(feeds, ["anchor_of_slot.2"])
    assert fetched == ["image_embeddings", "anchor_of_slot.2"]

    def never(*_: Any) -> None:
        raise AssertionError("nobody asked for plans")

    monkeypatch.setattr(modules, "record_plans", never)
    with BACKENDS["torch"].runner(tiny_bundle, "encoder", RunOptions(threads=1)) as runner:
        assert list(runner.run(feeds)) == ["image_embeddings"]
        with pytest.raises(AssertionError, match="nobody asked"):
            runner.run(feeds, ["anchor_of_slot.2"])
