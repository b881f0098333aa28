"""Few-shot evaluation: backbones trained with each mixing method, measured on new classes."""
