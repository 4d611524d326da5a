//! STREAM packets, sealing and connection machines (RFC 29).
