"""omnivae: variational autoencoders over images, volumes, video and text."""
