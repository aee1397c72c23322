"""What others say, as a terminal may be given it; apart from tables, which import a lot."""


def printable(text: str) -> str:
    """``text`` with nothing in it that a terminal would obey."""
    return "".join(char if char.isprintable() else "?" for char in text)
