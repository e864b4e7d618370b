"""Picture encoders: from a picture to what the networks read of it."""
