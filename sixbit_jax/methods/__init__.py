"""A room per paper: recipe, method, tuning and packing of each."""
