"""Choices between integers, so written that OpenVINO makes them right where denormals are flushed.

On x86 CPUs without AVX-512, OpenVINO 2026.4 tests the condition of a `Select` of integers as the
float that its bits spell. The 1 of "true" spells a denormal, so with
`CPU_DENORMALS_OPTIMIZATION` all conditions are false. In float32 the condition is 1.0.
"""

from __future__ import annotations

from typing import Any


def select_in_floats(model: Any) -> int:
    """Let every `Select` of integers choose between float32, and convert what it chose.

    Exact for what this project's graphs choose between, slots and ranks: below 2^24.

    Args:
        model: an `openvino.Model`, which is changed.

    Returns:
        How many there were.
    """
    from openvino import opset13 as operators

    count = 0
    for node in model.get_ordered_ops():
        kind = node.get_output_element_type(0) if node.get_type_name() == "Select" else None
        if kind is None or not kind.is_integral_number():
            continue
        condition, yes, no = (node.input_value(index) for index in range(3))
        chosen = operators.select(
            condition, operators.convert(yes, "f32"), operators.convert(no, "f32")
        )
        whole = operators.convert(chosen, kind)
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(whole.output(0))
        count += 1
    return count
