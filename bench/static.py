"""What the main loops of all kernels cost, ours and other tools', without a GPU: python bench/static.py [--quick] ...

The same as `lowbitvm bench --static`, which explains its options with --help.
"""

import sys

from lowbitvm.cli import main

if __name__ == "__main__":
    main(["bench", "--static", *sys.argv[1:]])
