"""HTTP/1.1: connections, requests as they come in, and replies as they go out."""
