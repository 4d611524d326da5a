//! ILPv4 packets, addresses, error codes and ILDCP over OER.
