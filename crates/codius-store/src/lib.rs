//! The SQLite file that holds everything the host must not forget.
