"""``python -m sage_timm TRAIN_SCRIPT``: a train script of timm's, with SAGE in Mixup's place."""

import sys

from sage_timm.timm_script.options import parse

if __name__ == "__main__":
    line = parse(sys.argv[1:])
    from sage_timm.timm_script.launcher import launch  # torch, which --help need not wait for

    launch(line)
