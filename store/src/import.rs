//! Share in place: walks a path, cuts and hashes it, and stages references.
