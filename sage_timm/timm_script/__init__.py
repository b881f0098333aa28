"""A train script of timm's, run with SAGE in the place of its Mixup: ``python -m sage_timm``."""
