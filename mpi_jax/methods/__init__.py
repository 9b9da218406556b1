"""A reconstruction method: voltages to images, by name."""
