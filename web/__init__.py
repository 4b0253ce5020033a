"""What people touch: HTTP and SSE views, and the page they open."""
