"""Running plans on NVIDIA GPUs: the device, the order of steps, the runner."""
