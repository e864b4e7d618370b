"""Video autoencoders: pixels to latents and back, streaming over time."""
