"""How parties stand with each other: who is there, how far, how reliable, who is shut out."""
