//! The destination of a fetch: verified chunks are written at their places.
