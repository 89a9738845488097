"""The other tools of `lowbitvm bench --gpu`, as far as a machine without a GPU can tell."""

import json
import subprocess
import sys

from lowbitvm.bench.gpu import Ours, moved
from lowbitvm.bench.gpu_peers import PEERS

ASK = """
import json
from lowbitvm.bench.gpu_peers import PEERS
print(json.dumps({peer.name: peer.available() for peer in PEERS}))
"""


def test_each_tool_says_whether_it_can_be_measured() -> None:
    made = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    reasons = json.loads(made.stdout)
    assert set(reasons) == {"torch f16", "torch int8", "cutlass", "humming-kernels", "gemlite", "tilus"}
    here = {None, "its wheel has no matrix multiplication", "needs nvcc"}  # on a machine with a GPU
    assert set(reasons.values()) <= {"not installed", "needs torch", "needs a torch with CUDA", *here}


def test_the_tools_are_asked_for_the_bytes_that_their_weights_take() -> None:
    shape = (16, 1024, 2048)
    sizes = {(peer.name, weights): peer.size(weights, shape) for peer in PEERS for weights in peer.weights}
    codes = 1024 * 2048
    assert sizes["torch f16", "f16"] == sizes["cutlass", "f16"] == 2 * codes
    assert sizes["torch int8", "i8 x i8"] == codes
    assert sizes["humming-kernels", "u3"] == codes * 3 // 8 + 2 * codes // 128
    assert sizes["gemlite", "u4,zero=int"] == codes // 2 + 4 * codes // 128
    assert moved(codes, shape, "i8 x i8") == codes + 16 * 2048 + 2 * 16 * 1024
    assert moved(codes, shape, "i8,act=i8") == codes + 2 * 16 * 2048 + 2 * 16 * 1024
    assert len(Ours().weights) == 12
