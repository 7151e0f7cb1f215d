"""Rewrites of an `nn.Module` that change the method, so that the result has to be trained.

Exact rewrites, which change no answer, are graph passes and live in `edgeport.passes`.
"""
