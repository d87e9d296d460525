"""Instructions that several steps share, so that training and inference use the same words."""

DESCRIBE_IMAGE = "Describe the picture."
NAME_OBJECTS = "Name the objects."
