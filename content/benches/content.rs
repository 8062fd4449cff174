//! Placeholder until the crate is whole.
fn main() {}
