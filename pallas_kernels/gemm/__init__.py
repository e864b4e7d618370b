"""The Hopper GEMM that the matrix products of this package share."""
