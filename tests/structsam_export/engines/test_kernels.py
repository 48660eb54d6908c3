"""Reading which kernels an engine runs, and of which blocks attention is fused."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from structsam_export.bundle.manifest import EngineEntry
from structsam_export.engines.kernels import (
    Kernel,
    attention_note,
    attention_of,
    attention_warning,
    inspect,
    kernels_of_inspector,
    kernels_of_rtx,
)

#: As TensorRT for RTX 1.7 writes it: a program, and how one of its kernels may be compiled.
PROGRAM = b"""\x00\x01
main {
 label bb1:
  function={ name=_gemm_mha_v2 fqn=_gemm_mha_v2_0x5a args={ "a" "b" } layers="[ONNX Layer: \
blocks.0.core/MatMul]
[ONNX Layer: blocks.0.core/Softmax]" swap_ab=false }
  wait={ name="__mye1" stream=1 event=1 layers="" }
  fully_connected={ name="blocks.1.core/MatMul" output={"x" } layers="[ONNX Layer: \
blocks.1.core/MatMul]" }
  runtime_fusion={ name=__myl_MaxSubExp binary=0 layers="[ONNX Layer: blocks.1.core/Softmax]" }
}
\xffweights\xfe
main {
  function={ name=_gemm_mha_v2 layers="[ONNX Layer: blocks.1.core/Softmax]" }
}
"""


def test_the_program_of_an_rtx_engine() -> None:
    kernels = kernels_of_rtx(memoryview(PROGRAM))
    assert [kernel.name for kernel in kernels] == [
        "_gemm_mha_v2",
        "blocks.1.core/MatMul",
        "__myl_MaxSubExp",
    ]
    assert kernels[0].nodes == ("blocks.0.core/MatMul", "blocks.0.core/Softmax")
    assert attention_of(kernels) == {"fused": [0], "separate": [1]}
    assert kernels_of_rtx(b"an engine that tells nothing") == []


def test_what_the_inspector_tells() -> None:
    def layer(name: str, *nodes: str, tactic: str = "") -> dict[str, str]:
        told = "\x1e".join(f"[ONNX Layer: {node}]" for node in nodes)
        return {"Name": name, "LayerType": "kgen", "TacticName": tactic, "Metadata": told}

    layers = [
        layer("__myl_Fc_myl0_1", "blocks.0.attn.qkv/Gemm"),
        layer("_gemm_mha_v2_myl0_2", "blocks.0.core/MatMul", "blocks.0.core/Softmax"),
        layer("__myl_myl0_3", "blocks.10.core/Attention", tactic="flash_fprop_wmma_f16"),
        layer("__myl_Softmax_myl0_4", "blocks.11.core/Softmax_2"),
    ]
    kernels = kernels_of_inspector(json.dumps({"Layers": layers}))
    assert attention_of(kernels) == {"fused": [0, 10], "separate": [11]}
    only_names = json.dumps({"Layers": ["a", "b"]})
    for nothing in (only_names, "{}", "no JSON", json.dumps({"Layers": 1})):
        assert attention_of(kernels_of_inspector(nothing)) == {}


def test_the_inspector_is_asked_for_json() -> None:
    told = {"JSON": '{"Layers": [{"Name": "a", "TacticName": "b"}]}', "ONELINE": "a b"}
    engine = SimpleNamespace(
        create_engine_inspector=lambda: SimpleNamespace(get_engine_information=told.get)
    )
    engines: dict[bytes, Any] = {b"a plan": engine}
    trt = SimpleNamespace(
        LayerInformationFormat=SimpleNamespace(JSON="JSON", ONELINE="ONELINE"),
        Runtime=lambda logger: SimpleNamespace(
            deserialize_cuda_engine=lambda plan: engines.get(bytes(plan))
        ),
    )
    assert inspect(trt, None, memoryview(b"a plan")) == [Kernel("a b", ())]
    assert inspect(trt, None, memoryview(b"refused")) == []


def test_a_block_is_fused_only_where_all_its_tiers_are() -> None:
    fused = Kernel("_gemm_mha_v2", ("blocks.3.core/Softmax",))
    other = Kernel("__myl_Softmax", ("blocks.3.core/Softmax_2",))
    assert attention_of([fused, other]) == {"fused": [], "separate": [3]}
    # a part of the node in another kernel, such as its last product, takes nothing from that
    assert attention_of([fused, Kernel("slice", fused.nodes)]) == {"fused": [3], "separate": []}


@pytest.mark.parametrize(
    ("attention", "note", "warning"),
    [
        ({}, None, None),
        ({"fused": [0, 1], "separate": []}, "attention fused in 2 of 2 blocks", None),
        (
            {"fused": [0], "separate": [1, 2]},
            "attention fused in 1 of 3 blocks",
            "attention of block 1, 2 is not fused",
        ),
    ],
)
def test_what_the_user_is_told(attention, note, warning) -> None:
    entry = EngineEntry("tensorrt", "encoder", "sm87", "e.engine", 1, "", {}, 1.0, attention)
    assert attention_note(entry) == note
    told = attention_warning(entry)
    assert (told is None) == (warning is None)
    assert told is None or (warning in told and "folded_padded" in told)
    before = {key: value for key, value in vars(entry).items() if key != "attention"}
    assert EngineEntry.from_dict(before).attention == {}  # a manifest of an earlier version
