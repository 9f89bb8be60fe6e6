"""How the commands print their `--help`."""

from jsonargparse import DefaultHelpFormatter


class KeepLineBreaks(DefaultHelpFormatter):
    """Leaves a description as it is written, so that its lists and examples stay one a line."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))
