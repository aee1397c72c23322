"""C++ kernels for the machine at hand, compiled if a compiler is there; else torch does it."""
