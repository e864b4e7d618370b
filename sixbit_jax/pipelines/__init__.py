"""Prompt to video, with the components of a converted diffusers root."""
