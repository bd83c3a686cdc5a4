"""The names in ports of TensorFlow's EfficientNets to PyTorch, which begin with underscores."""

EFFICIENTNET = (
    ("stem/conv", "_conv_stem"),
    ("stem/norm", "_bn0"),
    ("blocks", "_blocks"),
    ("expand/conv", "_expand_conv"),
    ("expand/norm", "_bn0"),
    ("depthwise/conv", "_depthwise_conv"),
    ("depthwise/norm", "_bn1"),
    ("excite/reduce", "_se_reduce"),
    ("excite/expand", "_se_expand"),
    ("project/conv", "_project_conv"),
    ("project/norm", "_bn2"),
    ("head/conv", "_conv_head"),
    ("head/norm", "_bn1"),
    ("classifier", "_fc"),
)
