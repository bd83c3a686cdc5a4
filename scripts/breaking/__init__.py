"""What `soak.py` and `fuzz_readers.py` break runs and files with."""
