"""`RaggedMoE` on NVIDIA GPUs: sources of the kernels, and the build of the shipped binaries.

Importing `moe_export` never needs Triton: the kernels are compiled ahead of time (`build`), and the
native library loads the binaries through the driver. From plain to fast:

* `kernels_1_common`: decoding of stored weights, and the kernels without a matrix product;
* `kernels_2_rows`: few tokens, a product of a matrix and a vector for every pair;
* `kernels_3_tiles`: many tokens, sorted by expert and multiplied in tiles by the tensor cores.

`device_layout` defines the layout of the weights. `plan` chooses kernels, shapes and grids.
`driver` runs the kernels from torch, on a GPU or in Triton's interpreter. `package` is the format
of the file of binaries, and `census` reads registers, spills and loads from a binary.
"""
