//! The state machine under acknowledgements made up for it.
