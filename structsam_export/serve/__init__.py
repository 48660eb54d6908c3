"""A server: photos encoded once and kept, masks by HTTP, and a page to click in."""
