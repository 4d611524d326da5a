//! A typed client of the HTTP API that can pay.
