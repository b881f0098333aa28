"""Trains and measures SAGE beside timm's Mixup and CutMix."""
