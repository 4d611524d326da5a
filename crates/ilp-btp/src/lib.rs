//! BTP 2.0 frames and the session machine.
