"""`python -m benchmarks.kernels`: see `suite`."""

from benchmarks.kernels.suite import main

if __name__ == "__main__":
    main()
