class InputError(Exception):
    """Bad input: data, a folder or a setting that cannot be used.

    The message is one line: what was found, what was expected, what to do. Commands print it and exit with 1.
    """
