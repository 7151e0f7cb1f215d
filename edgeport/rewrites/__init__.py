"""Rewrites of an `nn.Module` by its author: they change the method, or need to know its bounds.

Rewrites that follow from the graph alone, and change no answer, are passes in `edgeport.passes`.
"""
