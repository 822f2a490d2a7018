"""Other libraries' functions and models on the kernels of mmm_core: one module a library, none imports its own."""
