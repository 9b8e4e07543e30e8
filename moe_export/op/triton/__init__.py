"""`RaggedMoE` on NVIDIA GPUs: the kernels' sources, and what turns them into shipped binaries.

Importing `moe_export` never needs Triton: the kernels are compiled ahead of time (`build`), and the
native library loads the binaries through the driver. From plain to fast:

* `kernels_1_common`: how packed weights are read, and the kernels that do no matrix product;
* `kernels_2_rows`: few tokens, a product of a matrix and a vector for every pair;
* `kernels_3_tiles`: many tokens, sorted by expert and multiplied in tiles by the tensor cores.

`packed` is the layout of the weights, `plan` which kernels run and over which grid, `driver` runs
them from torch, on a GPU or in Triton's interpreter.
"""
