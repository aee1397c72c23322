"""Days: cut, built, checked, exported, and kept until they are settled."""
