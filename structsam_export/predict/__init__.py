"""Photo and prompts -> masks, without torch; may import `runtimes` and `bundle`."""
