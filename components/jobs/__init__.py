"""Work that a step hands to other pods of the cluster and waits for: a TrainJob on several nodes, a RayJob."""
