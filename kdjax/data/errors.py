"""What is wrong with data."""


class DataError(Exception):
    """Data is missing, unknown or unfit; the message is one sentence that names the mend."""
