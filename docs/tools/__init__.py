"""What makes documentation pages; `make docs` and the tests run it."""
