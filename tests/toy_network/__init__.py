"""A network added the way `docs/add-a-model.md` says, with two stacks of blocks."""
