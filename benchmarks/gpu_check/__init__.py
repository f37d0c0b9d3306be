"""`make gpu-check`: what this project claims of GPUs, measured on the one that is at hand, in 12 minutes at most."""
