//! Double entry, prices and leases.
