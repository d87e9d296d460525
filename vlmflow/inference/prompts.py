"""The instructions that a model is trained on, and asked with, where several steps use the same words."""

DESCRIBE_IMAGE = "Describe the picture."
NAME_OBJECTS = "Name the objects."
