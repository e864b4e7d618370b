"""`python -m benchmarks.quality`: see `study`."""

from benchmarks.quality.study import main

if __name__ == "__main__":
    main()
