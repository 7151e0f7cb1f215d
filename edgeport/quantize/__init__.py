"""Quantization: frozen configurations, calibration on feeds, QuantizeLinear pairs in the graph."""
