//! The head daemon: gRPC edge, state store, driver loop.
