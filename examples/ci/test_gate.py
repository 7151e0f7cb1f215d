"""Claims on a model as tests: `pip install edgeport pytest` is all that the fixture needs."""


def test_the_npu_gives_the_models_answers(edgeport_gate):
    gate = edgeport_gate("models/net.onnx", device="s24", precision="w8a8")
    gate.hold("sqnr_db:qnn_context_binary", ">=", 25, provenance=("emulated", "device"))


def test_nothing_falls_back_to_the_cpu(edgeport_gate):
    gate = edgeport_gate("models/net.onnx", device="s24", precision="w8a8")
    gate.hold("cpu_ops:qnn_context_binary", "<=", 0, provenance=("host",))
