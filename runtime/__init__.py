"""Assembles, caches, launches and emulates the PTX that lowbitvm.codegen writes."""
