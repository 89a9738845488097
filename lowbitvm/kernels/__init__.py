"""Prebuilt kernels, written in the DSL."""
