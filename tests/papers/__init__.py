"""One file a paper: what is trained, what is deployed, and the figure that the compiler must meet between them."""
