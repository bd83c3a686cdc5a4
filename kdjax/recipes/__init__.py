"""Published protocols as experiments, so that a config of a pair of networks is a line. Nothing else in kdjax imports them."""
