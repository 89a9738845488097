"""What kernels cost, ours and other tools', as far as it can be said without a GPU: `lowbitvm bench`."""
