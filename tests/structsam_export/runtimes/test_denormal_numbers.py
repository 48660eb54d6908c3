"""Numbers below 1e-38 are flushed to zero on CPUs, in every thread: they are slow, and many."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64", "aarch64"), reason="other arithmetic"
)
COUNT = 1 << 22
CODE = f"""
import sys, torch
from structsam_export.runtimes.torch_on_cpu import use_fast_settings
if sys.argv[1] == "fast":
    use_fast_settings()
torch.set_num_threads(2)
tiny = torch.full(({COUNT},), 1e-30)
print(int((tiny * 1e-10 != 0).sum()))
"""


@pytest.mark.parametrize(("mode", "expected"), [("fast", 0), ("plain", COUNT)])
def test_torch_flushes_them_in_a_fresh_process(mode: str, expected: int) -> None:
    pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, "-c", CODE, mode], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == expected


RUN = f"""
import sys
from pathlib import Path
import numpy as np, onnxruntime as ort
from structsam_export.runtimes.onnxruntime_backend import OnnxRuntimeRunner
from structsam_export.bundle.manifest import Part, TensorSpec
from structsam_export.runtimes.base import RunOptions

file, tiny = Path(sys.argv[1]), np.full({COUNT}, 1e-30, np.float32)
if sys.argv[2] == "plain":
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found = session.run(None, {{"x": tiny}})[0]
else:
    specs = [(TensorSpec(name, ({COUNT},), "float32"),) for name in "xy"]
    part, provider = Part(file.name, *specs), "CPUExecutionProvider"
    with OnnxRuntimeRunner(part, file, provider, RunOptions(2)) as runner:
        found = runner.run({{"x": tiny}})["y"]
print(int((found != 0).sum()))
"""


RUN_OPENVINO = f"""
import sys
from pathlib import Path
import numpy as np, openvino
from structsam_export.bundle.folder import Bundle
from structsam_export.runtimes import BACKENDS, RunOptions

file, tiny = Path(sys.argv[1]), np.full({COUNT}, 1e-30, np.float32)
if sys.argv[2] == "plain":
    request = openvino.Core().compile_model(str(file), "CPU").create_infer_request()
    found = list(request.infer({{"x": tiny}}).values())[0]
else:
    x, y = ([{{"name": name, "shape": [{COUNT}], "dtype": "float32"}}] for name in "xy")
    part = {{"file": file.name, "inputs": x, "outputs": y, "profile": {{}}}}
    bundle = Bundle(file.parent, {{"precision": {{"name": "fp32"}}, "encoder": part}})
    with BACKENDS["openvino"].runner(bundle, "encoder", RunOptions(2)) as runner:
        found = runner.run({{"x": tiny}})["y"]
print(int((found != 0).sum()))
"""


@pytest.mark.parametrize(("mode", "expected"), [("fast", 0), ("plain", COUNT)])
@pytest.mark.parametrize(("runtime", "code"), [("onnxruntime", RUN), ("openvino", RUN_OPENVINO)])
def test_runtimes_flush_them_in_a_fresh_process(
    tmp_path: Path, runtime: str, code: str, mode: str, expected: int
) -> None:
    """The calling thread too: ONNX Runtime lets the first session of a process decide for it."""
    pytest.importorskip(runtime)
    onnx = pytest.importorskip("onnx")
    kind = onnx.TensorProto.FLOAT
    x, y = (onnx.helper.make_tensor_value_info(name, kind, [COUNT]) for name in "xy")
    small = onnx.helper.make_tensor("small", kind, [], [1e-10])
    node = onnx.helper.make_node("Mul", ["x", "small"], ["y"])
    graph = onnx.helper.make_graph([node], "tiny", [x], [y], [small])
    opset = [onnx.helper.make_opsetid("", 20)]
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "tiny.onnx"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "tiny.onnx"), mode],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == expected


SCORE = """
import threading
import numpy as np
from structsam.evaluation.metrics.nsd import NormalizedSurfaceDistance
from structsam_export.runtimes.torch_on_cpu import use_fast_settings

use_fast_settings()
truth = np.zeros((400, 1024), bool)
truth[:166] = True
truth[100:, 300:] = False
predicted = np.roll(truth, 3, 1)
score = threading.Thread(target=lambda: print(NormalizedSurfaceDistance()(predicted, truth)))
score.start()
score.join()
"""


def test_masks_are_scored_in_threads_that_flush_them() -> None:
    """scipy's tree steps from a coordinate of 0 to the number next to it, which is then 0 again."""
    pytest.importorskip("torch")
    pytest.importorskip("scipy")
    done = subprocess.run([sys.executable, "-c", SCORE], capture_output=True, text=True)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr}"
    assert 0.5 < float(done.stdout) < 1
