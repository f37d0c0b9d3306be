"""What only a CPU needs of the served model: its kernels' limits, and layers held in 16 bits."""
