"""The reasons of Qualcomm's validator, as its log gives them."""

from __future__ import annotations

from edgeport.runtimes.qnn_validator import read_reasons

LOG = """
2026 [V:onnxruntime:, x.cc:1 LogNodeSupport] Validation PASSED for 1 nodes in OrtNodeUnit (Conv) :
\tOperator type: Conv Node name: conv Node index: 0

2026 [V:onnxruntime:, x.cc:1 LogNodeSupport] Validation FAILED for 3 nodes in OrtNodeUnit (Add) :
\tOperator type: DequantizeLinear Node name: add_dq Node index: 1
\tOperator type: Add Node name: my add Node index: 2
\tREASON : QNN.backendValidateOpConfig() failed with error code 3110

2026 [V:onnxruntime:, x.cc:1 LogNodeSupport] Validation FAILED for 1 nodes in OrtNodeUnit (DFT) :
\tOperator type: DFT Node name: dft Node index: 6
\tREASON : Operators of type `DFT` are not supported by QNN EP.DFT node `dft` will not be assigned.
2026 [V:onnxruntime:, x.cc:1 LogNodeSupport] Validation FAILED for 1 nodes in OrtNodeUnit (Mod) :
\tOperator type: Mod Node name: mod Node index: 7
"""


def test_each_refused_node_gets_its_reason() -> None:
    reasons = read_reasons(LOG)
    assert set(reasons) == {"add_dq", "my add", "dft", "mod"}
    assert reasons["my add"] == reasons["add_dq"]
    assert "3110" in reasons["my add"]
    assert "rank" in reasons["my add"]
    assert reasons["dft"] == "onnxruntime's QNN provider has no such operator"
    assert reasons["mod"] == "refused without a reason"
