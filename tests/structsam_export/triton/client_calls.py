"""Sends requests to a Triton server: (calls, at_once) as a pickle in, answers as a pickle out."""

import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype


def answer(call):
    model, feeds = call
    inputs = []
    for name, array in feeds.items():
        tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    try:
        found = client.infer(model, inputs)
    except InferenceServerException as error:
        return error.message()
    return {o.name: found.as_numpy(o.name) for o in found.get_response().outputs}


client = InferenceServerClient(sys.argv[1])
calls, at_once = pickle.load(sys.stdin.buffer)
with ThreadPoolExecutor(len(calls) if at_once else 1) as pool:
    answers = list(pool.map(answer, calls))
sys.stdout.buffer.write(pickle.dumps(answers))
