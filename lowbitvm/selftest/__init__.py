"""`lowbitvm selftest`: every kind of kernel on a GPU against the emulator's bits and exact results; docs/gpu.md."""
