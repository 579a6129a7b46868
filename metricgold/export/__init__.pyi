from .hub import export_hub as export_hub
from .one_step import export_onnx as export_onnx, export_torch as export_torch
