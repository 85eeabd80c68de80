"""Entry points, one a file, and the command line over them. The only package that knows both engines."""
