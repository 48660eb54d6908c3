"""A Triton Python model that holds ONNX Runtime, for servers without the ONNX Runtime backend."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.inputs = [tensor["name"] for tensor in config["input"]]
        (file,) = Path(args["model_repository"], args["model_version"]).glob("*.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(file), options)

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        feeds = {
            name: pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in self.inputs
        }
        names = list(request.requested_output_names())
        found = self.session.run(names, feeds)
        arrays = map(np.ascontiguousarray, found)
        return pb_utils.InferenceResponse(list(map(pb_utils.Tensor, names, arrays)))
