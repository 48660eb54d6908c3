"""Parses every config.pbtxt of the repositories in argv as Triton's ModelConfig; prints JSON."""

import json
import sys
from pathlib import Path

from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

parsed = {}
for repository in sys.argv[1:]:
    for file in sorted(Path(repository).glob("*/config.pbtxt")):
        message = text_format.Parse(file.read_text(encoding="utf-8"), ModelConfig())
        parsed[str(file)] = json_format.MessageToDict(message, preserving_proto_field_name=True)
print(json.dumps(parsed))
