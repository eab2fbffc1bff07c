"""Running a command as a user does: words in, exit code out, errors in one line."""

import argparse
import importlib
import sys

from orin.cli.errors import one_line


def command(words):
    """Run `orin WORDS`; as the door does, whether the command is registered there or not."""
    name, *rest = words
    module = importlib.import_module(f"orin.cli.{name}")
    parser = argparse.ArgumentParser(prog=f"orin {name}")
    module.configure(parser)
    options = parser.parse_args(rest)
    try:
        return options.handler(options)
    except Exception as error:
        line = one_line(error)
        if line is None:
            raise
        print(f"orin {name}: {line}", file=sys.stderr)
        return 2
